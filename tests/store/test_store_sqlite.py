"""What only a file can show: damage, processes, kills."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import CorruptState, HeadConflict, StoreError
from deltamem_agents.store import Entry, open_store, version_id
from deltamem_agents.store.suite import PRINT, note, put

WRITER = """
import sys
from deltamem_agents.errors import HeadConflict
from deltamem_agents.store import open_store
from deltamem_agents.store.suite import put
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = open_store(path)
print("ready", flush=True)
for i in range(count):
    while True:
        try:
            put(store, "a", store.head("a"), f"{name} {i}", f"{name} {i}".encode() * 1000)
            break
        except HeadConflict:
            pass
print("done", flush=True)
"""


def start(path, name, count):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check_whole(path):
    """Every version loads, and the journal is what the versions say."""
    with open_store(path) as store:
        history = store.history("a")
        for version in history:
            assert set(store.load(version.version_id)) == {"facts"}
        assert [v for v, _ in store.journal("a")] == [v.version_id for v in reversed(history)]
        return [entry.content for _, entry in store.journal("a")]


def test_two_processes_lose_nothing(tmp_path):
    path = tmp_path / "memory.db"
    open_store(path).close()
    writers = [start(path, name, 25) for name in "xy"]
    assert [w.communicate(timeout=60)[0] for w in writers] == ["ready\ndone\n"] * 2
    written = check_whole(path)
    assert sorted(written) == sorted(f"{name} {i}" for name in "xy" for i in range(25))
    assert [t for t in written if t[0] == "x"] == [f"x {i}" for i in range(25)]


@pytest.mark.parametrize("milliseconds", [15, 60, 140])
def test_a_killed_writer_leaves_whole_versions(tmp_path, milliseconds):
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        put(store, "a", None, "first")
    writer = start(path, "x", 100_000)
    assert writer.stdout.readline() == "ready\n"
    time.sleep(milliseconds / 1000)
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    written = check_whole(path)
    assert written == ["first"] + [f"x {i}" for i in range(len(written) - 1)]
    with open_store(path) as store:
        put(store, "a", store.head("a"), "after")
    assert check_whole(path)[-1] == "after"


def test_threads_share_a_store(tmp_path):
    with open_store(tmp_path / "memory.db") as store:

        def write(name):
            for i in range(10):
                while True:
                    try:
                        put(store, "a", store.head("a"), f"{name}{i}")
                        break
                    except HeadConflict:
                        continue

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, "wxyz"))
        assert len(store.journal("a")) == 40 == len({e.content for _, e in store.journal("a")})


def test_damaged_bytes_are_never_handed_out(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        made = put(store, "a", None, "x", b"good bytes")
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE blobs SET data = ?", (b"evil bytes",))
    raw.close()
    with open_store(path) as store:
        with pytest.raises(CorruptState, match=r"'a'.*'facts'.*damaged.*backup"):
            store.load(made.version_id)
        assert store.journal("a")[0][1].content == "x"


def test_blobs_are_kept_once_and_go_with_their_last_user(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        for agent in "ab":
            put(store, agent, None, "x", b"same")
        counts = []
        for agent in "ab":
            store.delete(agent)
            with sqlite3.connect(path) as raw:
                counts.append(raw.execute("SELECT count(*) FROM blobs").fetchone()[0])
            raw.close()
    assert counts == [1, 0]


def test_it_is_there_after_reopening(tmp_path):
    path = tmp_path / "memory.db"
    with open_store(str(path)) as store:
        made = put(store, "a", None, "x", b"bytes")
    with open_store(f"sqlite:///{path}") as store:
        assert store.head("a") == made.version_id and store.load(made.version_id) == {"facts": b"bytes"}


def test_a_file_that_is_no_store(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 200)
    with pytest.raises(StoreError, match=r"notes\.txt.*not a database"):
        open_store(path)
    assert path.read_text().startswith("not a database")


def test_other_databases_are_refused():
    with pytest.raises(StoreError, match="only SQLite"):
        open_store("postgresql://host/db")


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "memory.db"
    open_store(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE meta SET value = '999'")
    raw.close()
    with pytest.raises(StoreError, match="upgrade"):
        open_store(path)


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
    assert version_id("a", parent, [*one, note("more")], PRINT) != version_id("a", parent, one, PRINT)
