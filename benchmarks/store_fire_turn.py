"""One turn of an agent: load the head, commit a state of 36 KB with four entries. SQLite, synced at every commit.

The state is that of 36 layers x 4 heads x 8 x 8 float32 in two sub-states, both of which change. The file holds many
agents with many versions each; every turn is one of a random agent. The file is built without syncing, to save time.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import event
from store_fire import spread

from deltamem_agents.store import Entry, Record, Version, checksum, open_store
from deltamem_agents.store.contract import Dumped
from deltamem_agents.store.sql import SQLStore

PRINT = "adapter/backbone"
HALF = 36 * 2 * 8 * 8 * 4  # bytes of two heads in every layer
PER_VERSION = 50_000  # bytes of the file, about, with journal and index
WORDS = ["".join(random.Random(i).choices("abcdefghijklmnoprstuvw", k=3 + i % 6)) for i in range(5000)]


def message(draw: random.Random, role: str, number: int) -> Entry:
    """About 250 characters, of words of which some are frequent."""
    text = " ".join(WORDS[int(len(WORDS) * draw.random() ** 3)] for _ in range(45))
    return Entry(
        role, text, ("facts",) if role == "human" else ("facts", "task_progress"), f"message-{number}-{role}",
        source="mira", thread_id=f"thread-{number // 50}", run_id=f"run-{number}", tokens=60,
        gate={"facts": draw.random()}, moved={"facts": 3 * draw.random()},
    )  # fmt: skip


def entries(draw: random.Random, number: int) -> list[Entry]:
    return [message(draw, role, number) for role in ("human", "ai", "tool", "system")]


def state(draw: random.Random) -> dict[str, bytes]:
    return {"facts": draw.randbytes(HALF), "task_progress": draw.randbytes(HALF)}


def unsynced(path: Path) -> SQLStore:
    """A store that does not wait for the disk: only to build what is measured afterwards."""
    store = open_store(path)
    event.listen(store.backend.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
    store.backend.engine.dispose()
    return store


def line(draw: random.Random, count: int) -> Iterator[Dumped]:
    """The versions of one agent, as Store.restore takes them; their ids are made there."""
    moment, parent = datetime.now(UTC), None
    for i in range(count):
        parts = state(draw)
        records = [Record(draw.randbytes(8).hex(), f"v{i}", moment, entry) for entry in entries(draw, i)]
        sums = {name: checksum(data) for name, data in parts.items()}
        yield Version(f"v{i}", "", parent, PRINT, moment, sums, depth=i), records, parts
        parent = f"v{i}"


def turns(store: SQLStore, draw: random.Random, agents: int, count: int, start: int) -> dict[str, Any]:
    """The times of so many turns: loading, committing, both."""
    load, commit, both, busy = [], [], [], 0.0
    for i in range(count):
        agent, parts, written = f"agent {draw.randrange(agents)}", state(draw), entries(draw, start + i)
        busy -= time.process_time()
        begin = time.perf_counter()
        snapshot = store.load(agent)
        middle = time.perf_counter()
        assert snapshot.version is not None and len(snapshot.parts) == 2
        store.commit(agent, parent=snapshot.version.version_id, parts=parts, entries=written, fingerprint=PRINT)
        end = time.perf_counter()
        busy += time.process_time()
        load.append(middle - begin)
        commit.append(end - middle)
        both.append(end - begin)
    times = {"load": spread(load), "commit": spread(commit), "turn": spread(both)}
    return times | {"processor_ms_per_turn": round(1000 * busy / count, 2)}


def timed(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def forget_cache(path: Path) -> None:
    """Ask the operating system to drop the file from memory. Before the store is opened: closing drops locks."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def turn(
    folder: Path, *, agents: int = 10_000, versions: int = 20, count: int = 3000, cold: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Turns of random agents: ``cold`` with the file on the disk alone, then ``count`` with it in the page cache."""
    need, free = int(2.2 * agents * versions * PER_VERSION), shutil.disk_usage(folder).free
    assert free > need, f"{need / 1e9:.0f} GB are needed on the disk, {free / 1e9:.0f} GB are free: --folder"
    draw, path = random.Random(seed), folder / "memory.db"
    begin = time.monotonic()
    with unsynced(path) as store:
        for i in range(agents):
            store.restore(f"agent {i}", line(draw, versions), f"v{versions - 1}")
    built = time.monotonic() - begin
    size = path.stat().st_size
    forget_cache(path)
    with open_store(path) as store:
        first = turns(store, draw, agents, cold, versions)
    subprocess.run(["cat", str(path)], check=True, stdout=subprocess.DEVNULL)  # into the page cache, if it fits
    with open_store(path) as store:
        warm = turns(store, draw, agents, count, versions + cold)
        found = timed(lambda: store.search("agent 0", "cat sat on the mat"))
        gone = timed(lambda: store.delete("agent 1"))
    return {
        "file_gb": round(size / 1e9, 2),
        "bytes_per_version": round(size / agents / versions),
        "build_s": round(built),
        "turns": count,
        **warm,
        "agents_that_are_on_the_disk_alone": {"turns": cold, **first},
        "search_ms": round(1000 * found, 2),
        "delete_one_agent_and_write_the_file_anew_s": round(gone, 1),
    }
