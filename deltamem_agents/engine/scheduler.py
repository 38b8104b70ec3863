"""Scheduler: the requests of many threads, answered and written together by one thread that lives while there are any.

Replies are batched continuously: between two tokens, new ones join and finished ones leave. Between two tokens, too,
what many agents have to remember is written in one forward call.
"""

import atexit
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor

from ..errors import EngineBusy, EngineOutOfMemory, StateError
from ..memory import MemoryState
from .attempt import attempt, out_of_memory
from .batch import Batch
from .pending import SHORTEST, WRITTEN_AT_ONCE, Reply, Writing, Written, row_of, write_shape
from .reply import Generation, Request
from .text import Message

if TYPE_CHECKING:
    from .engine import Engine, Routes

QUEUE = 1024  # most requests that wait
PORTION = 256  # so many of a longer list wait at once
WRITTEN_ON_CPU = 512  # most tokens that are written between two tokens of the replies
EXIT_SECONDS = 30.0  # how long the end of the process waits for a forward call to end

log = logging.getLogger(__name__)


class Scheduler:
    """Answers and writes for the threads that ask, all of them together.

    When the device runs out of memory, half as many replies are under way at once from then on, and those that were go
    on later from where they are. A prompt or a write fails alone; an error in a step ends all replies of the batch.

    Attributes:
        queue_limit: most requests that wait to join the batch.
        batch: the replies under way; ``batch.limit`` is how many there can be.
    """

    def __init__(self, engine: "Engine", queue_limit: int = QUEUE) -> None:
        self.queue_limit = queue_limit
        self.batch = Batch(engine)
        self._engine = engine
        self._row_by_row = engine.device.type == "cpu"  # the engine writes so there
        self._most_written = WRITTEN_AT_ONCE // SHORTEST
        self._lock = Lock()  # of what follows
        self._waiting: deque[Reply] = deque()  # in the order in which they came
        self._writings: deque[Writing] = deque()
        self._open: set[Reply | Writing] = set()  # all that somebody waits for
        self._worker: Thread | None = None
        self._working = Lock()  # held by who works
        self._closing = False
        self._running: list[Reply] = []  # the worker's own; those in the batch
        _schedulers.add(self)

    def submit(self, request: Request, state: MemoryState | None = None, cancel: Event | None = None) -> Reply:
        """Ask for one answer.

        Args:
            state: the memory to read, one row; None: without memory.
            cancel: once set, the answer ends where it is.

        Raises:
            ContextOverflow, FingerprintMismatch, StateError: as for :meth:`Engine.generate`.
            EngineBusy: too many requests wait already.
        """
        return self.submit_all([request], [state], cancel)[0]

    def submit_all(
        self, requests: Sequence[Request], states: Sequence[MemoryState | None], cancel: Event | None = None
    ) -> list[Reply]:
        """:meth:`submit` for each of ``requests``, with its own of ``states``; when it raises, for none of them."""
        replies = [self._reply(*pair, cancel) for pair in zip(requests, states, strict=True)]
        self._queue(replies)
        return replies

    def generate(
        self, requests: Sequence[Request], states: Sequence[MemoryState | None], cancel: Event | None = None
    ) -> list[Generation]:
        """All answers. Raises as :meth:`submit`, and what the first request that failed has raised.

        While there is no worker, the thread that asks is it: on a CPU, products in a second thread have half the speed.
        """
        replies = [self._reply(*pair, cancel) for pair in zip(requests, states, strict=True)]
        size = max(1, min(PORTION, self.queue_limit))
        try:
            for start in range(0, len(replies), size):
                portion = replies[start : start + size]
                if self._queue(portion, here=True):
                    self._work(portion)
                for reply in portion:
                    reply.result()
        except BaseException:
            for reply in replies:
                reply.cancel()
            raise
        return [reply.result() for reply in replies]

    def write(self, state: MemoryState, messages: Sequence[Message], routes: "Routes | None" = None) -> MemoryState:
        """:meth:`Engine.write`, together with the writes of other threads."""
        return self.write_traced(state, messages, routes, trace=False)[0]

    def write_traced(
        self, state: MemoryState, messages: Sequence[Message], routes: "Routes | None" = None, trace: bool = True
    ) -> tuple[MemoryState, list[Written]]:
        """:meth:`write`, and what each message did; without ``trace``, the pieces of each alone."""
        if state.batch_size != 1:
            raise StateError(f"{state.batch_size} rows of state for one list of messages: give one, or use write_batch")
        with self._engine.reading(state):
            pass  # a state that does not belong here must not come among the others
        writing = Writing(state, self._engine._pieces(messages, routes, state.sub_states), trace)
        if not writing.todo:
            return state, writing.messages
        with self._lock:
            self._start()
            self._writings.append(writing)
            self._open.add(writing)
        return writing.result(), writing.messages

    # What callers' threads do

    def _reply(self, request: Request, state: MemoryState | None, cancel: Event | None) -> Reply:
        if state is not None and state.batch_size != 1:
            raise StateError(f"{state.batch_size} rows of state for 1 conversation: give one for each")
        with self._engine.reading(state):
            pass
        return Reply(self._engine.row(request), state, cancel)

    def _queue(self, replies: Sequence[Reply], here: bool = False) -> bool:
        """Let replies wait. True: the calling thread is to :meth:`_work` for them, which it may be if ``here``."""
        if not replies:
            return False
        with self._lock:
            if len(self._waiting) + len(replies) > self.queue_limit:
                raise EngineBusy(
                    f"{len(self._waiting)} requests wait for the model, the queue holds {self.queue_limit}: ask again "
                    "later, send fewer at once, or raise engine.scheduler.queue_limit"
                )
            here = here and (self._worker is None or not self._worker.is_alive())
            if here:
                self._worker = current_thread()
            else:
                self._start()
            self._waiting.extend(replies)
            self._open.update(replies)
        return here

    def _start(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = Thread(target=self._work, name="deltamem-engine", daemon=True)
            self._worker.start()

    # What the worker does

    def _work(self, until: Sequence[Reply] | None = None) -> None:
        """Do what there is to do; in a caller's thread, ``until`` its own replies are done."""
        device = self._engine.device
        try:
            with self._working, torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                while self._busy(until):
                    self._round()
        except BaseException as error:  # none of a request's own
            log.exception("the scheduler failed: all requests fail, later ones begin anew")
            self._forget(error)

    def _busy(self, until: Sequence[Reply] | None) -> bool:
        """Whether there is something to do; if not, the worker is gone, and a thread goes on for what others ask."""
        with self._lock:
            left = bool(self._open) and not self._closing
            if left and (until is None or any(reply in self._open for reply in until)):
                return True
            self._worker = None
            if left:
                self._start()
        if self._closing:
            self._forget()
        return False

    def _forget(self, error: BaseException | None = None) -> None:
        """Begin anew; all requests fail with ``error``, or are left alone without one."""
        with self._lock:
            gone, self._open, self._worker = self._open, set(), None
            self._waiting.clear()
            self._writings.clear()
            self._running = []
            self.batch = Batch(self._engine, self.batch.limit)
        for request in gone if error is not None else ():
            request.end(error)

    def _round(self) -> None:
        self._release()
        if joining := self._next_replies():
            self._join(joining)
        if group := self._next_writings():
            self._write(group)
        if self._running:
            self._step()

    def _release(self) -> None:
        """Replies that nobody wants any more leave."""
        for reply in self._running:
            if reply.given_up:
                self.batch.leave(reply.row)
                reply.row.give_up()
        self._hear()
        with self._lock:
            if gone := {reply for reply in self._waiting if reply.given_up}:
                self._waiting = deque(reply for reply in self._waiting if reply not in gone)
        for reply in gone:
            reply.row.give_up()
            self._end(reply)

    def _next_replies(self) -> list[Reply]:
        """Those that join now."""
        with self._lock:
            first = list(islice(self._waiting, max(self.batch.limit, 1)))
        if not first:
            return []
        count = self.batch.room([reply.row for reply in first]) or (0 if self._running else 1)
        with self._lock:
            return [self._waiting.popleft() for _ in first[:count]]

    def _join(self, joining: list[Reply]) -> None:
        _, error = attempt(self.batch.join, [reply.row for reply in joining], [reply.state for reply in joining])
        if error is None:
            self._running += joining
        elif out_of_memory(error):
            self._shrink(joining)
        elif len(joining) == 1:
            self._end(joining[0], error)
        else:
            for i, reply in enumerate(joining):
                if self._running and not self.batch.room([reply.row]):
                    self._put_back(joining[i:])
                    break
                self._join([reply])
        self._hear()

    def _step(self) -> None:
        _, error = attempt(self.batch.step)
        if error is not None:
            running, self._running = self._running, []
            for reply in running:
                self.batch.leave(reply.row)
            if out_of_memory(error):
                self._shrink(running)
            else:
                self.batch.trim()
                for reply in running:
                    self._end(reply, error)
        self._hear()

    def _hear(self) -> None:
        """Pass on what the batch has said."""
        for reply in self._running:
            reply.hear()
            if reply.row.finish_reason is not None:
                self._end(reply)
        self._running = [reply for reply in self._running if reply.row.finish_reason is None]

    def _shrink(self, left: list[Reply]) -> None:
        """Memory ran out: those that are ``left`` without their tokens come back when there are fewer."""
        self.batch.trim()
        total = len(self._running) + len(left)
        if total == 1 and left[0].retried:
            self._end(left[0], self._too_large(left[0]))
            self.batch.limit = max(self.batch.limit, left[0].widest or 1)
            return
        if total == 1:
            left[0].retried = True
        else:
            for reply in left:
                reply.widest = reply.widest or self.batch.limit
            self.batch.limit = max(1, min(self.batch.limit, total // 2))
        log.warning("out of memory with %d replies at once: at most %d from now on", total, self.batch.limit)
        self._put_back(left)

    def _too_large(self, reply: Reply) -> EngineOutOfMemory:
        return EngineOutOfMemory(
            f"a reply with {len(reply.row.ids)} tokens so far, {reply.row.longest} at the most, does not fit into the "
            f"memory of {self._engine.device}, not even alone: send fewer messages (older ones can be written to "
            "memory), ask for fewer tokens, or load the backbone in a smaller dtype"
        )

    def _put_back(self, replies: list[Reply]) -> None:
        """They are the next to join."""
        with self._lock:
            self._waiting.extendleft(reversed(replies))

    def _end(self, request: Reply | Writing, error: BaseException | None = None) -> None:
        with self._lock:
            self._open.discard(request)
        request.end(error)

    def _next_writings(self) -> list[Writing]:
        """Those whose next pieces are written now: the first one's, and others that can be written with it."""
        group: list[Writing] = []
        with self._lock:
            for writing in self._writings:
                if len(group) == self._most_written or not self._fits(writing, group):
                    continue
                group.append(writing)
            chosen = set(group)
            self._writings = deque(writing for writing in self._writings if writing not in chosen)
        return group

    def _fits(self, writing: Writing, group: list[Writing]) -> bool:
        if not group:
            return True
        if self._row_by_row:
            return writing.length + sum(other.length for other in group) <= WRITTEN_ON_CPU
        rows, width = write_shape(group[0].length)
        return len(group) < rows and write_shape(writing.length) == (rows, width)

    def _write(self, group: list[Writing]) -> None:
        """Write the next piece of each."""
        done, error = attempt(self._write_pieces, group)
        if done is not None:
            state, gates = done
            for i, writing in enumerate(group):
                writing.go_on(row_of(state, i), {name: own[i : i + 1] for name, own in gates.items()})
                if not writing.todo:
                    self._end(writing)
            with self._lock:
                self._writings.extend(writing for writing in group if writing.todo)
        elif error is not None and out_of_memory(error):
            self._write_fewer(group)
        elif len(group) == 1:
            self._end(group[0], error)
        else:
            for writing in group:
                self._write([writing])

    def _write_fewer(self, group: list[Writing]) -> None:
        """Memory ran out: they are the next to be written, half as many at once."""
        self.batch.trim()
        if len(group) == 1 and group[0].retried:
            self._end(group[0], self._too_long(group[0]))
            return
        group[0].retried = len(group) == 1
        self._most_written = max(1, min(self._most_written, len(group) // 2))
        log.warning("out of memory while %d agents were written to: fewer at once from now on", len(group))
        with self._lock:
            self._writings.extendleft(reversed(group))

    def _write_pieces(self, group: list[Writing]) -> tuple[MemoryState, dict[str, Tensor]]:
        """On other devices than a CPU, in a call whose shape follows from the length of the pieces alone.

        Products of matrices are the same bit for bit whatever is in their other rows, but not whatever their shape is.
        """
        states = [writing.state.to(self._engine.device) for writing in group]
        pieces = [writing.piece for writing in group]
        width = None
        if not self._row_by_row:
            rows, width = write_shape(group[0].length)
            states += states[:1] * (rows - len(group))
            pieces += [(pieces[0][0], ())] * (rows - len(group))
        trace = any(writing.trace for writing in group)
        return self._engine._write_pieces(MemoryState.stack(states), pieces, trace, width)

    def _too_long(self, writing: Writing) -> EngineOutOfMemory:
        return EngineOutOfMemory(
            f"writing {writing.length} tokens does not fit into the memory of {self._engine.device}, not even "
            "alone: write shorter messages, or load the backbone in a smaller dtype"
        )


_schedulers: "WeakSet[Scheduler]" = WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads that are in a forward call when the interpreter goes would take the process down with them.

    Each scheduler stops after its running call; what was under way never ends.
    """
    for scheduler in list(_schedulers):
        scheduler._closing = True
        scheduler._working.acquire(timeout=EXIT_SECONDS)  # and nobody works any more
