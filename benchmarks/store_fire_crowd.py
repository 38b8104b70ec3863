"""Many processes write at once: to one agent, and to agents of their own."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

from store_fire_kill import PROCESSES

from deltamem_agents.store import Entry, Store, Write, open_store

PRINT = "adapter/backbone"


def write(store: Store, agent: str, text: str) -> tuple[float, int]:
    """Append one message: the seconds it took, and how often it was written again after a new head."""
    asked = 0

    def new(head: str | None) -> Write:
        nonlocal asked
        asked += 1
        return Write([Entry("human", text, ("facts",))], {"facts": text.encode() * 1000})

    begin = time.perf_counter()
    store.append(agent, new, fingerprint=PRINT)
    return time.perf_counter() - begin, asked - 1


def writer(path: str, agents: list[str], writes: int, name: str, start: Any, results: Any) -> None:
    try:
        with open_store(path) as store:
            start.wait()
            took = [write(store, agent, f"{name} {i}") for i in range(writes) for agent in agents]
        results.put(took)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
        raise


def together(path: Path, jobs: list[tuple[list[str], int]]) -> dict[str, Any]:
    """One process for each job (agents, writes to each), all at once on a file that none of them has made."""
    start, results = PROCESSES.Barrier(len(jobs) + 1), PROCESSES.Queue()
    processes = [
        PROCESSES.Process(target=writer, args=(str(path), agents, writes, f"p{i}", start, results))
        for i, (agents, writes) in enumerate(jobs)
    ]
    for process in processes:
        process.start()
    start.wait()
    begin = time.monotonic()
    found = [results.get(timeout=600) for _ in jobs]
    seconds = time.monotonic() - begin
    for process in processes:
        process.join()
    failed = [one for one in found if isinstance(one, str)]
    assert not failed, failed
    took = [one for some in found for one in some]
    return {
        "processes": len(jobs),
        "writes": len(took),
        "errors": 0,
        "writes_per_second": round(len(took) / seconds),
        "longest_write_s": round(max(one[0] for one in took), 2),
        "written_again_after_a_new_head": sum(one[1] for one in took),
    }


def one_agent(path: Path, processes: int, writes: int) -> dict[str, Any]:
    """All write to one agent: nothing is lost, each in its order, and the history is one line."""
    figures = together(path, [(["a"], writes)] * processes)
    with open_store(path) as store:
        texts = [str(record.entry.content) for record in store.journal("a")]
        versions = store.history("a")
        assert len(versions) == len(store.tree("a")) == store.agent("a").versions == processes * writes
        assert [v.parent for v in versions] == [*(v.version_id for v in versions[1:]), None], "not one line"
        assert all(count == 1 for count in Counter(texts).values()) and len(texts) == processes * writes
        for i in range(processes):
            assert [text for text in texts if text.startswith(f"p{i} ")] == [f"p{i} {n}" for n in range(writes)]
        for version, text in zip(versions, reversed(texts), strict=True):
            assert store.load("a", version.version_id).parts == {"facts": text.encode() * 1000}
        assert (problems := list(store.verify())) == [], problems
    return figures


def own_agents(path: Path, processes: int, agents: int, writes: int) -> dict[str, Any]:
    """Each writes to agents of its own, in turn."""
    names = [[f"agent {i} of process {p}" for i in range(agents)] for p in range(processes)]
    figures = together(path, [(own, writes) for own in names])
    with open_store(path) as store:
        assert len(store.agents()) == processes * agents
        for p, own in enumerate(names):
            for name in own:
                assert [r.entry.content for r in store.journal(name)] == [f"p{p} {n}" for n in range(writes)]
        assert (problems := list(store.verify())) == [], problems
    return figures | {"agents": processes * agents}


def crowd(
    folder: Path, *, processes: int = 8, writes: int = 200, agents: int = 50, writes_to_each: int = 4
) -> dict[str, Any]:
    """``processes`` × ``writes`` to one agent; then ``processes`` × ``agents``, with ``writes_to_each``."""
    return {
        "one_agent": one_agent(folder / "one.db", processes, writes),
        "own_agents": own_agents(folder / "own.db", processes, agents, writes_to_each),
    }
