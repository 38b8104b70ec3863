"""A writing process is killed (SIGKILL) at random moments; what it was told to be written must be there, whole.

The writer tells of each write over a pipe when the call has returned. It appends to an agent that all writers share and
to one of its own, pins, prunes, and deletes scratch agents. Some are killed while they make the file. A killed process
is no power cut: what the operating system was given stays; against those, the store syncs at every commit.
"""

import random
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from deltamem_agents.errors import StatePruned
from deltamem_agents.store import Entry, Store, Version, Write, open_store

PRINT = "adapter/backbone"
SHARED = "shared"
SIZE = 9216  # bytes of a state: 36 layers of a head of 8 x 8 float32
PER_FILE = 25  # kills of writers to one file
PROCESSES = get_context("forkserver")  # children of a process that has imported what they need
PROCESSES.set_forkserver_preload(["deltamem_agents.store.sql"])


class Told(NamedTuple):
    """What a writer says of a write: the new version; or the agent that was deleted, or pruned."""

    what: str
    agent: str
    version: str | None = None
    text: str = ""


def state(text: str) -> bytes:
    """Bytes that belong to a text, to tell whether the right ones are there."""
    return random.Random(text).randbytes(SIZE)


def write(text: str) -> Write:
    entries = [Entry("human", f"{text}, line {i}", ("facts",), message_id=f"{text}/{i}") for i in range(3)]
    return Write(entries, {"facts": state(text)})


def put(store: Store, agent: str, text: str) -> Version:
    new = write(text)
    return store.append(agent, lambda head: new, fingerprint=PRINT)


def writer(path: str, number: int, pipe: Connection) -> None:
    """Write until killed."""
    with open_store(path) as store:
        pipe.send(Told("ready", ""))
        own, i = f"own {number}", 0
        while True:
            for agent in (SHARED, own):
                text = f"{agent}, writer {number}, write {i}"
                pipe.send(Told("written", agent, put(store, agent, text).version_id, text))
            if i % 4 == 2:
                store.pin(own, str(store.head(own)), f"pin {i}")
                store.prune(own, keep_every=3)
                pipe.send(Told("pruned", own))
            if i % 8 == 5:
                scratch = f"scratch {number} {i}"
                put(store, scratch, scratch)
                store.delete(scratch)
                pipe.send(Told("deleted", scratch))
            i += 1


def heard(pipe: Connection) -> Iterator[Told]:
    """What a writer told until it died."""
    with closing(pipe):
        while True:
            try:
                yield pipe.recv()
            except (EOFError, ConnectionResetError):
                return


def run_and_kill(path: Path, number: int, seconds: float, from_start: bool) -> list[Told]:
    """Start a writer, kill it so long after its start or after it has opened the store; what it told."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=writer, args=(str(path), number, theirs))
    process.start()
    theirs.close()
    if not from_start:
        assert ours.recv().what == "ready"
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -9, f"the writer ended by itself: {process.exitcode}"
    told = list(heard(ours))
    process.close()
    return told


def check(store: Store, told: list[Told]) -> int:
    """Everything that was told is there, whole; returns how many versions were looked at."""
    by_agent: dict[str, list[Told]] = {}
    for one in told:
        if one.what == "written":
            by_agent.setdefault(one.agent, []).append(one)
        if one.what == "deleted":
            assert store.head(one.agent) is None, f"{one.agent!r} was deleted, and is there"
    for agent, written in by_agent.items():
        ids = [version.version_id for version in reversed(store.history(agent))]
        mine = {one.version for one in written}
        assert [v for v in ids if v in mine] == [one.version for one in written], "an acknowledged write is missing"
        for one in written:
            whole(store, agent, str(one.version), one.text)
    return sum(map(len, by_agent.values()))


def whole(store: Store, agent: str, version: str, text: str) -> None:
    """Entries and bytes of a version are those that were written."""
    parent = store.version(agent, version).parent
    entries = [record.entry for record in store.journal(agent, version, after=parent)]
    assert entries == write(text).entries, f"{agent!r}, {version}: half written"
    try:
        assert store.load(agent, version).parts == {"facts": state(text)}, f"{agent!r}, {version}: other bytes"
    except StatePruned:
        assert agent != SHARED


def all_whole(store: Store) -> int:
    """Every version of every agent, acknowledged or not, is whole and hangs together; returns their number."""
    problems = list(store.verify())
    assert problems == [], problems
    for agent in store.agents():
        for version in store.tree(agent.agent_id):
            records = store.journal(agent.agent_id, version.version_id, after=version.parent)
            text = str(records[0].entry.content).rpartition(", line")[0]
            whole(store, agent.agent_id, version.version_id, text)
        assert len(store.history(agent.agent_id)) == agent.versions, "the history has branches"
    return sum(agent.versions for agent in store.agents())


def kill(folder: Path, *, times: int = 200, longest: float = 0.25, seed: int = 0) -> dict[str, Any]:
    """Kill ``times`` writers, each at most ``longest`` seconds after it began, and look at what is there."""
    draw = random.Random(seed)
    figures = {"kills": times, "kills_while_the_file_was_made": 0, "acknowledged_writes": 0, "versions_there": 0}
    told: list[Told] = []
    for number in range(times):
        fresh = number % PER_FILE == 0
        path = folder / f"memory{number // PER_FILE}.db"
        told = ([] if fresh else told) + run_and_kill(path, number, draw.uniform(0, longest), fresh)
        figures["kills_while_the_file_was_made"] += fresh
        with open_store(path) as store:
            latest = [one for one in told if f"own {number}" in one.text or f"writer {number}," in one.text]
            figures["acknowledged_writes"] += check(store, latest)
            if store.head(f"own {number}"):
                problems = list(store.verify(f"own {number}"))
                assert problems == [], problems
            if (number + 1) % PER_FILE == 0 or number + 1 == times:
                check(store, told)
                figures["versions_there"] += all_whole(store)
    return figures | {"acknowledged_writes_lost": 0, "half_written": 0, "problems_found_by_verify": 0}
