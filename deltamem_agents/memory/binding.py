"""Bound: one use of a memory. It carries the states through the forward calls inside a ``with memory.bind(...)``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import StateError
from .layer import DeltaMemLayer
from .state import MemoryState

if TYPE_CHECKING:
    from .generation import RowEnds

SubStates = str | Sequence[str] | Mapping[str, Tensor] | None


def is_token_mask(mask: Any) -> bool:
    """Whether an attention mask says which tokens are padding: 2-D, or None for no padding."""
    return mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)


@dataclass
class Bound:
    """What the hooks see during one binding; ``state`` is the result.

    The state that was bound is never changed: each forward call reads ``current`` and puts new tensors there.
    """

    initial: MemoryState
    write: bool | Tensor
    segment_ids: Tensor | None
    sub_states: SubStates
    packed: bool
    token_mask: Tensor | None
    num_state_heads: int
    trace: bool = False
    accumulate: frozenset[str] = frozenset()  # attention modules whose projections start from their corrections
    current: dict[str, Tensor] = field(default_factory=dict)
    attention_mask: Tensor | None = None  # (B, past + T), of the running forward call
    caller: int | None = None  # which of the modules inside each other has said so, None while none has
    ends: "RowEnds | None" = None  # of the running or last generate()
    reads: dict[str, Tensor] = field(default_factory=dict)  # between an attention module's hooks
    deltas: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # likewise, in place of reads
    masks: dict[Any, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)  # of the running forward call
    traced: dict[str, Tensor] = field(default_factory=dict)  # (2, B, H): sum of the write gates, number of writes

    def __post_init__(self) -> None:
        self.current = dict(self.initial.tensors)
        if self.trace:
            self.traced = {name: state.new_zeros((2, *state.shape[:2])) for name, state in self.current.items()}

    @property
    def state(self) -> MemoryState:
        """The state after the forward calls made so far."""
        return MemoryState(dict(self.current), self.initial.sub_states, self.initial.fingerprint)

    @property
    def gates(self) -> dict[str, Tensor]:
        """Attention module -> (B, H) float32: how strongly each state head was written in the calls made so far.

        The mean of the write gate β (in (0, 1), averaged over the rank) over the tokens that wrote into the head, or
        over the segments of mean writes; 0 where none did. Cut from autograd. Empty unless bound with ``trace=True``.
        """
        return {name: total / count.clamp(min=1) for name, (total, count) in self.traced.items()}

    def begin_call(self, module: int, mask: Any) -> None:
        """A call of a module, by its depth in the model, has this attention mask: the outermost one's is believed."""
        if self.caller is None:
            self.masks.clear()
            if is_token_mask(mask):
                self.attention_mask, self.caller = mask, module

    def end_call(self, module: int) -> None:
        if self.caller == module:
            self.attention_mask, self.caller = None, None
            self.masks.clear()

    def run_layer(self, name: str, layer: DeltaMemLayer, x: Tensor, recorded: dict[str, Tensor] | None) -> None:
        """Read and write for one attention module; ``recorded`` keeps the state that it began with."""
        state = self.current[name]
        if state.shape[0] != x.shape[0]:
            raise StateError(
                f"the state has {state.shape[0]} rows, the model was called with {x.shape[0]}: use state.repeat(n) or "
                "memory.new_state(batch_size)"
            )
        if recorded is not None:
            recorded[name] = state
        key = (*x.shape[:2], x.device.type, x.device.index)
        if key not in self.masks:  # the same in all layers
            self.masks[key] = (self._tokens(x), self._writes(x))
        tokens, writes = self.masks[key]
        if name in self.accumulate:
            self.deltas[name] = layer.read_corrections(x, state.to(x.device), tokens)
            return
        segments = None if self.segment_ids is None else self._fit("segment_ids", self.segment_ids, x)
        note = partial(self._note, name) if self.trace else None
        reads, final = layer.scan(x, state.to(x.device), tokens, writes, segments, self.packed, note)
        self.reads = {name: reads}  # of one layer at a time: they add up
        self.current[name] = final

    def replay(self) -> "Bound":
        """The same binding in the same call, untraced: for layers that are computed again, from states set later."""
        again = Bound(
            self.initial,
            self.write,
            self.segment_ids,
            self.sub_states,
            self.packed,
            self.token_mask,
            self.num_state_heads,
        )
        again.attention_mask, again.caller = self.attention_mask, self.caller
        return again

    def _note(self, name: str, gates: Tensor, wrote: Tensor) -> None:
        """Add up ``gates`` (B, N, H, r) where ``wrote`` (B, N, H)."""
        mean = gates.detach().mean(-1)
        sums = torch.stack([torch.where(wrote, mean, 0.0).sum(1), wrote.to(mean.dtype).sum(1)])
        self.traced[name] = self.traced[name].to(sums.device) + sums

    @staticmethod
    def _fit(name: str, values: Tensor, x: Tensor) -> Tensor:
        """``values`` on the device of ``x``; StateError unless they are (B, T) like the call."""
        if tuple(values.shape) != tuple(x.shape[:2]):
            raise StateError(f"{name} has shape {tuple(values.shape)}, the call has (B, T) = {tuple(x.shape[:2])}")
        return values.to(x.device)

    def _tokens(self, x: Tensor) -> Tensor | None:
        """(B, T) bool, False on padding; None: there is none."""
        if self.token_mask is not None:
            return self._fit("token_mask", self.token_mask, x).bool()
        if self.caller is None:
            raise StateError(
                "this call says with no 2-D attention_mask (B, past + T) which tokens are padding, and memory must not "
                "read or write them: give bind(…, token_mask=…), (B, T) bool, True everywhere if there is no padding"
            )
        mask = self.attention_mask
        if mask is None:
            return None
        if mask.shape[0] != x.shape[0] or mask.shape[1] < x.shape[1]:
            shape = tuple(mask.shape)
            raise StateError(f"attention_mask has shape {shape}, the call has (B, T) = {tuple(x.shape[:2])}")
        return mask[:, -x.shape[1] :].to(x.device).bool()

    def _writes(self, x: Tensor) -> Tensor | None:
        """(B, T, H): which tokens write into which state heads; None when nothing writes."""
        if self.write is False:
            return None
        shape = (*x.shape[:2], self.num_state_heads)
        mask = torch.ones(shape, dtype=torch.bool, device=x.device)
        if isinstance(self.write, Tensor):
            who = self.write if self.write.ndim == 2 else self.write[:, None].expand(-1, x.shape[1])
            mask = mask & self._fit("write", who, x).bool()[..., None]
        layout = self.initial.sub_states
        if self.sub_states is None:
            return mask
        routed = torch.zeros(shape, dtype=torch.bool, device=x.device)
        for name, heads in layout.items():
            where = self.sub_states.get(name) if isinstance(self.sub_states, Mapping) else name in self.sub_states
            if where is None or where is False:
                continue
            where = True if where is True else self._fit(f"sub_states[{name!r}]", where, x).bool()
            for head in heads:  # a list as an index would be copied to the device, which no CUDA graph can capture
                routed[:, :, head] = where
        return mask & routed


class Context(local):
    """What is bound in this thread, and what a checkpointed layer must remember to be computed again."""

    def __init__(self) -> None:  # runs in each thread; torch.compile would guard against attributes that come later
        self.bound: Bound | None = None
        self.recorded: dict[str, Tensor] | None = None

    @contextmanager
    def using(self, bound: Bound | None, recorded: dict[str, Tensor] | None = None) -> Iterator[None]:
        before = self.bound, self.recorded
        self.bound, self.recorded = bound, recorded
        try:
            yield
        finally:
            self.bound, self.recorded = before
