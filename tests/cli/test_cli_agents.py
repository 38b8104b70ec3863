"""``deltamem agents`` on stores without a model: looking, comparing, going back, copying, moving."""

import json
import re
from pathlib import Path

import pytest
from cli.running import FACT, SAID, add, deltamem, make_store, refused, state, told

from deltamem_agents.store import Entry, open_store, version_id
from deltamem_agents.store.cipher import new_key


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def versions(store: Path) -> list[str]:
    """Three versions of otto's memory, the oldest first."""
    return make_store(store)


def test_history(store: Path, versions: list[str]) -> None:
    with open_store(store) as opened:
        branch = add(opened, "otto", 2, versions[0], move_head=False)
        opened.pin("otto", versions[0], "before lunch")
        opened.prune("otto", keep_every=50)
    shown = deltamem("agents", "history", "otto", "--store", store).stdout
    lines = [line for line in shown.splitlines() if re.search(r"[0-9a-f]{12}", line)]
    assert [re.findall(r"[0-9a-f]{12}", line)[0] for line in lines] == [v[:12] for v in reversed(versions)]
    assert "head" in lines[0] and "pruned" in lines[1] and "pin: before lunch" in lines[2]
    assert "facts 0.50" in lines[1] and "facts 2.00" in lines[1]
    document = told("agents", "history", "otto", "--store", store, "--limit", "2")
    assert [d["version_id"] for d in document] == versions[:0:-1] and [d["head"] for d in document] == [True, False]
    assert document[1] | {"entries": 1, "tokens": 11, "gate": {"facts": 0.5}, "moved": {"facts": 2.0}} == document[1]
    assert document[1]["pruned"] and document[1]["parent"] == versions[0] and document[1]["depth"] == 1
    everything = told("agents", "history", "otto", "--store", store, "--all")
    assert {d["version_id"] for d in everything} == {*versions, branch} and all(d["entries"] for d in everything)


def test_the_gate_is_a_mean_and_movements_are_summed(store: Path) -> None:
    entries = [
        Entry("user", "one", ("facts",), tokens=1, gate={"facts": 0.2}, moved={"facts": 1.0}),
        Entry("user", "two", ("facts", "task_progress"), tokens=3, gate={"facts": 0.6, "task_progress": 0.1},
              moved={"facts": 2.0, "task_progress": 4.0}),
    ]  # fmt: skip
    with open_store(store) as opened:
        opened.commit("otto", parent=None, parts={"facts": b"1"}, entries=entries, fingerprint="a/b")
    (document,) = told("agents", "history", "otto", "--store", store)
    assert document["gate"] == {"facts": pytest.approx(0.5), "task_progress": pytest.approx(0.1)}
    assert document["moved"] == {"facts": 3.0, "task_progress": 4.0} and document["tokens"] == 4


def test_lists_for_machines(store: Path, versions: list[str]) -> None:
    (otto,) = told("agents", "list", "--store", store)
    assert otto["agent_id"] == "otto" and otto["head"] == versions[2] and (otto["versions"], otto["entries"]) == (3, 3)
    shown = told("agents", "show", "otto", "--store", store)
    assert shown["agent"] == otto and [m["entry"]["content"] for m in shown["messages"]] == list(SAID)
    assert shown["versions"][0]["version_id"] == versions[2]


def test_diff(store: Path, versions: list[str]) -> None:
    with open_store(store) as opened:
        branch = opened.commit(
            "otto",
            parent=versions[0],
            parts={"facts": state(5), "task_progress": state(1, "task_progress")},
            entries=[Entry("user", "On a branch.", ("facts",))],
            fingerprint="a/b",
            move_head=False,
        ).version_id
        other = opened.commit(
            "otto", parent=None, parts={"facts": b"x"}, entries=[], fingerprint="c/d", move_head=False
        ).version_id
    document = told("agents", "diff", "otto", versions[0][:8], "--store", store)
    assert [r["entry"]["content"] for r in document["added"]] == list(SAID[1:]) and document["removed"] == []
    assert document["distance"] == {"facts": pytest.approx(2 * 8**0.5)} and document["new"] == versions[2]
    document = told("agents", "diff", "otto", versions[1], branch[:6], "--store", store)
    assert document["distance"] == {"facts": pytest.approx(4 * 8**0.5), "task_progress": pytest.approx(8**0.5)}
    assert document["ancestor"] == versions[0]
    shown = deltamem("agents", "diff", "otto", versions[1], branch, "--store", store).stdout
    assert "cocoa" in shown and "On a branch." in shown and "two branches" in shown and "11.3137" in shown
    assert "different adapters" in told("agents", "diff", "otto", other, "--store", store)["why_not"]
    back = deltamem("agents", "diff", "otto", versions[2], versions[0], "--store", store).stdout
    assert "cocoa" in back and "two branches" not in back
    same = told("agents", "diff", "otto", versions[2], "--store", store)
    assert same["distance"] == {"facts": 0.0} and same["added"] == same["removed"] == []


