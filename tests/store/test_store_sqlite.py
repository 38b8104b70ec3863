"""What only a file shows: where it is, who else has it open, what its bytes are."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import StoreError, StoreUnavailable
from deltamem_agents.store import Entry, Write, open_store, version_id
from deltamem_agents.store.suite import PRINT, chain, note, put, texts

ANOTHER = """
import sys
from deltamem_agents.store import open_store
from deltamem_agents.store.suite import put
with open_store(sys.argv[1]) as store:
    print(store.head("a"))
    put(store, "b", store.head("b"), "another process was here")
"""


def another_process(path) -> str:
    """Open, read the head of "a", write to "b", close; returns the head."""
    command = [sys.executable, "-c", ANOTHER, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# Where it is


def test_it_is_there_after_reopening(tmp_path):
    path = tmp_path / "new" / "folder" / "memory.db"
    with open_store(str(path)) as store:
        made = put(store, "a", None, "x", b"bytes")
    with open_store(f"sqlite:///{path}") as store:
        assert store.head("a") == made.version_id and store.load("a").parts == {"facts": b"bytes"}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["a b.db", "50%20#1?.db", "Ωμέγα.db", "'quoted\".db", "a;b&mode=ro.db"])
def test_names_of_files(tmp_path, name):
    with open_store(tmp_path / name) as store:
        put(store, "a", None, "x")
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_relative_paths_stay_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_store("memory.db") as store:
        monkeypatch.chdir("/")
        put(store, "a", None, "x")
        store.delete("a")
    assert (tmp_path / "memory.db").stat().st_size > 0


def test_a_link_to_a_file(tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "memory.db")
    with pytest.raises(StoreUnavailable, match=r"link\.db"):
        open_store(tmp_path / "link.db")
    open_store(tmp_path / "memory.db").close()
    with open_store(tmp_path / "link.db") as store, open_store(tmp_path / "memory.db") as same:
        made = put(store, "a", None, "x")
        assert same.head("a") == made.version_id


def test_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"file.memory\.db.*another path"):
        open_store(tmp_path / "file" / "memory.db")


def test_stores_in_memory_are_their_own():
    with open_store("sqlite://") as one, open_store(":memory:") as other:
        put(one, "a", None, "x")
        assert other.agents() == []


@pytest.mark.parametrize("url", ["mysql://host/db", "nonsense://x"])
def test_other_databases_are_refused(url):
    with pytest.raises(StoreError, match=r"give a path|only SQLite"):
        open_store(url)


# Who else has it open


def test_a_second_store_of_the_same_process_keeps_the_locks_of_the_first(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        first = put(store, "a", None, "one").version_id
        open_store(path).close()
        another_process(path)  # must not take itself for the last one, and the log with it
        second = put(store, "a", first, "two").version_id
        assert another_process(path) == second
        assert store.head("b") is not None and list(store.verify()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_may_not_use_what_its_parent_has_open(tmp_path):
    """Its writes would be lost when the parent closes the file."""
    path = tmp_path / "memory.db"
    script = """
import os, sys
from deltamem_agents.errors import StoreError
from deltamem_agents.store import open_store
from deltamem_agents.store.suite import put
store = open_store(sys.argv[1])
put(store, "a", None, "x")
if sys.argv[2] == "closed":
    store.close()
if os.fork() == 0:
    for use in (lambda: store.head("a"), lambda: put(open_store(sys.argv[1]), "b", None, "y")):
        try:
            use()
            print("used")
        except StoreError as error:
            print(error)
    sys.exit()
os.wait()
"""
    for closed in ("open", "closed"):
        command = [sys.executable, "-W", "ignore", "-c", script, str(path), closed]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()
        assert "memory.db: this process was forked" in told[0]
        assert told[1] == "used" if closed == "closed" else "Close it before" in told[1]


def test_threads_share_a_store(tmp_path):
    with open_store(tmp_path / "memory.db") as store:

        def write(name: str) -> None:
            for i in range(5):
                new = Write([note(f"{name} {i}")], {"facts": name.encode()})
                store.append("a", lambda head, new=new: new, fingerprint=PRINT)
                assert store.load("a").version is not None

        names = [f"thread {i}" for i in range(20)]  # more than there are connections
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(write, names))
        written = texts(store.journal("a"))
        assert sorted(map(str, written)) == sorted(f"{name} {i}" for name in names for i in range(5))
        assert len(store.history("a")) == 100 == len(store.tree("a"))


def test_a_reader_does_not_wait_for_a_writer(tmp_path):
    with open_store(tmp_path / "memory.db") as store, open_store(tmp_path / "memory.db") as other:
        first = put(store, "a", None, "x").version_id
        with other.backend.transaction(write=True) as connection:
            connection.exec_driver_sql("UPDATE agents SET head = NULL")
            assert store.head("a") == first and store.load("a").version is not None
            connection.rollback()


def test_a_writer_that_waits_too_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("deltamem_agents.store.sqlite.BUSY_SECONDS", 0)
    monkeypatch.setattr("deltamem_agents.store.reading.RETRY_SECONDS", 0.2)
    with open_store(tmp_path / "memory.db") as store, open_store(tmp_path / "memory.db") as other:
        with (
            other.backend.transaction(write=True),
            pytest.raises(StoreUnavailable, match=r"memory\.db.*another process kept it locked.*[Tt]ry again"),
        ):
            put(store, "a", None, "x")
        put(store, "a", None, "x")


# What its bytes are


def test_blobs_are_kept_once_and_go_with_their_last_user(tmp_path):
    def blobs(store) -> int:
        with store.backend.transaction(write=False) as connection:
            return connection.exec_driver_sql("SELECT count(*) FROM blobs").scalar_one()

    with open_store(tmp_path / "memory.db") as store:
        first = put(store, "a", None, "x", b"same").version_id
        put(store, "a", first, "y", b"same")
        put(store, "b", None, "x", b"same")
        assert blobs(store) == 2  # one for each agent
        store.delete("a")
        assert blobs(store) == 1 and store.load("b").parts == {"facts": b"same"}


def test_a_file_is_smaller_after_deleting(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        chain(store, "b", 2)
        store.scrub()
        small = path.stat().st_size
        for i in range(20):
            put(store, "a", store.head("a"), f"{i}", os.urandom(50_000))
        store.delete("a")
        assert path.stat().st_size <= small + 8192
        assert Path(f"{path}-wal").stat().st_size == 0


entries = st.lists(
    st.builds(
        Entry,
        st.sampled_from(["user", "assistant", "tool"]),
        st.text(max_size=20),
        st.lists(st.sampled_from(["facts", "task_progress"]), unique=True).map(tuple),
        st.none() | st.text(max_size=5),
    ),
    max_size=3,
)


@given(entries, entries, st.none() | st.just("p"), st.none() | st.just("p"))
def test_an_id_says_what_was_written_after_what(one, two, parent, other):
    same = (one, parent) == (two, other)
    assert (version_id("a", parent, one, PRINT) == version_id("a", other, two, PRINT)) == same
    assert version_id("a", parent, one, PRINT) != version_id("b", parent, one, PRINT)
    assert version_id("a", parent, one, PRINT, tenant="t") != version_id("a", parent, one, PRINT)
    assert version_id("a", parent, [*one, note("more")], PRINT) != version_id("a", parent, one, PRINT)
