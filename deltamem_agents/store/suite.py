"""The contract as tests. A backend inherits :class:`StoreContract` and gives it a ``store`` fixture.

class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self):
        with open_my_store() as store:
            yield store
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from ..errors import (
    AgentExists,
    AgentNotFound,
    CorruptState,
    FingerprintMismatch,
    HeadConflict,
    InvalidName,
    StatePruned,
    StoreError,
    VersionNotFound,
)
from .contract import Store
from .records import Entry, Filter, Record, Version, Write, version_id

PRINT = "adapter/backbone"


def note(text: str, role: str = "user", **more: object) -> Entry:
    """An entry for tests."""
    return Entry(role, text, ("facts",), **more)  # type: ignore[arg-type]


def put(store: Store, agent: str, parent: str | None, text: str, data: bytes = b"1", **more: object) -> Version:
    """Commit one message that changes ``facts``."""
    options = {"parts": {"facts": data}, "entries": [note(text)], "fingerprint": PRINT} | more
    return store.commit(agent, parent=parent, **options)  # type: ignore[arg-type]


def chain(store: Store, agent: str, count: int, parent: str | None = None, **more: object) -> list[str]:
    """Ids of ``count`` versions, each after the one before."""
    ids: list[str] = []
    for i in range(count):
        after = ids[-1] if ids else parent
        ids.append(put(store, agent, after, f"word{i}", f"state {after} {i}".encode(), **more).version_id)
    return ids


def texts(records: Sequence[Record]) -> list[str | None]:
    return [record.entry.content for record in records]


class StoreContract:
    """Every promise of contract.py that one process can check."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("a test class for a backend defines the fixture 'store'")

    # Committing and reading

    def test_unknown(self, store: Store) -> None:
        assert store.agents() == [] and store.head("a") is None and store.find("a", "v") is None
        assert store.load("a").version is None and store.load("a").parts == {} and store.search("a", "word") == []
        calls = (store.agent, store.history, store.tree, store.journal, store.delete, store.tombstones)
        for call in calls:
            with pytest.raises(AgentNotFound, match="'a'"):
                call("a")
        for read in (store.version, store.load, store.resolve):
            with pytest.raises(VersionNotFound, match="'v'"):
                read("a", "v")

    def test_commit_is_read_back(self, store: Store) -> None:
        entries = [
            note("ein Wort ⚑ \0 \ud800", message_id="m1", source="t", thread_id="th", run_id="r", tokens=7),
            note("", "tool", payload={"a": [1, None]}, gate={"facts": 0.25}, moved={"facts": 1.5}),
        ]
        made = store.commit("a", parent=None, parts={"facts": b"\0\1"}, entries=entries, fingerprint=PRINT)
        assert made.version_id == version_id("a", None, entries, PRINT, tenant=store.tenant)
        assert store.head("a") == made.version_id
        assert store.version("a", made.version_id) == made == store.find("a", made.version_id)
        snapshot = store.load("a")
        assert snapshot.parts == {"facts": b"\0\1"} and snapshot.version == made
        assert store.load("a", made.version_id) == snapshot
        records = store.journal("a")
        assert [record.entry for record in records] == entries
        assert {record.version_id for record in records} == {made.version_id}
        assert len({record.entry_id for record in records}) == 2
        assert made.created_at.utcoffset() is not None and records[0].made_at.utcoffset() is not None
        agent = store.agent("a")
        assert (agent.head, agent.versions, agent.entries) == (made.version_id, 1, 2) and store.agents() == [agent]

    def test_the_same_write_is_there_once(self, store: Store) -> None:
        first = put(store, "a", None, "x")
        assert put(store, "a", None, "x") == first
        second = put(store, "a", first.version_id, "x")
        assert second != first and put(store, "a", None, "x") == first
        assert store.head("a") == second.version_id and len(store.journal("a")) == 2

    def test_unchanged_parts_are_the_parents(self, store: Store) -> None:
        first = put(store, "a", None, "x", parts={"facts": b"f", "task_progress": b"t"})
        second = put(store, "a", first.version_id, "y", b"g")
        assert store.load("a", second.version_id).parts == {"facts": b"g", "task_progress": b"t"}
        assert store.load("a", first.version_id).parts == {"facts": b"f", "task_progress": b"t"}
        assert (first.depth, second.depth) == (0, 1)

    def test_a_reset_empties_one_part(self, store: Store) -> None:
        first = put(store, "a", None, "x", parts={"facts": b"f", "task_progress": b"t"})
        reset = store.commit(
            "a", parent=first.version_id, parts={}, entries=[], fingerprint=PRINT, resets=["task_progress"]
        )
        assert store.load("a", reset.version_id).parts == {"facts": b"f"} and reset.resets == ("task_progress",)

    def test_the_head_moves_by_compare_and_swap(self, store: Store) -> None:
        first = put(store, "a", None, "x")
        second = put(store, "a", first.version_id, "y")
        with pytest.raises(HeadConflict, match="another writer"):
            put(store, "a", first.version_id, "z")
        with pytest.raises(HeadConflict):
            put(store, "a", None, "z")
        assert store.head("a") == second.version_id and store.agent("a").versions == 2

    def test_append_goes_after_whatever_is_the_head(self, store: Store) -> None:
        first = put(store, "a", None, "x")
        seen: list[str | None] = []

        def write(head: str | None) -> Write:
            if not seen:
                put(store, "a", head, "somebody else")
            seen.append(head)
            return Write([note("mine")], {"facts": b"2"})

        made = store.append("a", write, fingerprint=PRINT)
        assert seen[0] == first.version_id and seen[1] == made.parent and len(seen) == 2
        assert texts(store.journal("a")) == ["x", "somebody else", "mine"]

    def test_a_branch_leaves_the_head_alone(self, store: Store) -> None:
        trunk = chain(store, "a", 3)
        branch = chain(store, "a", 2, trunk[0], move_head=False)
        assert store.head("a") == trunk[-1]
        assert [v.version_id for v in store.history("a", branch[-1])] == [branch[1], branch[0], trunk[0]]
        assert [v.version_id for v in store.history("a")] == trunk[::-1]
        assert [v.version_id for v in store.history("a", after=trunk[0])] == trunk[:0:-1]
        assert [v.version_id for v in store.history("a", limit=1)] == trunk[-1:]
        assert texts(store.journal("a", branch[-1], limit=2)) == ["word0", "word1"]
        diff = store.diff("a", branch[-1], trunk[-1])
        assert diff.ancestor == trunk[0] and (texts(diff.removed), texts(diff.added)) == (
            ["word0", "word1"],
            ["word1", "word2"],
        )
        assert store.is_ancestor("a", trunk[0], branch[1]) and not store.is_ancestor("a", branch[0], trunk[2])
        assert {v.version_id for v in store.tree("a")} == {*trunk, *branch}
        with pytest.raises(VersionNotFound, match="not on the way"):
            store.journal("a", trunk[-1], after=branch[0])

    def test_versions_belong_to_one_agent(self, store: Store) -> None:
        first = put(store, "a", None, "x")
        put(store, "b", None, "x")
        for call in (
            lambda: put(store, "b", first.version_id, "y", move_head=False),
            lambda: store.load("b", first.version_id),
            lambda: store.history("b", first.version_id),
            lambda: store.pin("b", first.version_id, "x"),
            lambda: store.move_head("b", first.version_id, expected=store.head("b")),
        ):
            with pytest.raises(VersionNotFound):
                call()

    def test_another_fingerprint_keeps_nothing(self, store: Store) -> None:
        first = put(store, "a", None, "x", parts={"facts": b"f", "task_progress": b"t"})
        with pytest.raises(FingerprintMismatch, match="task_progress"):
            put(store, "a", first.version_id, "y", fingerprint="other/backbone")
        put(store, "a", first.version_id, "y", fingerprint="other/backbone", resets=["task_progress"])

    @pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", "\ud800"])
    def test_names_that_cannot_be_held(self, store: Store, name: str) -> None:
        with pytest.raises(InvalidName):
            put(store, name, None, "x")
        assert store.agents() == []

    @pytest.mark.parametrize(
        "name", ["../../etc/passwd", "'; DROP TABLE agents; --", "Ωμέγα 🦉", " ", "x" * 200, "%_*"]
    )
    def test_names_are_only_names(self, store: Store, name: str) -> None:
        made = put(store, name, None, "x")
        other = put(store, name[:-1] + "y", None, "x")
        assert store.head(name) == made.version_id != other.version_id and len(store.agents()) == 2
        store.delete(name)
        assert [agent.agent_id for agent in store.agents()] == [name[:-1] + "y"]

    # The journal

    @pytest.mark.parametrize("said", [["x"], ["x", "y", "x"], [""] * 3])
    def test_the_journal_is_in_order(self, store: Store, said: Sequence[str]) -> None:
        head = None
        for text in said:
            head = put(store, "a", head, text).version_id
        assert texts(store.journal("a")) == list(said)

    def test_what_was_written(self, store: Store) -> None:
        entries = [note("x", message_id="1", thread_id="t"), note("y", message_id="2", thread_id="t")]
        first = put(store, "a", None, "", entries=entries)
        second = put(store, "a", first.version_id, "", entries=[note("z", message_id="3", thread_id="u")])
        keys = {(e.message_id, e.content_hash) for e in entries}
        assert store.written("a", second.version_id, ["1", "2", "4"]) == keys
        assert store.written("a", first.version_id, ["3"]) == set()
        everything = [*keys, ("3", note("z").content_hash)]
        assert store.last_written("a", second.version_id, everything) == second.version_id
        assert store.last_written("a", second.version_id, keys) == first.version_id
        assert store.last_written("a", first.version_id, [("1", "another text"), ("3", note("z").content_hash)]) is None
        assert store.last_written("a", first.version_id, [(None, entries[0].content_hash)]) is None
        assert store.wrote_between("a", "t", None, first.version_id)
        assert not store.wrote_between("a", "u", None, first.version_id)
        assert store.wrote_between("a", "u", first.version_id, second.version_id)
        assert not store.wrote_between("a", "t", first.version_id, second.version_id)

    def test_records_by_condition(self, store: Store) -> None:
        made = [note("Port 80", source="mira", thread_id="t"), Entry("ai", "Done", ("task_progress",), message_id="m")]
        put(store, "a", None, "", entries=made)
        first, second = store.records("a", Filter())
        later = datetime.now(UTC) + timedelta(minutes=1)
        for where, expected in (
            (Filter(ids=[first.entry_id, "m"]), [first, second]),
            (Filter(source="mira"), [first]),
            (Filter(thread_id="t"), [first]),
            (Filter(sub_state="task_progress"), [second]),
            (Filter(text="pORT"), [first]),
            (Filter(since=later), []),
            (Filter(until=later, text="o"), [first, second]),
            (Filter(ids=[]), []),
            (Filter(hashes=[second.entry.content_hash, "none"]), [second]),
        ):
            assert store.records("a", where) == expected, where

    def test_search_ranks_and_stays_with_its_agent(self, store: Store) -> None:
        head = None
        for text in ("the port of atlas is 80", "atlas atlas atlas", "the cat sat", "nothing here", "PORT of call, é"):
            head = put(store, "a", head, text).version_id
        put(store, "b", None, "the port of atlas")
        found = store.search("a", "Port ATLAS?", k=2)
        assert found[0].record.entry.content == "the port of atlas is 80" and len(found) == 2
        assert found[0].score >= found[1].score
        assert texts([hit.record for hit in store.search("a", "e")]) == ["PORT of call, é"]
        assert store.search("a", "unheard") == store.search("a", '"*() AND') == store.search("c", "port") == []
        assert texts([hit.record for hit in store.search("b", "atlas sat")]) == ["the port of atlas"]
        branch = put(store, "a", head, "atlas on a branch", move_head=False)
        assert (
            len(store.search("a", "branch")) == 0
            and len(store.search("a", "branch", version_id=branch.version_id)) == 1
        )

    # Heads, pins, copies

    def test_rollback_retires_what_it_leaves(self, store: Store) -> None:
        ids = chain(store, "a", 4)
        with pytest.raises(HeadConflict):
            store.move_head("a", ids[1], expected=ids[2])
        store.move_head("a", ids[1], expected=ids[3])
        assert store.head("a") == ids[1]
        assert [store.version("a", v).retired for v in ids] == [False, False, True, True]
        new = put(store, "a", ids[1], "after")
        assert texts(store.journal("a")) == ["word0", "word1", "after"]
        store.move_head("a", ids[3], expected=new.version_id)
        assert [store.version("a", v).retired for v in ids] == [False] * 4
        assert store.version("a", new.version_id).retired

    def test_what_was_rolled_back_counts_as_written(self, store: Store) -> None:
        entry = note("x", message_id="1")
        first = put(store, "a", None, "")
        second = put(store, "a", first.version_id, "", entries=[entry])
        assert store.written("a", first.version_id, ["1"]) == set()
        store.move_head("a", first.version_id, expected=second.version_id)
        assert store.written("a", first.version_id, ["1"]) == {("1", entry.content_hash)}

    def test_a_fork_stands_on_its_own(self, store: Store) -> None:
        ids = chain(store, "a", 3)
        made = store.fork("a", "b", ids[1])
        assert store.head("b") == made.version_id not in ids and made.depth == 1
        assert texts(store.journal("b")) == ["word0", "word1"]
        assert store.load("b").parts == store.load("a", ids[1]).parts
        with pytest.raises(AgentExists):
            store.fork("a", "b")
        with pytest.raises(AgentNotFound):
            store.fork("nobody", "c")
        store.delete("a")
        assert texts(store.journal("b")) == ["word0", "word1"] and len(store.search("b", "word1")) == 1
        assert list(store.verify("b")) == []

    def test_dump_and_restore(self, store: Store) -> None:
        ids = chain(store, "a", 3)
        chain(store, "a", 2, ids[0], move_head=False)
        store.pin("a", ids[1], "before lunch")
        dumped = list(store.dump("a"))
        before = (store.tree("a"), store.journal("a"), store.load("a"))
        with pytest.raises(AgentExists):
            store.restore("a", dumped, ids[-1])
        store.delete("a")
        agent = store.restore("a", dumped, ids[-1], tombstones=["gone"])
        assert (agent.head, agent.versions) == (ids[-1], 5)
        assert (store.tree("a"), store.journal("a"), store.load("a")) == before
        assert store.tombstones("a") == {"gone"}
        other = store.restore("b", dumped, ids[-1])
        assert other.head not in ids and store.load("b").parts == before[2].parts
        with pytest.raises(StoreError):
            store.restore("c", dumped[1:], ids[-1])
        assert store.head("c") is None and list(store.verify()) == []

    def test_delete_takes_everything_of_one_agent(self, store: Store) -> None:
        first = put(store, "a", None, "x", b"shared")
        put(store, "a", first.version_id, "y", b"own", move_head=False)
        kept = put(store, "b", None, "x", b"shared")
        assert store.delete("a", scrub=False) == 2
        store.scrub()
        assert store.head("a") is None and store.find("a", first.version_id) is None
        assert store.load("b", kept.version_id).parts == {"facts": b"shared"} and store.agent("b").entries == 1
        assert put(store, "a", None, "x", b"shared").version_id == first.version_id

    # Upkeep

    def test_pruned_states_are_dropped_and_can_be_put_back(self, store: Store) -> None:
        ids = chain(store, "a", 7)
        store.pin("a", ids[4], "keep")
        assert store.prune("a", keep_every=3) == 3 and store.prune(keep_every=3) == 0
        assert [store.version("a", v).pruned for v in ids] == [False, True, True, False, False, True, False]
        with pytest.raises(StatePruned):
            store.load("a", ids[1])
        assert len(store.journal("a")) == 7 and list(store.verify()) == []
        with pytest.raises(CorruptState):
            store.fill("a", ids[1], {"facts": b"something else"})
        store.fill("a", ids[1], {"facts": f"state {ids[0]} 1".encode()})
        assert store.load("a", ids[1]).parts == {"facts": f"state {ids[0]} 1".encode()}
        with pytest.raises(StatePruned):  # nothing of task_progress is known, but facts was there
            store.commit("a", parent=ids[2], parts={}, entries=[], fingerprint=PRINT, resets=["x"], move_head=False)

    def test_collecting_keeps_what_leads_somewhere(self, store: Store) -> None:
        ids = chain(store, "a", 3)
        loose = chain(store, "a", 2, ids[0], move_head=False)
        pinned = put(store, "a", ids[0], "pinned", move_head=False).version_id
        store.pin("a", pinned, "mine")
        assert store.collect(older_than=timedelta(hours=1)) == 0
        assert store.collect("a", older_than=timedelta(0)) == 2
        assert {v.version_id for v in store.tree("a")} == {*ids, pinned}
        assert store.resolve("a", loose[1]) == ids[0]
        assert chain(store, "a", 2, ids[0], move_head=False) == loose  # written again, and again nobody's
        assert store.resolve("a", loose[1]) == loose[1] and store.collect("a", older_than=timedelta(0)) == 2
        assert store.resolve("a", loose[1]) == ids[0]
        assert list(store.verify()) == []

    def test_rewriting_forgets(self, store: Store) -> None:
        first = put(store, "a", None, "", entries=[note("keep one", message_id="k")]).version_id
        secret = [note("xyzzy secret", message_id="s"), note("keep two", message_id="k2")]
        second = put(store, "a", first, "", b"held the secret", entries=secret).version_id
        third = put(store, "a", second, "keep three", b"held it too").version_id
        store.pin("a", third, "pin")
        gone = [r.entry_id for r in store.records("a", Filter(text="xyzzy"))]
        kept = [r for r in store.journal("a", second, after=first) if r.entry_id not in gone]
        new2 = put(store, "a", first, "", b"clean", entries=kept, move_head=False).version_id
        with pytest.raises(HeadConflict, match="meanwhile"):
            store.rewrite("a", {second: new2}, gone)
        last = store.journal("a", third, after=second)
        new3 = put(store, "a", new2, "", b"clean too", entries=last, move_head=False).version_id
        store.rewrite("a", {second: new2, third: new3}, gone)
        assert store.head("a") == new3 == store.resolve("a", third)
        assert texts(store.journal("a")) == ["keep one", "keep two", "keep three"]
        assert [r.entry_id for r in store.journal("a")][1:] == [kept[0].entry_id, last[0].entry_id]
        assert store.load("a", second).parts == {"facts": b"clean"} and store.version("a", new3).pin == "pin"
        assert store.tombstones("a") == {"s"} == store.tombstones("a", ["s", "k"]) and store.search("a", "xyzzy") == []
        assert len(store.tree("a")) == 3 and list(store.verify()) == []
        assert put(store, "a", third, "four").parent == new3