def test_diff_of_pruned_versions_asks_the_journal(store: Path, versions: list[str]) -> None:
    with open_store(store) as opened:
        assert opened.prune("otto") == 1
    done = deltamem("agents", "diff", "otto", versions[1], "--store", store)
    assert done.returncode == 0 and f"{versions[1][:12]} were pruned" in done.stdout and "3.0000" in done.stdout
    document = told("agents", "diff", "otto", versions[1], "--store", store)
    assert document["distance"] is None and document["moved"] == {"facts": 3.0}


def test_versions_by_the_beginning_of_their_ids(store: Path, versions: list[str]) -> None:
    seen: dict[str, str] = {}
    for number in range(5000):  # two first versions whose ids begin alike
        identity = version_id("otto", None, [Entry("user", str(number), ())], "a/b")
        if identity[:4] in seen:
            break
        seen[identity[:4]] = str(number)
    with open_store(store) as opened:
        for text in (seen[identity[:4]], str(number)):
            entries = [Entry("user", text, ())]
            opened.commit("otto", parent=None, parts={}, entries=entries, fingerprint="a/b", move_head=False)
    pin = ("agents", "pin", "--store", store, "otto")
    twins = {v["version_id"] for v in told("agents", "history", "otto", "--all", "--store", store)}
    twins = {v for v in twins if v.startswith(identity[:4])}
    assert len(twins) == 2 and refused(deltamem(*pin, identity[:4], "x"), *(v[:12] for v in twins))
    assert refused(deltamem(*pin, versions[0][:3], "x"), "4 or more")
    assert refused(deltamem(*pin, "0000000", "x"), "0000000", "deltamem agents history")
    assert refused(deltamem(*pin, "f" * 64, "x"), "f" * 64)
    assert refused(deltamem("agents", "pin", "--store", store, "nobody", versions[0]), "nobody")
    assert told(*pin, versions[1].upper()[:10], "kept") == {"agent": "otto", "version": versions[1], "pin": "kept"}
    assert told("agents", "history", "otto", "--store", store)[1]["pin"] == "kept"
    assert "not pinned" in deltamem(*pin, versions[1]).stdout
    assert told("agents", "history", "otto", "--store", store)[1]["pin"] is None


def test_rollback(store: Path, versions: list[str]) -> None:
    back = ("agents", "rollback", "otto", "--store", store)
    assert refused(deltamem(*back, versions[0][:9]), "2 versions behind", "--yes")
    assert "2 versions left behind" in deltamem(*back, versions[0][:9], "--yes").stdout
    assert [v["retired"] for v in told("agents", "history", "otto", "--all", "--store", store)] == [True, True, False]
    assert "already" in deltamem(*back, versions[0]).stdout
    moved = {"agent": "otto", "old": versions[0], "head": versions[2], "left_behind": 0}
    assert told(*back, versions[2], "--yes") == moved
    with open_store(store) as opened:
        branch = add(opened, "otto", 2, versions[0], move_head=False)
    assert told(*back, branch, "--yes")["left_behind"] == 2


def test_forks(store: Path, versions: list[str]) -> None:
    assert "otto-2 knows" in deltamem("agents", "fork", "otto", "otto-2", "--store", store).stdout
    made = told("agents", "fork", "otto", "früher", "--version", versions[0][:8], "--store", store)
    assert made["forked_from"] == {"agent": "otto", "version": versions[0]}
    with open_store(store) as opened:
        assert [a.agent_id for a in opened.agents()] == ["früher", "otto", "otto-2"]
        assert [r.entry.content for r in opened.journal("früher")] == [FACT]
    assert refused(deltamem("agents", "fork", "otto", "otto-2", "--store", store), "otto-2")
    assert refused(deltamem("agents", "fork", "nobody", "otto-3", "--store", store), "nobody")


def test_search(store: Path, versions: list[str]) -> None:
    search = ("agents", "search", "otto", "--store", store)
    found = told(*search, "desk of mira")
    assert found[0]["record"]["entry"]["content"] == SAID[2] and found[0]["score"] > 0
    assert len(told(*search, "is", "-k", "2")) == 2
    assert told(*search, "desk", "--sub-state", "task_progress") == [] == told(*search, "desk", "--until", "2020-01-01")
    assert len(told(*search, "desk", "--since", "2020-01-01T10:00+02:00", "--source", "mila")) == 1
    shown = deltamem(*search, "atlas").stdout
    assert FACT in shown and versions[0][:12] in shown and "score" in shown
    assert deltamem(*search, "zebra").stdout == "No message fits.\n"
    assert refused(deltamem("agents", "search", "nobody", "desk", "--store", store), "nobody")
    wrong = deltamem(*search, "desk", "--since", "yesterday")
    assert wrong.returncode == 2 and "yesterday" in wrong.stderr


