"""One agent as one file: out of a store, into another, and every kind of damage on the way."""

import json
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents.errors import AgentExists, AgentNotFound, ArchiveError, InvalidName
from deltamem_agents.store import Agent, Entry, Policy, Store, Version, open_store, version_id
from deltamem_agents.store import archive as module
from deltamem_agents.store.archive import export_agent, import_agent
from deltamem_agents.store.cipher import new_key
from deltamem_agents.store.records import checksum

PRINT = "adapter/backbone"
ODD = "NUL \0, one half \ud800, two halves \ud83d\ude00, one character 😀, a line\u2028break\n"
STATE = f"states/{checksum(b'other')}.safetensors"
ANOTHER_ID = "line 1 of versions.jsonl is damaged.*its id is not that of its contents"
KILLED = """
import os, signal, sys
from deltamem_agents.store import open_store
from deltamem_agents.store.archive import export_agent
store = open_store(sys.argv[1])
items = list(store.dump("a"))
store.dump = lambda _: (item if i < 3 else os.kill(os.getpid(), signal.SIGKILL) for i, item in enumerate(items))
export_agent(store, "a", sys.argv[2], overwrite=True)
"""
Change = Callable[[Path], Path]  # of a file, to another content


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "from.db") as store:
        yield store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "to.db") as store:
        yield store


@pytest.fixture
def exported(store: Store, tmp_path: Path) -> Path:
    rich(store)
    return export_agent(store, "a", tmp_path / "a.zip")


def put(store: Store, parent: str | None, *texts: str, **more: Any) -> Version:
    entries = [Entry("user", text, ("facts",), message_id=f"m {number}") for number, text in enumerate(texts)]
    options = {"parts": {"facts": f"{parent} {texts}".encode()}, "entries": entries, "fingerprint": PRINT} | more
    return store.commit("a", parent=parent, **options)


def rich(store: Store) -> None:
    """An agent "a" with branches, a reset, a pin, retired and pruned versions, odd text, and something forgotten."""
    full = Entry(
        *("assistant", ODD, ("facts", "task"), "id", "a tool", {"b": [1, None, {"ä": 0.1}], "a": ODD}, "thread", "run"),
        **{"tokens": 7, "gate": {"facts": 0.1 + 0.2, "task": 1.0}, "moved": {"facts": 1e-300}},
    )
    first = put(store, None, entries=[full], parts={"facts": b"\0 f", "task": b"t"})
    second = put(store, first.version_id, "x", "", "x")
    third = put(store, second.version_id, entries=[], parts={}, resets=["task"])
    side = put(store, first.version_id, "side", move_head=False)
    put(store, third.version_id, "left behind")
    store.move_head("a", third.version_id, expected=store.head("a"))
    secret = put(store, third.version_id, entries=[Entry("user", "secret", ("facts",), message_id="gone")])
    clean = put(store, third.version_id, "public", move_head=False)
    if store.policy.journal == "full":
        forgotten = [record.entry_id for record in store.journal("a", secret.version_id, after=third.version_id)]
        store.rewrite("a", {secret.version_id: clean.version_id}, forgotten)
        for number in range(6):
            put(store, store.head("a"), f"more {number}")
        assert store.prune("a", keep_every=4, keep_last=1) > 0
    store.pin("a", side.version_id, "a label ⚑")


def everything(store: Store, agent: str = "a") -> Any:
    """All that there is to know of an agent, without its name and its ids."""
    places: dict[str | None, int | None] = {None: None}
    versions = []
    for version, records, new in store.dump(agent):
        places[version.version_id] = len(places)
        entries = [(record.entry_id, record.made_at, record.entry, record.entry.content_hash) for record in records]
        versions.append((replace(version, version_id="", agent_id="", parent=""), places[version.parent], entries, new))
    return versions, places[store.head(agent)], store.tombstones(agent)


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as container:
        return {name: container.read(name) for name in container.namelist()}


def rebuilt(path: Path, changes: dict[str, bytes | None], about: Any = (), sums: bool = True) -> Path:
    """The file with members added, replaced or (None) taken away; ``sums``: with their checksums in the manifest."""
    members = contents(path) | changes
    manifest = json.loads(members.pop("manifest.json") or b"") | dict(about)
    for name, data in changes.items() if sums else ():
        manifest["sha256"] |= {name: checksum(data or b"")}
    with zipfile.ZipFile(path, "w") as container:
        for name, data in (members | {"manifest.json": json.dumps(manifest).encode()}).items():
            if data is not None:
                container.writestr(name, data)
    return path


def member(name: str, data: bytes | None, sums: bool = True) -> Change:
    return lambda path: rebuilt(path, {name: data}, sums=sums)


