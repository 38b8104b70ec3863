"""``deltamem store``, and the commands of ``deltamem agents`` that load an adapter: checking, forgetting, migrating."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from cli.running import SAID, add, deltamem, make_store, refused, told
from langchain_core.messages import AIMessage, HumanMessage
from tiny import SENTENCES, build_adapter_folder

from deltamem_agents.chat_model.memory import AgentMemory
from deltamem_agents.chat_model.replay import replay
from deltamem_agents.cli.app import app
from deltamem_agents.engine import load_engine
from deltamem_agents.errors import FingerprintMismatch
from deltamem_agents.store import Entry, Filter, Store, open_store
from deltamem_agents.store.cipher import new_key

FIRST = Path(__file__).parents[1] / "data" / "store" / "v1.sqlite"  # a store of deltamem-agents 0.1.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("tiny"))


def damage(path: Path, where: str) -> None:
    """Flip a byte of states."""
    with sqlite3.connect(path) as database:
        for rowid, data in database.execute(f"SELECT rowid, data FROM blobs WHERE {where}").fetchall():
            flipped = data[:300] + bytes([data[300] ^ 1]) + data[301:]
            database.execute("UPDATE blobs SET data = ? WHERE rowid = ?", (flipped, rowid))
    database.close()


def tell(adapter: Path, store: Store, agent: str, numbers: range) -> AgentMemory:
    memory = AgentMemory(load_engine(str(adapter), device="cpu"), store)
    for i in numbers:
        memory.remember([HumanMessage(SENTENCES[i], id=f"m{i}"), AIMessage(f"step {i}", id=f"a{i}")], agent)
    return memory


def test_info(store: Path) -> None:
    make_store(store)
    make_store(store, "vera", "acme")
    document = told("store", "info", "--store", store)
    assert document == {
        "location": str(store),
        "schema": "0002",
        "bytes": document["bytes"],
        "journal": "full",
        "encrypted": False,
        "tenant": "default",
        "agents": 1,
        "versions": 3,
        "messages": 3,
    }
    assert document["bytes"] >= store.stat().st_size > 0
    shown = deltamem("store", "info", "--store", f"sqlite:///{store}").stdout
    assert str(store) in shown and "0002" in shown


def test_an_old_store_is_upgraded(store: Path) -> None:
    shutil.copy(FIRST, store)
    assert refused(deltamem("agents", "list", "--store", store), f"deltamem store upgrade --store {store}")
    before = deltamem("store", "info", "--store", store)
    assert before.returncode == 0 and "0001" in before.stdout and "deltamem store upgrade" in before.stdout
    done = deltamem("store", "upgrade", "--store", store)
    assert done.returncode == 0 and "0001.bak" in done.stdout, done.stderr
    assert "nothing to do" in deltamem("store", "upgrade", "--store", store).stdout
    assert told("store", "upgrade", "--store", store) == {"location": str(store), "schema": "0002", "revisions": []}
    assert told("agents", "list", "--store", store)


def test_states_are_pruned_and_branches_deleted(store: Path) -> None:
    versions = make_store(store)
    with open_store(store) as opened:
        add(opened, "otto", 2, versions[0], move_head=False)
    assert told("store", "prune", "--store", store) == {"pruned": 1, "deleted": 0}
    branches = ("store", "prune", "--store", store, "--agent", "otto", "--branches-older-than")
    assert refused(deltamem(*branches, "0"), "--yes")
    assert told(*branches, "1", "--yes")["deleted"] == 0
    assert "versions deleted: 1" in deltamem(*branches, "0", "--yes").stdout
    assert refused(deltamem("store", "prune", "--agent", "nobody", "--store", store), "nobody")
    assert "gone" in deltamem("store", "scrub", "--store", store).stdout


def test_hashes_alone_are_not_pruned(store: Path) -> None:
    with open_store(store, journal="hash") as opened:
        first = add(opened, "otto", 0, None)
        add(opened, "otto", 1, None, move_head=False)
    assert refused(deltamem("store", "prune", "--store", store), "hashes")
    branches = ("--branches-older-than", "0", "--yes")
    assert told("store", "prune", "--store", store, *branches) == {"pruned": 0, "deleted": 1}
    assert refused(deltamem("agents", "search", "otto", "atlas", "--store", store), "hashes")
    assert refused(deltamem("agents", "forget", "otto", "--text", "atlas", "--store", store), "hashes")
    assert (
        "(kept as a hash)"
        in deltamem("agents", "diff", "otto", first, "--store", store).stdout
        + deltamem("agents", "show", "otto", "--store", store).stdout
    )


def test_keys_are_changed(store: Path) -> None:
    make_store(store)
    rotate, listing = ("store", "rotate-key", "--store", store), ("agents", "list", "--store", store)
    assert refused(deltamem(*rotate), "DELTAMEM_STORE_NEW_KEY", "--generate", "--decrypt")
    assert refused(deltamem(*rotate, "--decrypt"), "not encrypted")
    assert refused(deltamem(*rotate, "--generate", "--json"), "--json")
    assert refused(deltamem(*rotate, DELTAMEM_STORE_NEW_KEY="short"), "DELTAMEM_STORE_NEW_KEY")
    made = deltamem(*rotate, "--generate")
    first, second = made.stdout.strip(), new_key()
    assert made.returncode == 0 and made.stdout.count("\n") == 1 and "keep this key" in made.stderr
    assert SAID[0].encode() not in b"".join(path.read_bytes() for path in store.parent.iterdir())
    assert refused(deltamem(*listing), "DELTAMEM_STORE_KEY")
    assert told(*listing, DELTAMEM_STORE_KEY=first) and told(
        "store", "info", "--store", store, DELTAMEM_STORE_KEY=first
    )
    assert refused(deltamem(*rotate, DELTAMEM_STORE_NEW_KEY=second), "DELTAMEM_STORE_KEY")
    both = {"DELTAMEM_STORE_KEY": first, "DELTAMEM_STORE_NEW_KEY": second}
    assert told(*rotate, **both) == {"location": str(store), "encrypted": True, "rows": 6}
    assert refused(deltamem(*listing, DELTAMEM_STORE_KEY=first), "DELTAMEM_STORE_KEY")
    assert told(*listing, DELTAMEM_STORE_KEY=f"{second},{first}")
    decrypted = deltamem(*rotate, "--decrypt", DELTAMEM_STORE_KEY=second)
    assert "not encrypted any more" in decrypted.stdout and told("agents", "search", "otto", "atlas", "--store", store)


def test_problems_are_listed(store: Path) -> None:
    versions = make_store(store)
    verify = ("store", "verify", "--store", store)
    assert deltamem(*verify).stdout == "No problem in 1 agent.\n"
    damage(store, "rowid = 2")
    done = deltamem(*verify)
    assert done.returncode == 1 and versions[1][:12] in done.stdout and "checksum" in done.stdout and not done.stderr
    assert deltamem(*verify, "--agent", "otto", "--json").returncode == 1
    assert refused(deltamem(*verify, "--agent", "nobody"), "nobody")


def test_a_damaged_file_is_a_problem(store: Path) -> None:
    make_store(store)
    with sqlite3.connect(store) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entries'").fetchone()[0]
    database.close()
    with open(store, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\x55" * 4096)
    done = deltamem("store", "verify", "--store", store)
    assert done.returncode == 1 and "Problems" in done.stdout and "Traceback" not in done.stderr


def test_states_are_replayed_and_repaired(store: Path, adapter: Path) -> None:
    with open_store(store) as opened:
        memory = tell(adapter, opened, "otto", range(3))
        before = memory.load("otto", opened.head("otto")).to_bytes()
        opened.commit("other", parent=None, parts={}, entries=[Entry("user", "x", ())], fingerprint="a/b")
    damage(store, "agent_pk = 1 AND rowid > 2")
    done = told("store", "verify", "--repair", "--replay", "--adapter", adapter, "--store", store)
    assert done["problems"] == [] and {mended["agent_id"] for mended in done["repaired"]} == {"otto"}
    assert (done["agents"], done["replayed"], done["passed_over"]) == (2, 3, 1)
    with open_store(store) as opened:
        assert list(opened.verify()) == []
        assert AgentMemory(memory.engine, opened).load("otto", opened.head("otto")).to_bytes() == before


def test_what_cannot_be_repaired_stays_a_problem(
    store: Path, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with open_store(store) as opened:
        tell(adapter, opened, "otto", range(2))
    damage(store, "rowid > 1")
    with sqlite3.connect(store) as database:
        database.execute("UPDATE versions SET resets = '[\"facts\"]' WHERE depth = 1")
    database.close()
    command = ["store", "verify", "--repair", "--adapter", str(adapter), "--store", str(store)]
    assert app(command, standalone_mode=False) == 1
    assert "not repaired" in capsys.readouterr().out


def test_messages_are_forgotten_and_sub_states_reset(store: Path, adapter: Path) -> None:
    with open_store(store) as opened:
        tell(adapter, opened, "otto", range(3))
        old = opened.head("otto")
    model = ("--adapter", adapter, "--store", store)
    done = deltamem("agents", "forget", "otto", "--text", SENTENCES[1], "--id", "m1", *model, "--yes", FORCE_COLOR="1")
    assert done.returncode == 0 and "forgotten: 1 message;" in done.stdout and "writing otto again" in done.stderr
    reset = told("agents", "reset", "otto", "task_progress", *model)
    with open_store(store) as opened:
        assert [r.entry.message_id for r in opened.journal("otto")] == ["m0", "a0", "a1", "m2", "a2"]
        assert opened.head("otto") == reset["version"] and opened.resolve("otto", str(old)) != old
        assert list(opened.version("otto", reset["version"]).parts) == ["facts"]
    assert SENTENCES[1].encode() not in b"".join(path.read_bytes() for path in store.parent.iterdir() if path.is_file())


@pytest.mark.parametrize("command", ["reset otto facts", "reset otto", "forget otto --text atlas --yes"])
def test_memories_of_another_adapter_are_left_alone(store: Path, adapter: Path, command: str) -> None:
    versions = make_store(store)
    with pytest.raises(FingerprintMismatch, match="deltamem store migrate"):
        app(["agents", *command.split(), "--adapter", str(adapter), "--store", str(store)], standalone_mode=False)
    with open_store(store) as opened:
        assert opened.head("otto") == versions[-1]


def test_agents_migrate(store: Path, adapter: Path) -> None:
    migrate = ("store", "migrate", "--adapter", adapter, "--store", store)
    with open_store(store) as opened:
        for agent in ("broken", "otto"):
            opened.commit(agent, parent=None, parts={}, entries=[Entry("user", SAID[0], ("old",))], fingerprint="a/b")
        memory = tell(adapter, opened, "mila", range(2))
        head = opened.head("mila")
    with sqlite3.connect(store) as database:
        database.execute("UPDATE entries SET body = x'00' WHERE agent_pk = 1")
    database.close()
    assert deltamem(*migrate).returncode == 2 and deltamem(*migrate, "otto", "--all").returncode == 2
    done = deltamem(*migrate, "--all", "--json", FORCE_COLOR="1", NO_COLOR="1")
    broken, mila, otto = json.loads(done.stdout)
    assert done.returncode == 1 and "is damaged" in broken["problem"] and "migrating otto" in done.stderr
    assert (mila["old"], mila["versions"], mila["problem"]) == (head, 0, None) and otto["versions"] == 1
    with open_store(store) as opened:
        memory = AgentMemory(memory.engine, opened)
        assert opened.head("mila") == head
        assert list(memory.load("otto", opened.head("otto")).sub_states) == ["facts", "task_progress"]
        assert list(replay(memory, "otto")) == []


def test_a_pruned_version_is_forked(store: Path, adapter: Path) -> None:
    with open_store(store) as opened:
        memory = tell(adapter, opened, "otto", range(3))
        second = opened.history("otto")[1].version_id
        before = memory.load("otto", second).to_bytes()
        assert opened.prune("otto") == 1
    made = told("agents", "fork", "otto", "mila", "--version", second[:8], "--adapter", adapter, "--store", store)
    with open_store(store) as opened:
        assert AgentMemory(memory.engine, opened).load("mila", made["head"]).to_bytes() == before
        assert len(opened.records("mila", Filter())) == 4
