"""PostgreSQL stopped and started while processes write: nothing is lost or written twice, and errors are typed.

Starts a server of its own (Debian package postgresql) with the cluster of the tests.
"""

import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from store_fire_kill import PROCESSES

from deltamem_agents.errors import StoreUnavailable
from deltamem_agents.store import Entry, Write, open_store

PRINT = "adapter/backbone"


def writer(url: str, name: str, patience: float, stop: Any, results: Any) -> None:
    """Append to one agent until told to stop: what was acknowledged, what failed, the longest write."""
    from deltamem_agents.store import reading

    reading.RETRY_SECONDS = patience
    done: list[str] = []
    failed: list[str] = []
    longest, i = 0.0, 0
    with open_store(url) as store:
        while not stop.is_set():
            text, begin = f"{name} {i}", time.perf_counter()
            new = Write([Entry("human", text, ("facts",))], {"facts": text.encode() * 100})
            try:
                store.append("a", lambda head, new=new: new, fingerprint=PRINT)
                done.append(text)
            except StoreUnavailable:
                failed.append(text)
            longest, i = max(longest, time.perf_counter() - begin), i + 1
    results.put((done, failed, longest))


def outage(cluster: Any, processes: int, times: int, away: float, patience: float) -> dict[str, Any]:
    """Stop the server ``times`` times, for ``away`` seconds, while ``processes`` write."""
    url = cluster.url()
    open_store(url).close()
    stop, results = PROCESSES.Event(), PROCESSES.Queue()
    writers = [PROCESSES.Process(target=writer, args=(url, f"p{i}", patience, stop, results)) for i in range(processes)]
    for process in writers:
        process.start()
    for i in range(times):
        time.sleep(1.5)
        cluster.stop("immediate" if i % 2 else "fast")
        time.sleep(away)
        cluster.start()
    time.sleep(1.5)
    stop.set()
    found = [results.get(timeout=120) for _ in writers]
    for process in writers:
        process.join()
    done = [text for one in found for text in one[0]]
    failed = [text for one in found for text in one[1]]
    with closing(open_store(url)) as store:
        there = Counter(str(record.entry.content) for record in store.journal("a"))
        assert set(there.values()) == {1}, "something was written twice"
        assert set(done) <= set(there), "an acknowledged write is missing"
        assert set(there) <= {*done, *failed}
        assert len(store.history("a")) == len(there) == store.agent("a").versions
        assert (problems := list(store.verify())) == [], problems
    assert bool(failed) == (away > patience), f"{len(failed)} writes failed"
    return {
        "stops": times,
        "away_s": away,
        "retried_for_s": patience,
        "acknowledged": len(done),
        "failed_with_StoreUnavailable": len(failed),
        "lost": 0,
        "written_twice": 0,
        "longest_write_s": round(max(one[2] for one in found), 1),
    }


def postgres(folder: Path, *, processes: int = 4, times: int = 10) -> dict[str, Any]:
    """Restarts within the time that writes are retried; and outages beyond it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "store"))
    from postgres_cluster import Cluster

    cluster = Cluster()
    cluster.start()
    try:
        version = cluster.execute("SHOW server_version")[0][0]
        restarts = outage(cluster, processes, times, 1.0, 30.0)
        outages = outage(cluster, processes, max(1, times // 3), 5.0, 1.0)
    finally:
        cluster.remove()
    return {"server": version, "processes": processes, "restarts": restarts, "outages": outages}
