"""The work of a turn, and of the questions about versions, does not grow with their number."""

import statistics
from collections.abc import Callable

import fire  # noqa: F401
import pytest
from sqlalchemy import event

from deltamem_agents.store import open_store
from deltamem_agents.store.suite import PRINT, note, put


class Work:
    """Counts the steps of SQLite's machine, and the statements, of a store's connections."""

    def __init__(self, store) -> None:
        self.steps = self.statements = 0
        event.listen(store.backend.engine, "connect", self._watch)
        event.listen(store.backend.engine, "before_cursor_execute", self._count)
        store.backend.engine.dispose()

    def _watch(self, raw, _) -> None:
        raw.set_progress_handler(self._tick, 10)
        raw.execute("PRAGMA synchronous = OFF")

    def _tick(self) -> None:
        self.steps += 10

    def _count(self, *_) -> None:
        self.statements += 1

    def of(self, call: Callable[[], object]) -> int:
        """Steps of one call."""
        before = self.steps
        call()
        return self.steps - before


def grow(store, ids: list[str], wanted: int) -> None:
    while len(ids) < wanted:
        number = len(ids)
        entries = [note(f"some words {number}", message_id=f"m{number}", thread_id="t")]
        ids.append(put(store, "a", ids[-1] if ids else None, "", b"%d" % number, entries=entries).version_id)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "memory.db") as store:
        yield store


def test_the_work_stays_the_same(store):
    work, ids = Work(store), []

    def measured() -> dict[str, float]:
        middle = ids[len(ids) // 2]
        calls = {
            "turn": lambda: (store.load("a"), grow(store, ids, len(ids) + 1)),
            "load": lambda: store.load("a", middle),
            "is_ancestor": lambda: store.is_ancestor("a", middle, ids[-1]),
            "written": lambda: store.written("a", ids[-1], [f"m{len(ids) // 2}", "m1", "new"]),
            "wrote_between": lambda: store.wrote_between("a", "nobody", ids[-10], ids[-1]),
            "history": lambda: store.history("a", limit=5),
            "journal": lambda: store.journal("a", limit=5),
            "tombstones": lambda: store.tombstones("a", ["m1"]),
        }
        return {name: statistics.median(work.of(call) for _ in range(9)) for name, call in calls.items()}

    grow(store, ids, 40)
    few = measured()
    grow(store, ids, 1200)
    many = measured()
    for name in few:
        assert many[name] <= 1.25 * few[name] + 30, (name, few, many)


def test_a_turn_is_few_statements(store):
    work, ids = Work(store), []
    grow(store, ids, 3)
    before = work.statements
    snapshot = store.load("a")
    parts = {"facts": b"new", "task_progress": b"new too"}
    entries = [note(f"word {i}", message_id=f"new {i}") for i in range(4)]
    store.commit("a", parent=snapshot.version.version_id, parts=parts, entries=entries, fingerprint=PRINT)
    assert work.statements - before <= 11
