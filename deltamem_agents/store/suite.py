"""The contract as tests. A backend inherits :class:`StoreContract` and gives it a ``store`` fixture.

class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self):
        with open_my_store() as store:
            yield store
"""

from collections.abc import Sequence

import pytest

from ..errors import AgentNotFound, FingerprintMismatch, HeadConflict, VersionNotFound
from .contract import Entry, Store, Version, version_id

PRINT = "adapter/backbone"


def note(text: str, role: str = "user", **more: object) -> Entry:
    """An entry for tests."""
    return Entry(role, text, ("facts",), **more)  # type: ignore[arg-type]


def put(store: Store, agent: str, parent: str | None, text: str, data: bytes = b"1", **more: object) -> Version:
    """Commit one message that changes ``facts``."""
    options = {"parts": {"facts": data}, "entries": [note(text)], "fingerprint": PRINT} | more
    return store.commit(agent, parent=parent, **options)  # type: ignore[arg-type]


class StoreContract:
    """Every promise of contract.py that one process can check."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("a test class for a backend defines the fixture 'store'")

    def test_unknown(self, store: Store) -> None:
        assert store.agents() == [] and store.head("a") is None and store.find("v") is None
        for call in (store.agent, store.history, store.journal, store.delete):
            with pytest.raises(AgentNotFound, match="'a'"):
                call("a")
        for read in (store.version, store.load):
            with pytest.raises(VersionNotFound, match="'v'"):
                read("v")

    def test_commit_is_read_back(self, store: Store) -> None:
        entries = [note("ein Wort ⚑", message_id="m1", source="t"), note("", "tool", payload={"a": [1, None]})]
        made = store.commit("a", parent=None, parts={"facts": b"\0\1"}, entries=entries, fingerprint=PRINT)
        assert made.version_id == version_id("a", None, entries, PRINT)
        assert store.head("a") == made.version_id and store.version(made.version_id) == made == store.find(
            made.version_id
        )
        assert store.load(made.version_id) == {"facts": b"\0\1"}
        assert store.journal("a") == [(made.version_id, e) for e in entries]
        assert made.created_at.utcoffset() is not None
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
        assert store.load(second.version_id) == {"facts": b"g", "task_progress": b"t"}
        third = put(store, "a", second.version_id, "z", parts={}, entries=[], resets=["facts"])
        assert store.load(third.version_id) == {"task_progress": b"t"}
        assert store.load(first.version_id) == {"facts": b"f", "task_progress": b"t"}

    def test_only_the_head_moves_the_head(self, store: Store) -> None:
        first = put(store, "a", None, "x")
        second = put(store, "a", first.version_id, "y")
        with pytest.raises(HeadConflict, match="another writer"):
            put(store, "a", first.version_id, "z", b"lost")
        assert store.head("a") == second.version_id and store.agent("a").versions == 2
        with pytest.raises(HeadConflict):
            put(store, "b", first.version_id, "z")
        assert [a.agent_id for a in store.agents()] == ["a"]

    def test_a_branch_leaves_the_head(self, store: Store) -> None:
        first = put(store, "a", None, "x")
        second = put(store, "a", first.version_id, "y")
        side = put(store, "a", first.version_id, "z", b"2", move_head=False)
        assert store.head("a") == second.version_id and store.load(side.version_id) == {"facts": b"2"}
        assert [e.content for _, e in store.journal("a", side.version_id)] == ["x", "z"]
        assert [v.version_id for v in store.history("a")] == [second.version_id, first.version_id]

    def test_a_branch_can_become_the_head(self, store: Store) -> None:
        first = put(store, "a", None, "x")
        side = put(store, "a", first.version_id, "y", move_head=False)
        assert put(store, "a", first.version_id, "y") == side and store.head("a") == side.version_id

    def test_parents_are_checked(self, store: Store) -> None:
        theirs = put(store, "b", None, "x")
        with pytest.raises(VersionNotFound, match="'a'"):
            put(store, "a", theirs.version_id, "y", move_head=False)
        with pytest.raises(VersionNotFound):
            put(store, "b", "nowhere", "y", move_head=False)
        with pytest.raises(VersionNotFound, match="another agent"):
            put(store, "a", None, "x")
            store.journal("a", theirs.version_id)

    def test_fingerprints_do_not_mix(self, store: Store) -> None:
        first = put(store, "a", None, "x", parts={"facts": b"f", "task_progress": b"t"})
        with pytest.raises(FingerprintMismatch, match="task_progress"):
            put(store, "a", first.version_id, "y", fingerprint="other/backbone")
        assert store.head("a") == first.version_id
        names = ["facts", "task_progress"]
        fresh = put(store, "a", first.version_id, "", parts={}, entries=[], resets=names, fingerprint="other/backbone")
        assert store.load(fresh.version_id) == {} and store.head("a") == fresh.version_id

    def test_delete_takes_everything_of_one_agent(self, store: Store) -> None:
        first = put(store, "a", None, "x", b"shared")
        put(store, "a", first.version_id, "y", b"own", move_head=False)
        kept = put(store, "b", None, "x", b"shared")
        assert store.delete("a") == 2
        assert store.head("a") is None and store.find(first.version_id) is None
        assert store.load(kept.version_id) == {"facts": b"shared"} and store.agent("b").entries == 1
        assert put(store, "a", None, "x", b"shared").version_id == first.version_id

    @pytest.mark.parametrize("texts", [["x"], ["x", "y", "x"], [""] * 3])
    def test_the_journal_is_in_order(self, store: Store, texts: Sequence[str]) -> None:
        head = None
        for text in texts:
            head = put(store, "a", head, text).version_id
        assert [e.content for _, e in store.journal("a")] == list(texts)