def about(**change: Any) -> Change:
    return lambda path: rebuilt(path, {}, change)


def lines(change: Callable[[list[dict[str, Any]]], Any]) -> Change:
    def changed(path: Path) -> Path:
        text = contents(path)["versions.jsonl"].decode("utf-8", "surrogatepass")
        change(documents := [json.loads(line) for line in text.split("\n")[:-1]])
        text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        return rebuilt(path, {"versions.jsonl": text.encode("utf-8", "surrogatepass")})

    return changed


def first(**change: Any) -> Change:
    return lines(lambda documents: documents[0].update(change))


def entry(**change: Any) -> Change:
    return lines(lambda documents: documents[0]["entries"][0].update(change))


def refused(store: Store, path: Path, message: str) -> None:
    with pytest.raises(ArchiveError, match=f"(?s)^{path}.*{message}"):
        import_agent(store, path)
    assert store.agents() == []


def test_nothing_is_lost(store: Store, other: Store, exported: Path) -> None:
    made = import_agent(other, exported)
    assert everything(other) == everything(store) and len(everything(store)[0]) > 10
    assert made == other.agent("a") and replace(made, created_at=store.agent("a").created_at) == store.agent("a")
    tree = store.tree("a")
    assert other.tree("a") == tree and other.history("a") == store.history("a")
    for version in (version for version in tree if not version.pruned):
        assert other.load("a", version.version_id) == store.load("a", version.version_id)
    assert any(version.pruned for version in tree) and any(version.retired for version in tree)
    assert [version.pin for version in tree if version.pin] == ["a label ⚑"] and list(other.verify()) == []


def test_under_another_name_and_in_another_tenant(store: Store, other: Store, exported: Path, tmp_path: Path) -> None:
    whole, name = everything(store), "../b ä"
    assert import_agent(store, exported, as_agent=name).agent_id == name
    with open_store(tmp_path / "from.db", tenant="t2") as second:
        import_agent(second, exported)
        assert whole == everything(store) == everything(store, name) == everything(second)
        trees = [second.tree("a"), store.tree(name), store.tree("a")]
        assert len({version.version_id for tree in trees for version in tree}) == 3 * len(whole[0])
        assert [*store.verify(), *second.verify()] == []
        import_agent(other, export_agent(second, "a", tmp_path / "second.zip"))
    assert other.tree("a") == store.tree("a")


def test_out_of_an_encrypted_store_in_clear(other: Store, tmp_path: Path) -> None:
    with open_store(tmp_path / "k.db", key=new_key()) as sealed:
        put(sealed, None, "plain words")
        path = export_agent(sealed, "a", tmp_path / "a.zip")
        import_agent(other, path)
        assert everything(other) == everything(sealed)
    assert b"plain words" in path.read_bytes() and b"plain words" not in (tmp_path / "k.db").read_bytes()


def test_an_agent_without_versions(store: Store, other: Store, tmp_path: Path) -> None:
    store.restore("a", [], None, tombstones=["m"])
    made = import_agent(other, export_agent(store, "a", tmp_path / "a.zip"))
    assert (made.head, made.versions, other.tombstones("a")) == (None, 0, {"m"})


def test_policies_must_be_the_same(store: Store, exported: Path, tmp_path: Path) -> None:
    with open_store("sqlite://", journal="hash") as hashes, open_store("sqlite://", journal="hash") as second:
        refused(hashes, exported, "policy 'full', and in memory has 'hash'.*made with the policy 'full'")
        rich(hashes)
        path = export_agent(hashes, "a", tmp_path / "hash.zip")
        assert b"two halves" in exported.read_bytes() and b"two halves" not in path.read_bytes()
        refused(second, rebuilt(exported, {}, {"journal": "hash"}), "text where hashes alone are kept")
        import_agent(second, path)
        assert everything(second) == everything(hashes)
    store.delete("a")
    refused(store, path, "policy 'hash', and .*from.db has 'full'")


def test_the_format(store: Store, exported: Path) -> None:
    members, versions = contents(exported), store.tree("a")
    manifest = json.loads(members["manifest.json"])
    sums = manifest.pop("sha256")
    states = {f"states/{checksum(data)}.safetensors" for _, _, new in store.dump("a") for data in new.values()}
    assert members.keys() - {"manifest.json"} == sums.keys() == states | {"versions.jsonl", "tombstones.json"}
    assert all(checksum(members[name]) == sums[name] for name in sums)
    assert datetime.fromisoformat(manifest.pop("created_at")) <= datetime.now(UTC) and manifest.pop("library")
    counts = {"versions": len(versions), "entries": store.agent("a").entries, "states": len(states), "tombstones": 1}
    about = {"format": "deltamem-agent", "version": 1, "tenant": "default", "agent": "a", "journal": "full"}
    assert manifest == about | {"head": store.head("a"), "counts": counts}
    line = json.loads(members["versions.jsonl"].decode("utf-8", "surrogatepass").split("\n")[0])
    assert (line["version_id"], line["parts"]) == (versions[0].version_id, versions[0].parts)
    assert line["entries"][0]["content"] == ODD and json.loads(members["tombstones.json"]) == ["gone"]
    assert exported.stat().st_mode & 0o077 == 0


