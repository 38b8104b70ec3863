"""What somebody waits for: replies on their way, and messages on their way into a memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

from torch import Tensor

from ..memory import MemoryState
from .reply import Chunk, Generation, Row

if TYPE_CHECKING:
    from .engine import Piece

SHORTEST = 64  # tokens to which short messages are padded
WRITTEN_AT_ONCE = 1024  # tokens, padding included, of a call that writes several messages


class Reply:
    """One answer on its way. :meth:`result` waits for it; iterating (once) gives it chunk by chunk as it comes."""

    def __init__(self, row: Row, state: MemoryState | None, cancel: Event | None) -> None:
        self.row, self.state = row, state
        self.widest: int | None = None  # rows that were allowed before memory ran out with this one among them
        self.retried = False  # memory has run out with this one alone
        self._cancel = cancel
        self._cancelled = False
        self._done = Event()
        self._chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self._last: Chunk | None = None
        self._error: BaseException | None = None

    def result(self, timeout: float | None = None) -> Generation:
        """The whole answer; of a reply that was cancelled, what there is of it.

        Raises:
            TimeoutError: it has not come within ``timeout`` seconds; it is cancelled then.
            EngineOutOfMemory: it does not fit into the device's memory.
        """
        try:
            if not self._done.wait(timeout):
                raise TimeoutError(_late(timeout))
        except BaseException:
            self.cancel()
            raise
        generation = self._whole().generation
        assert generation is not None
        return generation

    def __iter__(self) -> "Chunks":
        return Chunks(self)

    def cancel(self) -> None:
        """End the answer where it is, before its next token but one."""
        self._cancelled = True

    @property
    def given_up(self) -> bool:
        """Whether no more tokens are wanted."""
        asked = self._cancelled or (self._cancel is not None and self._cancel.is_set())
        return asked or self.row.finish_reason is not None

    def next_chunk(self, timeout: float | None = None) -> Chunk:
        """The next chunk, waiting for it. After the end, the last one again.

        Raises queue.Empty when there is none within ``timeout`` seconds.
        """
        chunk = self._chunks.get(timeout=timeout)
        if chunk is None:
            self._chunks.put(None)
            return self._whole()
        return chunk

    def hear(self) -> None:
        """Pass on what there is of the answer. Only the scheduler's thread calls this, and :meth:`end`."""
        if self.row.finish_reason is None:
            chunk = self.row.take()
            if chunk.text or chunk.reasoning or chunk.calls:
                self._chunks.put(chunk)

    def end(self, error: BaseException | None = None) -> None:
        """The answer is whole, or there will be none."""
        if error is None:
            self._last = replace(self.row.take(), generation=self.row.result())
        self._error = error
        self._done.set()
        self._chunks.put(None)

    def _whole(self) -> Chunk:
        if self._error is not None:
            raise self._error
        assert self._last is not None
        return self._last


class Chunks(Iterator[Chunk]):
    """The chunks of a reply, the last with its :class:`Generation`. Closing or dropping this cancels the reply."""

    def __init__(self, reply: Reply, timeout: float | None = None) -> None:
        """``timeout``: seconds from now until the last chunk has come; later, waiting raises TimeoutError."""
        self._reply = reply
        self._over = False
        self._timeout = timeout
        self._deadline = None if timeout is None else monotonic() + timeout

    def __next__(self) -> Chunk:
        if self._over:
            raise StopIteration
        try:
            chunk = self._next()
        except BaseException:
            self.close()
            raise
        self._over = chunk.generation is not None
        return chunk

    def _next(self) -> Chunk:
        if self._deadline is None:
            return self._reply.next_chunk()
        try:
            return self._reply.next_chunk(max(0.0, self._deadline - monotonic()))
        except Empty:
            raise TimeoutError(_late(self._timeout)) from None

    def close(self) -> None:
        """End the reply where it is."""
        self._over = True
        self._reply.cancel()

    def __del__(self) -> None:
        self.close()


@dataclass
class Written:
    """One message that is written: its pieces, the states around it, and for each piece module -> gates (1, H)."""

    pieces: "list[Piece]"
    before: MemoryState
    after: MemoryState
    gates: list[dict[str, Tensor]] = field(default_factory=list)


class Writing:
    """Messages on their way into one agent's memory."""

    def __init__(self, state: MemoryState, messages: "Sequence[list[Piece]]", trace: bool) -> None:
        self.state, self.trace = state, trace
        self.messages = [Written(pieces, state, state) for pieces in messages]
        self.retried = False  # memory has run out with this one alone
        self.todo = deque((message, piece) for message in self.messages for piece in message.pieces)
        self._done = Event()
        self._error: BaseException | None = None

    @property
    def piece(self) -> "Piece":
        """What is written next."""
        return self.todo[0][1]

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.piece[0])

    def go_on(self, state: MemoryState, gates: dict[str, Tensor]) -> None:
        """The next piece is written: take the state after it."""
        message, _ = self.todo.popleft()
        if self.trace:
            message.before, message.after = message.before if message.gates else self.state, state
            message.gates.append(gates)
        self.state = state

    def end(self, error: BaseException | None = None) -> None:
        self._error = error
        self._done.set()

    def result(self) -> MemoryState:
        """The state after all messages, waiting for it."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return replace(self.state, tensors={name: t.clone() for name, t in self.state.tensors.items()})


def _late(timeout: float | None) -> str:
    return f"no whole answer within {timeout} seconds: allow more, or ask for fewer tokens"


def row_of(states: MemoryState, row: int) -> MemoryState:
    """One row, as a view."""
    return replace(states, tensors={name: t[row : row + 1] for name, t in states.tensors.items()})


def write_shape(length: int) -> tuple[int, int]:
    """Rows and columns of the call in which a piece of ``length`` tokens is written; several rows are always padded."""
    width = 1 << max(length, SHORTEST - 1).bit_length()
    rows = WRITTEN_AT_ONCE // width
    return (rows, width) if rows > 1 else (1, length)
