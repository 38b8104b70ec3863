"""Batch: the replies under way in one engine. They join and leave between two steps, whatever the others do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..memory import MemoryState
from .generate import Decoding
from .lane import Lane, Seat
from .reply import Row
from .ring import rows_of, windows
from .sampling import choose_tokens

if TYPE_CHECKING:
    from .engine import Engine

ROWS = 64  # most replies of one batch
PROMPT_TOKENS = 131072  # most tokens of one forward call that reads prompts, padding included
CACHE_TOKENS = 1 << 20  # most tokens in the cache of a lane, over all rows
FEWEST_COLUMNS = 256
KEPT_LANES = 4  # shapes that are kept with their graphs


@dataclass
class Ahead:
    """A step that has been started, and whose tokens nobody has seen yet."""

    tokens: Tensor
    ready: Any  # event of CUDA
    seated: list[tuple[int, Row]]


class Batch:
    """Up to ``limit`` replies that go one token further at each step.

    They share a :class:`Lane`, which is changed for a larger one when they need it. On CUDA, a step of greedy replies
    is started before the tokens of the one before it have come: a row that has ended meanwhile takes nothing from it.
    A backbone whose cache is no ring answers one batch after the other (:class:`Decoding`).
    """

    def __init__(self, engine: "Engine", limit: int = ROWS) -> None:
        self.limit = limit
        self._engine = engine
        self._windows = windows(engine.model)
        self._lanes: list[Lane] = []  # the last one used is the last
        self._lane: Lane | None = None
        self._seats: dict[int, tuple[Row, MemoryState | None]] = {}  # by row of the lane
        self._ahead: Ahead | None = None
        self._decoding: Decoding | None = None

    @property
    def rows(self) -> list[Row]:
        """The replies under way."""
        if self._decoding is not None:
            return self._decoding.going
        return [row for row, _ in self._seats.values()]

    def room(self, waiting: Sequence[Row]) -> int:
        """How many of ``waiting``, in their order, can join now. One always can when nothing is under way."""
        under_way = self.rows
        if self._windows is None and under_way:
            return 0
        joining: list[Row] = []
        for row in waiting:
            prompts = [len(r.ids) for r in (*joining, row)]
            everyone = [*under_way, *joining, row]
            cached = _power(len(everyone)) * _power(max(r.longest for r in everyone))
            crowded = len(everyone) > self.limit or max(prompts) * len(prompts) > PROMPT_TOKENS or cached > CACHE_TOKENS
            if crowded and len(everyone) > 1:
                break
            joining.append(row)
        return len(joining)

    def join(self, rows: Sequence[Row], states: Sequence[MemoryState | None]) -> None:
        """Read the prompts (and what there is of the replies), and take one token for each row.

        If it raises, no row has joined and none has taken a token.
        """
        self._settle()
        if self._windows is None:
            decoding = Decoding(self._engine, rows, self._stacked(states))
            decoding.step()
            self._decoding = decoding if any(row.finish_reason is None for row in rows) else None
            return
        logits, caches = self._read(rows, states)
        self._make_room([*self.rows, *rows], any(s is not None for s in states))
        tokens = choose_tokens(rows, logits, logits.argmax(-1).tolist())
        assert self._lane is not None
        free = (i for i in range(self._lane.rows) if i not in self._seats)
        taken = list(zip(free, rows, states, caches, tokens, strict=False))
        for i, row, state, cache, token in taken:
            self._lane.put(i, Seat(len(row.ids), cache, token, state))
        for i, row, state, _, token in taken:
            row.push(token)
            if row.finish_reason is None:
                self._seats[i] = (row, state)

    def step(self) -> None:
        """One token for each row; the finished ones leave."""
        if self._decoding is not None:
            self._decoding.step()
            if self._decoding.finished:
                self._decoding = None
            return
        if not self._seats:
            return
        assert self._lane is not None
        self._shrink()
        going, self._ahead = self._ahead or self._start(), None
        if going.ready is not None and all(row.greedy for row in self.rows):
            self._ahead = self._start()
        self._finish(going)

    def leave(self, row: Row) -> None:
        """Go on without ``row``, which may join again later."""
        if self._decoding is not None:
            self._decoding.drop(row)
            self._decoding = None if self._decoding.finished else self._decoding
        self._seats = {i: seat for i, seat in self._seats.items() if seat[0] is not row}

    def trim(self) -> None:
        """Give back the memory of lanes that are not used."""
        self._lanes = [lane for lane in self._lanes if lane is self._lane and self._seats]
        if not self._lanes:
            self._lane, self._ahead = None, None
        if self._engine.device.type == "cuda":
            torch.cuda.empty_cache()

    def _read(
        self, rows: Sequence[Row], states: Sequence[MemoryState | None]
    ) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]]]:
        """Logits (B, V) after the last token of each row, and each row's keys and values."""
        engine = self._engine
        ids = [row.ids for row in rows]
        lengths = [len(own) for own in ids]
        width = max(lengths)
        padded = torch.tensor([[engine.pad] * (width - len(own)) + own for own in ids], device=engine.device)
        inputs: dict[str, Any] = {"input_ids": padded, "use_cache": True, "logits_to_keep": 1}
        mask = torch.arange(width, device=engine.device) >= width - torch.tensor(lengths, device=engine.device)[:, None]
        if min(lengths) < width:
            inputs["attention_mask"] = mask.long()
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        with engine.lock, torch.inference_mode(), engine.reading(self._stacked(states)):
            output = engine.model(**engine.accepted(inputs))
        return output.logits[:, -1], rows_of(output.past_key_values, lengths)

    def _stacked(self, states: Sequence[MemoryState | None]) -> MemoryState | None:
        """One state for all rows, empty for those that have none; None when none has one."""
        if all(state is None for state in states):
            return None
        empty = self._engine.new_state()
        return MemoryState.stack([empty if s is None else s.to(self._engine.device) for s in states])

    def _make_room(self, rows: Sequence[Row], reads: bool) -> None:
        """Have a lane for ``rows``, those that are seated among them."""
        reads = reads or any(state is not None for _, state in self._seats.values())
        columns = max(FEWEST_COLUMNS, _power(max(row.longest for row in rows)))
        lane = self._lane
        wanted = _power(len(rows))
        if lane is not None and self._seats:  # stay, if there is room; else in no smaller one
            if lane.rows >= wanted and lane.columns >= columns and lane.reads >= reads:
                return
            wanted, columns, reads = max(wanted, lane.rows), max(columns, lane.columns), lane.reads or reads
        elif lane is not None and (lane.rows, lane.columns, lane.reads) == (wanted, columns, reads):
            return
        self._move(self._find(wanted, columns, reads))

    def _find(self, rows: int, columns: int, reads: bool) -> Lane:
        for lane in self._lanes:
            if (lane.rows, lane.columns, lane.reads) == (rows, columns, reads) and lane is not self._lane:
                return lane
        assert self._windows is not None
        return Lane(self._engine, rows, columns, reads, self._windows)

    def _move(self, lane: Lane) -> None:
        """Let all rows go on in another lane."""
        for to, (i, (row, state)) in enumerate(self._seats.items()):
            assert self._lane is not None
            lane.put(to, self._lane.take(i, row.tokens[-1], state))
        self._seats = dict(enumerate(self._seats.values()))
        self._lanes = [*(other for other in self._lanes if other is not lane), lane][-KEPT_LANES:]
        self._lane = lane

    def _shrink(self) -> None:
        """On a CPU each row costs time, also an empty one: go on in a smaller lane."""
        assert self._lane is not None
        wanted = _power(len(self._seats))
        if self._engine.device.type == "cpu" and 2 * wanted <= self._lane.rows:
            self._move(self._find(wanted, self._lane.columns, self._lane.reads))

    def _start(self) -> Ahead:
        """Start a step of the lane."""
        assert self._lane is not None
        self._lane.step()
        seated = [(i, row) for i, (row, _) in self._seats.items()]
        if self._engine.device.type != "cuda":
            return Ahead(self._lane.tokens, None, seated)
        tokens = torch.empty(self._lane.rows, dtype=torch.long, pin_memory=True)
        tokens.copy_(self._lane.tokens, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return Ahead(tokens, event, seated)

    def _finish(self, step: Ahead) -> None:
        """Give each row its token of a step that was started."""
        if step.ready is not None:
            step.ready.synchronize()
        assert self._lane is not None and self._lane.logits is not None
        likeliest = step.tokens.tolist()
        seated = [(i, row) for i, row in step.seated if i in self._seats and self._seats[i][0] is row]
        tokens = [likeliest[i] for i, _ in seated]
        if not all(row.greedy for _, row in seated):
            logits = self._lane.logits[[i for i, _ in seated]]
            tokens = choose_tokens([row for _, row in seated], logits, tokens)
            with torch.inference_mode():
                self._lane.ids[[i for i, _ in seated], 0] = torch.tensor(tokens, device=self._engine.device)
        for (i, row), token in zip(seated, tokens, strict=True):
            row.push(token)
            if row.finish_reason is not None:
                del self._seats[i]

    def _settle(self) -> None:
        """Take the tokens of a step that was started."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._finish(ahead)


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