def test_files_that_are_there_or_cannot_be(store: Store, exported: Path, tmp_path: Path) -> None:
    before = exported.read_bytes()
    with pytest.raises(ArchiveError, match=f"{exported} is there already"):
        export_agent(store, "a", str(exported))
    assert exported.read_bytes() == before
    put(store, store.head("a"), "more")
    assert len(export_agent(store, "a", exported, overwrite=True).read_bytes()) > len(before)
    for path in (tmp_path / "nowhere" / "a.zip", exported / "a.zip", tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(ArchiveError, match="cannot be written"):
            export_agent(store, "a", path, overwrite=True)
    with pytest.raises(AgentNotFound):
        export_agent(store, "b", tmp_path / "b.zip")
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("from.db")} == {"a.zip"}


def test_an_error_leaves_no_file(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rich(store)
    (folder := tmp_path / "folder").mkdir()
    items = list(store.dump("a"))
    monkeypatch.setattr(store, "dump", lambda _: (item if i < 3 else 1 / 0 for i, item in enumerate(items)))
    with pytest.raises(ZeroDivisionError):
        export_agent(store, "a", folder / "a.zip")
    assert list(folder.iterdir()) == []


def test_a_killed_export_leaves_what_was_there(store: Store, tmp_path: Path) -> None:
    rich(store)
    old, new = tmp_path / "old.zip", tmp_path / "new.zip"
    old.write_bytes(b"an older export")
    for target in (old, new):
        done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "from.db", target])
        assert done.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"an older export" and not new.exists()


