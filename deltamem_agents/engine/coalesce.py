"""Coalescer: calls that wait for the model at the same time become one batch.

There is no thread of its own: whoever gets the turn works for all that wait, and those find their answers done.
"""

from dataclasses import dataclass
from threading import Condition, Event, Lock
from typing import TYPE_CHECKING

from ..memory import MemoryState
from .generate import Decoding
from .reply import Generation, Request, Row

if TYPE_CHECKING:
    from .engine import Engine

ROWS = 64  # most answers of one batch
PATIENCE = 0.05  # seconds to wait for callers that have announced themselves


@dataclass(eq=False)
class _Call:
    row: Row
    state: MemoryState | None
    cancel: Event | None
    done: bool = False
    error: BaseException | None = None


class Coalescer:
    """Merges the generations of many threads."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._turn = Lock()
        self._arrival = Condition()
        self._waiting: list[_Call] = []

    def generate(
        self, request: Request, state: MemoryState | None, cancel: Event | None = None, expected: int = 1
    ) -> Generation:
        """One answer, computed together with those that other threads wait for.

        Args:
            state: one row, or None to answer without memory.
            cancel: once set, the answer ends where it is.
            expected: how many callers come at about the same time; the first waits for the others a moment.

        Raises:
            ContextOverflow, FingerprintMismatch, StateError: as for :meth:`Engine.generate`.
        """
        call = _Call(self._engine.row(request), state, cancel)
        with self._engine.reading(state):
            pass  # a state that does not belong here must not spoil the batch
        with self._arrival:
            self._waiting.append(call)
            self._arrival.notify_all()
        with self._turn:
            if not call.done:
                self._run(self._take(call, expected))
        if call.error is not None:
            raise call.error
        return call.row.result()

    def _take(self, call: _Call, expected: int) -> list[_Call]:
        """``call`` and the calls that can be answered together with it."""
        with self._arrival:
            self._arrival.wait_for(lambda: len(self._waiting) >= min(expected, ROWS), timeout=PATIENCE)
            alike = [other for other in self._waiting if (other.state is None) == (call.state is None)]
            chosen = [call, *(other for other in alike if other is not call)][:ROWS]
            self._waiting = [other for other in self._waiting if other not in chosen]
        return chosen

    def _run(self, calls: list[_Call]) -> None:
        try:
            states = [call.state for call in calls if call.state is not None]
            decoding = Decoding(
                self._engine, [call.row for call in calls], MemoryState.stack(states) if states else None
            )
            while True:
                for call in calls:
                    if call.cancel is not None and call.cancel.is_set():
                        call.row.give_up()
                if decoding.finished:
                    break
                decoding.step()
        except BaseException as error:
            for call in calls:
                call.error = error
            raise
        finally:
            for call in calls:
                call.done = True
