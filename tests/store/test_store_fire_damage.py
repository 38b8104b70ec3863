"""Damaged, full, locked and foreign files: a typed error each, never wrong bytes, and the others unharmed."""

import fire  # noqa: F401
import pytest
from store_fire_bits import flips, pages
from store_fire_damage import SCENES

from deltamem_agents.errors import AgentNotFound, CorruptState, CorruptStore, StoreKeyError
from deltamem_agents.store import Filter, open_store
from deltamem_agents.store.suite import chain, put, texts


@pytest.mark.parametrize("name", SCENES)
def test_scene(tmp_path, name):
    told = SCENES[name](tmp_path)
    if told is None:
        pytest.skip("needs root, to mount a small disk")
    print(told)


def test_pages_that_are_overwritten(tmp_path):
    counts = pages(tmp_path, every=7)
    assert counts["damage_told_by_verify"] + counts["refused_to_open"] == counts["files"]
    assert counts["reads_right"] > counts["reads_refused"] > 0
    assert not [name for name in counts if "another" in name]


def test_bits_that_are_flipped(tmp_path):
    counts = flips(tmp_path, 40)
    assert counts["reads_right"] > 10 * counts.get("reads_refused", 0)


def poke(path, what, change, count=1):
    """Change bytes in a closed file where they stand, the first ``count`` times."""
    data = path.read_bytes()
    assert what in data and len(what) == len(change)
    path.write_bytes(data.replace(what, change, count))


def test_a_damaged_message_is_not_handed_out_and_can_be_left_behind(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        ids = chain(store, "a", 2)
        bad = put(store, "a", ids[-1], "the original words").version_id
        put(store, "b", None, "kept in b")
    poke(path, b"the original words", b"the ORIGINAL words")
    with open_store(path) as store:
        for read in (
            lambda: store.journal("a"),
            lambda: store.records("a", Filter()),
            lambda: list(store.dump("a")),
            lambda: store.search("a", "original"),
        ):
            with pytest.raises(CorruptState, match=r"memory\.db is damaged.*hash.*backup"):
                read()
        assert [problem.version_id for problem in store.verify()] == [bad]
        assert texts(store.journal("b")) == ["kept in b"] and store.load("a").version is not None
        store.move_head("a", ids[-1], expected=bad)
        assert texts(store.journal("a")) == ["word0", "word1"]
        store.delete("a")
        with pytest.raises(AgentNotFound):
            store.journal("a")
        assert list(store.verify()) == [] and texts([hit.record for hit in store.search("b", "kept")]) == ["kept in b"]
    assert b"original" not in path.read_bytes().lower()


def test_a_damaged_head_is_no_empty_memory(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        ids = chain(store, "a", 2)
        put(store, "b", None, "x")
        with store.backend.transaction(write=True) as connection:
            connection.exec_driver_sql("UPDATE agents SET head = 'x' || substr(head, 2) WHERE name = 'a'")
        for read in (store.load, store.history, store.journal):
            with pytest.raises(CorruptStore, match=r"'a': its head x.*memory\.db.*rollback"):
                read("a")
        assert len(store.load("b").parts) == 1
        assert [problem.agent_id for problem in store.verify()] == ["a"]
        store.move_head("a", ids[-1], expected=store.head("a"))
        assert texts(store.journal("a")) == ["word0", "word1"] and list(store.verify()) == []


def test_rows_without_what_they_need_are_damage(tmp_path):
    for table, column in (("versions", "resets"), ("versions", "created_at"), ("entries", "sub_states")):
        path = tmp_path / f"{table} {column}.db"
        with open_store(path) as store:
            chain(store, "a", 2)
            with store.backend.transaction(write=True) as connection:
                connection.exec_driver_sql(f"UPDATE {table} SET {column} = '[x'")
            with pytest.raises((CorruptStore, CorruptState), match=r"\.db"):
                store.history("a") if table == "versions" else store.journal("a")
            assert {problem.agent_id for problem in store.verify()} == {"a"}


def test_an_encrypted_state_whose_mark_is_damaged(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(path, key=b"k" * 32) as store:
        first = put(store, "a", None, "x", b"state")
        put(store, "b", None, "y", b"other state")
        with store.backend.transaction(write=True) as connection:
            other = "CAST('x' || substr(data, 2) AS BLOB)"
            connection.exec_driver_sql(f"UPDATE blobs SET data = {other} WHERE agent_pk = 1")
        with pytest.raises((CorruptState, StoreKeyError), match=r"'a'.*memory\.db"):
            store.load("a")
        assert [problem.version_id for problem in store.verify()] == [first.version_id]
        assert store.load("b").parts == {"facts": b"other state"}
