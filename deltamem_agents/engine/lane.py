"""Lane: the fixed tensors of a batch of replies, and the step that brings each of them one token further."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..errors import BackboneError
from ..memory import MemoryState
from .compiled import compiled_regions
from .ring import RingLayer, attention_configs, ring_attending

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)
DECODE = ("eager", "graph", "compile")
KeysAndValues = list[tuple[Tensor, Tensor]]  # (heads, n, d) of each layer


@dataclass
class Seat:
    """What one reply needs to go on: its cache, the token that comes next, and its memory (one row; None: empty)."""

    length: int  # tokens in the cache
    cache: KeysAndValues
    token: int
    state: MemoryState | None


class Lane:
    """Room for ``rows`` replies of up to ``columns`` tokens, at addresses that do not change.

    On CUDA the second step is captured as a graph, which the later ones replay. ``reads``: whether the memory is read;
    without, it is the frozen backbone alone.
    """

    def __init__(self, engine: "Engine", rows: int, columns: int, reads: bool, windows: dict[str, int | None]) -> None:
        self._engine, self._windows = engine, windows
        self.rows, self.columns, self.reads = rows, columns, reads
        device = engine.device
        self.ids = torch.full((rows, 1), engine.pad, device=device)
        self.tokens = torch.full((rows,), engine.pad, device=device)  # the likeliest ones after the last step
        self.logits: Tensor | None = None  # (rows, V) after the last step
        self._positions = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self._slots = torch.full((rows, columns), -1, device=device)  # position of the token in a column; -1: none
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._at = 0  # the same, known here
        self._lengths = [0] * rows
        self._states = engine.new_state(rows) if reads else None
        self._everywhere = torch.ones((rows, 1), dtype=torch.bool, device=device)
        self._configs = attention_configs(engine.model)
        self._layers: list[RingLayer] = []
        self._cache: Cache | None = None
        self._steps = 0
        self._capturing = False
        self._graph: Any = None

    @property
    def graphed(self) -> bool:
        return self._graph is not None

    @torch.inference_mode()
    def put(self, row: int, seat: Seat) -> None:
        """Let a reply go on in ``row``."""
        where = self._columns_before(seat.length)
        if self._cache is None:
            self._layers = [RingLayer(self.rows, self.columns, self._column) for _ in seat.cache]
            for layer, (keys, values) in zip(self._layers, seat.cache, strict=True):
                layer.lazy_initialization(keys, values)
            self._cache = Cache(layers=list(self._layers))
        for layer, (keys, values) in zip(self._layers, seat.cache, strict=True):
            own = where[-keys.shape[1] :]
            layer.keys[row].index_copy_(1, own, keys)
            layer.values[row].index_copy_(1, own, values)
        self._slots[row] = -1
        self._slots[row, where] = torch.arange(seat.length, device=where.device)
        self._positions[row] = self._lengths[row] = seat.length
        self.ids[row] = seat.token
        if self._states is not None:
            for name, tensor in self._states.tensors.items():
                tensor[row] = 0 if seat.state is None else seat.state.tensors[name][0].to(tensor.device)

    @torch.inference_mode()
    def take(self, row: int, token: int, state: MemoryState | None) -> Seat:
        """What the reply in ``row`` needs to go on in another lane."""
        where = self._columns_before(self._lengths[row])
        cache = [(x.keys[row].index_select(1, where), x.values[row].index_select(1, where)) for x in self._layers]
        return Seat(self._lengths[row], cache, token, state)

    def step(self) -> None:
        """Feed ``ids``; then ``logits`` and ``tokens`` are those after them, and ``ids`` the likeliest tokens."""
        with self._engine.lock, torch.inference_mode():
            if self._graph is None and self._steps and self._engine.decode != "eager":
                self._capture()
            if self._graph is None:
                self._advance()
            else:
                self._graph.replay()
        self._steps += 1
        self._at = (self._at + 1) % self.columns
        self._lengths = [length + 1 for length in self._lengths]

    def _columns_before(self, length: int) -> Tensor:
        """The columns of the last ``length`` tokens, in their order."""
        return torch.arange(self._at - length, self._at, device=self._slots.device) % self.columns

    def _advance(self) -> None:
        self._slots.scatter_(1, self._column.expand(self.rows, 1), self._positions)
        logits = self._forward()
        self.logits = logits
        self.tokens.copy_(logits.argmax(-1))
        self.ids.copy_(self.tokens[:, None])
        self._positions.add_(1)
        self._column.add_(1).remainder_(self.columns)

    def _forward(self) -> Tensor:
        engine = self._engine
        masks = {kind: self._mask(window) for kind, window in self._windows.items()}
        inputs = {
            "input_ids": self.ids,
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "position_ids": self._positions,
            "past_key_values": self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        with engine.reading(self._states, self._everywhere, self._capturing), ring_attending(self._configs):
            logits: Tensor = engine.model(**engine.accepted(inputs)).logits
        return logits[:, -1]

    def _mask(self, window: int | None) -> Tensor:
        """(rows, 1, 1, columns), added to the scores: what each row's token sees."""
        seen = self._slots >= 0
        if window is not None:
            seen = seen & (self._slots > self._positions - window)
        dtype = self._engine.model.dtype
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
        return torch.where(seen, torch.zeros_like(hidden), hidden)[:, None, None]

    def _capture(self) -> None:
        engine = self._engine
        graph = torch.cuda.CUDAGraph()
        began = time.perf_counter()
        self._capturing = True  # corrections and projections in fewer kernels than when each is called from Python
        with compiled_regions(engine.model, engine.decode == "compile"):
            self._warm()
            with torch.cuda.graph(graph, pool=engine.graph_pool, capture_error_mode="thread_local"):
                self._advance()
        self._capturing, self._graph = False, graph
        took = time.perf_counter() - began
        log.info("decode of %d x %d tokens: %s prepared in %.1f s", self.rows, self.columns, engine.decode, took)

    def _warm(self) -> None:
        """A step that compiles and loads what the graph will hold, and is taken back."""
        kept = [x.clone() for x in (self.ids, self.tokens, self._positions, self._slots, self._column)]
        self._advance()
        for x, before in zip((self.ids, self.tokens, self._positions, self._slots, self._column), kept, strict=True):
            x.copy_(before)


def decode_mode(asked: str | None, device: torch.device) -> str:
    """How tokens are computed on ``device``. Raises BackboneError for a way that there is not."""
    if asked not in (None, *DECODE):
        raise BackboneError(f"decode={asked!r} is not known: use one of {', '.join(DECODE)}, or None for the device's")
    return (asked or "graph") if device.type == "cuda" else "eager"