def test_changes_meanwhile(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = put(store, None, "x")
    [(_, records, new)] = store.dump("a")
    put(store, first.version_id, "y")
    for item in ((first, records, new), (first, [], new), (first, records, {}), (first, records, {"facts": b"?"})):
        monkeypatch.setattr(store, "dump", lambda _, item=item: iter([item]))
        with pytest.raises(ArchiveError, match=r"changed while it was exported.*or is damaged: export it again"):
            export_agent(store, "a", tmp_path / "a.zip")


def test_memory_does_not_grow_with_the_states(tmp_path: Path) -> None:
    size, count, agent = 1 << 20, 30, Agent("a", None, datetime.now(UTC), 0, 0)

    class Fake:
        location, tenant, policy = "fake", "default", Policy()
        agent, head, tombstones = lambda *_: agent, lambda *_: None, lambda *_: set()

        def dump(self, _: str) -> Iterator[Any]:
            for number in range(count):
                data = number.to_bytes(4, "big") * (size // 4)
                name, parts = version_id("a", None, [], str(number)), {"facts": checksum(data)}
                yield Version(name, "a", None, str(number), agent.created_at, parts), [], {"facts": data}

        def restore(self, _: str, versions: Any, head: None, tombstones: list[str]) -> Agent:
            return replace(agent, versions=sum(1 for _ in versions))

    store: Any = Fake()
    tracemalloc.start()
    path = export_agent(store, "a", tmp_path / "a.zip")
    assert import_agent(store, path).versions == count
    assert tracemalloc.get_traced_memory()[1] < 6 * size < size * count < path.stat().st_size
    tracemalloc.stop()


def test_an_agent_that_is_there_is_left_alone(store: Store, exported: Path) -> None:
    put(store, store.head("a"), "later")
    before = everything(store)
    with pytest.raises(AgentExists, match="'a'"):
        import_agent(store, exported)
    for name in ("", "x" * 201):
        with pytest.raises(InvalidName):
            import_agent(store, exported, as_agent=name)
    assert everything(store) == before and len(store.agents()) == 1


def test_a_file_that_changes_after_the_check(other: Store, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore, data = other.restore, exported.read_bytes()
    name = [name for name in contents(exported) if name.startswith("states/")][-1]
    end = data.index(name.encode()) + len(name)

    def late(*arguments: Any, **more: Any) -> Any:
        exported.write_bytes(data[:end] + b"?" + data[end + 1 :])
        return restore(*arguments, **more)

    monkeypatch.setattr(other, "restore", late)
    refused(other, exported, f"{name} is damaged")


def test_what_is_no_export_or_cut_off(store: Store, other: Store, tmp_path: Path) -> None:
    rich(other)
    path = tmp_path / "file.zip"
    refused(store, path, "cannot be read .No such file.*path of an export")
    refused(store, tmp_path, "cannot be read .Is a directory")
    for data in (b"", b"text", b"PK\5\6" + b"\0" * 17):
        path.write_bytes(data)
        refused(store, path, "the file is damaged or no export .*export it again")
    with zipfile.ZipFile(path, "w") as container:
        container.writestr("word/document.xml", "<x/>")
    refused(store, path, "manifest.json is damaged or no export .it is missing")
    data = export_agent(other, "a", path, overwrite=True).read_bytes()
    for length in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(store, path, "export it again")


def test_flipped_bytes(store: Store, tmp_path: Path) -> None:
    put(store, put(store, None, "x").version_id, "y")
    path = export_agent(store, "a", tmp_path / "a.zip")
    data, whole = path.read_bytes(), everything(store)
    names = [""] * len(data)  # the member that a byte belongs to
    with zipfile.ZipFile(path) as container:
        for info in container.infolist():
            begin = info.header_offset + 30 + len(info.filename)
            names[begin : begin + info.file_size] = [info.filename] * info.file_size
    with open_store("sqlite://") as other:
        for position, name in enumerate(names):
            changed = bytearray(data)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            try:
                import_agent(other, path, as_agent=str(position))
            except ArchiveError as error:
                assert str(error).startswith(f"{path}: {name}") and "export it again" in str(error)
            else:  # such as the time of a member, which nobody reads
                assert not name and everything(other, str(position)) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (member("../evil", b""), "'../evil' is damaged.*does not belong there"),
        (member(STATE, b"other", sums=False), "the manifest does not name it"),
        (member(STATE, b"other"), "states that no version has"),
        (member("versions.jsonl", None), "'versions.jsonl' is damaged.*missing"),
        (member("versions.jsonl", b"", sums=False), "versions.jsonl is damaged.*SHA-256"),
        (member("versions.jsonl", b""), "it holds .*of "),
        (member("tombstones.json", b'["a", "a"]'), "there twice"),
        (member("tombstones.json", b"[" * 100_000), "tombstones.json is damaged"),
        (about(format="something"), "its format is not 'deltamem-agent'.*export it again"),
        (about(version=2, library="9.9", sha256=None), "version 2 .*9.9.*reads version 1: upgrade deltamem-agents"),
        (about(head="0" * 64), "the head 0+ is missing"),
        (lines(lambda documents: documents.reverse()), "its parent does not come before it"),
        (lines(lambda documents: documents.insert(1, documents[0])), "line 2 .*there before"),
        *((change, ANOTHER_ID) for change in (about(tenant="x"), about(agent="x"), entry(message_id="x"))),
        *((change, ANOTHER_ID) for change in (first(version_id="0" * 64), first(fingerprint="x"), first(entries=[]))),
        (first(depth=1), "its depth"),
        (first(created_at="2026-01-01"), "no zone"),
        (first(new=["facts"]), "bytes of a part are missing"),
        (first(parts={"facts": "../../x", "task": ""}), "no SHA-256"),
        (entry(content="changed"), "hash of entry .* is not that of its content"),
        (entry(sub_states=[1]), "no list of texts"),
        (entry(gate={"facts": "1"}), "no number"),
    ],
)
def test_wrong_contents(other: Store, exported: Path, change: Change, message: str) -> None:
    refused(other, change(exported), message)


def test_wrong_types(other: Store, exported: Path) -> None:
    whole, known = exported.read_bytes(), module.MANIFEST_KINDS.keys() - {"format"}
    for keys, change in ((known, about), (module.VERSION_KINDS, first), (module.ENTRY_KINDS, entry)):
        for key in keys:
            refused(other, change(**{key: 1.5})(exported), f"is damaged.*{key} is of another type")
            exported.write_bytes(whole)


def test_members_that_are_compressed_missing_or_there_twice(other: Store, exported: Path) -> None:
    members = contents(exported)
    for name in ("manifest.json", "versions.jsonl", next(iter(members))):
        with zipfile.ZipFile(exported, "w") as container:
            for member, data in members.items():
                container.writestr(member, data, zipfile.ZIP_DEFLATED if member == name else zipfile.ZIP_STORED)
        refused(other, exported, f"{name} is damaged.*it is compressed")
    rebuilt(exported, {})
    with zipfile.ZipFile(exported, "a") as container, pytest.warns(UserWarning, match="Duplicate"):
        container.writestr(name, members[name])
    refused(other, exported, "a member is there twice")
    refused(other, rebuilt(exported, {name: None}), f"{name}' is damaged.*it is missing")
