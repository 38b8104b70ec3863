"""The cost of a turn, and of the questions that a graph asks, as one agent gets more and more versions."""

import random
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from store_fire import spread
from store_fire_turn import PRINT, entries, state, unsynced

from deltamem_agents.store import open_store
from deltamem_agents.store.sql import SQLStore

AGENT = "agent 0"


def timed(call: Callable[[int], object], count: int) -> dict[str, float]:
    took = []
    for i in range(count):
        begin = time.perf_counter()
        call(i)
        took.append(time.perf_counter() - begin)
    return spread(took)


def grow(store: SQLStore, draw: random.Random, ids: list[str], wanted: int) -> None:
    """Commit until there are so many versions."""
    while len(ids) < wanted:
        parent = ids[-1] if ids else None
        made = store.commit(AGENT, parent=parent, parts=state(draw), entries=entries(draw, len(ids)), fingerprint=PRINT)
        ids.append(made.version_id)


def asked(store: SQLStore, draw: random.Random, ids: list[str], count: int) -> dict[str, Any]:
    """Turns, and each question, ``count`` times."""

    def one_turn(_: int) -> None:
        snapshot = store.load(AGENT)
        assert snapshot.version is not None and snapshot.version.version_id == ids[-1]
        new, written = state(draw), entries(draw, len(ids))
        ids.append(store.commit(AGENT, parent=ids[-1], parts=new, entries=written, fingerprint=PRINT).version_id)

    def some_ids(number: int) -> list[str]:
        return [f"message-{number}-{role}" for role in ("human", "ai", "tool")]

    at = [draw.randrange(len(ids)) for _ in range(count)]
    last = ids[-1]
    return {
        "turn": timed(one_turn, count),
        "load_an_old_version": timed(lambda i: store.load(AGENT, ids[at[i]]), count),
        "is_ancestor": timed(lambda i: store.is_ancestor(AGENT, ids[at[i]], last), count),
        "written": timed(lambda i: store.written(AGENT, last, some_ids(at[i])), count),
        "wrote_between_near": timed(lambda i: store.wrote_between(AGENT, "nobody", ids[-20], ids[-1]), count),
        "wrote_between_anywhere": timed(lambda i: store.wrote_between(AGENT, "nobody", ids[at[i]], last), count // 10),
        "last_ten_of_the_journal": timed(lambda i: store.journal(AGENT, limit=10), count),
    }


def sizes(path: Path, versions: int) -> dict[str, float]:
    return {"file_mb": round(path.stat().st_size / 1e6, 1), "bytes_per_version": round(path.stat().st_size / versions)}


def growth(folder: Path, *, most: int = 100_000, count: int = 300, seed: int = 0) -> dict[str, Any]:
    """From a hundred versions to ``most``, ten times as many each time; then prune."""
    draw, ids, path = random.Random(seed), list[str](), folder / "memory.db"
    figures: dict[str, Any] = {}
    wanted = 100
    while wanted <= most:
        with unsynced(path) as store:
            grow(store, draw, ids, wanted)
        with open_store(path) as store:
            time.sleep(min(10, wanted / 1000))  # what building left to be written
            figures[f"{wanted}_versions"] = asked(store, draw, ids, count)
        figures[f"{wanted}_versions"] |= sizes(path, len(ids))
        wanted *= 10
    with open_store(path) as store:
        steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("prune", lambda: store.prune(AGENT, keep_every=50)),
            ("write_the_file_anew", store.scrub),
            ("collect_nothing", lambda: store.collect(AGENT, older_than=timedelta(0))),
            ("whole_history", lambda: store.history(AGENT)),
        )
        for name, step in steps:
            begin = time.perf_counter()
            step()
            figures[f"{name}_s"] = round(time.perf_counter() - begin, 2)
    return figures | {f"pruned_{name}": value for name, value in sizes(path, len(ids)).items()}