def test_forgetting_is_looked_at_first(store: Path, versions: list[str]) -> None:
    forget = ("agents", "forget", "otto", "--store", store)
    shown = deltamem(*forget, "--text", "COCOA", "--dry-run").stdout
    assert SAID[1] in shown and FACT not in shown and "Would be forgotten: 1" in shown
    (would,) = told(*forget, "--id", "m0", "--id", "m9", "--source", "mila", "--dry-run")["would_forget"]
    assert (
        would["entry"]["content"] == FACT and would["entry_id"] in deltamem(*forget, "--id", "m0", "--dry-run").stdout
    )
    assert refused(deltamem(*forget, "--since", "2020-01-01"), "3 messages", "--yes")
    assert refused(deltamem(*forget, "--yes"), "which messages", "--source")
    assert "nothing to forget" in deltamem(*forget, "--thread", "t9", "--yes").stdout
    assert told(*forget, "--until", "2020-01-01", "--yes") == {"agent": "otto", "entries": 0, "versions": 0}
    assert refused(deltamem("agents", "forget", "nobody", "--text", "x", "--store", store), "nobody")
    with open_store(store) as opened:
        assert opened.head("otto") == versions[2]


def test_an_agent_moves_in_a_file(store: Path, versions: list[str], tmp_path: Path) -> None:
    file, other = tmp_path / "otto.deltamem", tmp_path / "new" / "other.db"
    exported = deltamem("agents", "export", "otto", file, "--store", store)
    assert exported.returncode == 0 and str(file) in exported.stdout and not exported.stderr
    assert refused(deltamem("agents", "export", "otto", file, "--store", store), str(file))
    assert told("agents", "export", "otto", file, "--store", store, "--overwrite")["bytes"] == file.stat().st_size
    made = told("agents", "import", file, "--store", other)
    assert made["agent_id"] == "otto" and made["head"] == versions[2] and made["versions"] == 3
    assert "otto-2 is here: 3 versions" in deltamem("agents", "import", file, "--as", "otto-2", "--store", other).stdout
    assert refused(deltamem("agents", "import", file, "--store", other), "otto", "already")
    file.write_bytes(file.read_bytes()[:-500])
    assert refused(deltamem("agents", "import", file, "--as", "otto-3", "--store", other), str(file))
    assert refused(deltamem("agents", "import", tmp_path / "none", "--store", tmp_path / "none.db"), "none")
    assert not (tmp_path / "none.db").exists()


def test_exports_of_encrypted_stores_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    monkeypatch.setenv("DELTAMEM_STORE_KEY", key)
    make_store(tmp_path / "sealed.db")
    done = deltamem("agents", "export", "otto", tmp_path / "otto.deltamem", "--store", tmp_path / "sealed.db")
    assert done.returncode == 0 and "is not: keep it" in done.stderr
    monkeypatch.setenv("DELTAMEM_STORE_KEY", new_key())
    assert refused(deltamem("agents", "list", "--store", tmp_path / "sealed.db"), "DELTAMEM_STORE_KEY")
    monkeypatch.delenv("DELTAMEM_STORE_KEY")
    assert refused(deltamem("agents", "list", "--store", tmp_path / "sealed.db"), "DELTAMEM_STORE_KEY")
    journal = ("--journal", "hash", "--store", tmp_path / "hashes.db")
    assert refused(deltamem("agents", "import", tmp_path / "otto.deltamem", *journal), "policy")


def test_tenants_see_their_own_agents(store: Path, versions: list[str]) -> None:
    make_store(store, "vera", "acme")
    acme = ("--store", store, "--tenant", "acme")
    assert [a["agent_id"] for a in told("agents", "list", *acme)] == ["vera"]
    assert refused(deltamem("agents", "show", "otto", *acme), "otto", "acme")
    assert refused(deltamem("agents", "delete", "otto", "--yes", *acme), "otto")
    assert told("agents", "delete", "vera", "--yes", *acme) == {"deleted": "vera", "versions": 3}
    assert deltamem("agents", "list", *acme).stdout == "No agents yet.\n"
    assert len(told("agents", "list", "--store", store)) == 1


@pytest.mark.parametrize(
    "command", ["agents list", "agents history otto", "store info", "store verify", "store upgrade"]
)
def test_looking_makes_no_store(command: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/none.db"
    assert refused(deltamem(*command.split(), "--store", url), url)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_and_memory_are_no_stores(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    for location in (tmp_path / "empty.db", ":memory:", "sqlite://", "sqlite:///:memory:"):
        assert refused(deltamem("agents", "list", "--store", location), "no store")
    assert (tmp_path / "empty.db").stat().st_size == 0
    assert refused(deltamem("agents", "list", "--store", "mysql://host/x"), "mysql")


def test_what_agents_were_told_does_nothing_to_the_terminal(store: Path) -> None:
    evil = "\x1b]0;title\x07 [bold]plain[/bold] \ud83d 👩‍🚀"
    with open_store(store) as opened:
        opened.commit("otto", parent=None, parts={}, entries=[Entry("tool", evil, ())], fingerprint="a/b")
    done = deltamem("agents", "show", "otto", "--store", store, FORCE_COLOR="1")
    assert done.returncode == 0 and "\x1b]" not in done.stdout and "\x07" not in done.stdout
    assert "[bold]plain[/bold]" in done.stdout and "👩‍🚀" in done.stdout
    done = deltamem("agents", "show", "otto", "--store", store, "--json")
    assert done.stdout.isascii() and json.loads(done.stdout)["messages"][0]["entry"]["content"] == evil
