"""Bound: one use of a memory. It carries the states through the forward calls inside a ``with memory.bind(...)``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import local

import torch
from torch import Tensor

from ..errors import StateError
from .layer import DeltaMemLayer
from .state import MemoryState

SubStates = str | Sequence[str] | Mapping[str, Tensor] | None


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
    current: dict[str, Tensor] = field(default_factory=dict)
    attention_mask: Tensor | None = None  # (B, past + T), from the running forward call
    reads: dict[str, Tensor] = field(default_factory=dict)  # between an attention module's hooks

    def __post_init__(self) -> None:
        self.current = dict(self.initial.tensors)

    @property
    def state(self) -> MemoryState:
        """The state after the forward calls made so far."""
        return MemoryState(dict(self.current), self.initial.sub_states, self.initial.fingerprint)

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
        tokens = self._tokens(x)
        segments = None if self.segment_ids is None else self._fit("segment_ids", self.segment_ids, x)
        reads, final = layer.scan(x, state.to(x.device), tokens, self._writes(x), segments, self.packed)
        self.reads[name] = reads
        self.current[name] = final

    def replay(self, recorded: dict[str, Tensor]) -> "Bound":
        """The same binding, beginning from recorded states: for a forward call that is computed again."""
        again = Bound(
            self.initial,
            self.write,
            self.segment_ids,
            self.sub_states,
            self.packed,
            self.token_mask,
            self.num_state_heads,
        )
        again.current, again.attention_mask = recorded, self.attention_mask
        return again

    @staticmethod
    def _fit(name: str, values: Tensor, x: Tensor) -> Tensor:
        """``values`` on the device of ``x``; StateError unless they are (B, T) like the call."""
        if tuple(values.shape) != tuple(x.shape[:2]):
            raise StateError(f"{name} has shape {tuple(values.shape)}, the call has (B, T) = {tuple(x.shape[:2])}")
        return values.to(x.device)

    def _tokens(self, x: Tensor) -> Tensor | None:
        mask = self.token_mask if self.token_mask is not None else self.attention_mask
        if mask is None:
            return None
        if mask.ndim != 2 or mask.shape[0] != x.shape[0] or mask.shape[1] < x.shape[1]:
            shape = tuple(mask.shape)
            raise StateError(f"the mask of tokens has shape {shape}, the call has (B, T) = {tuple(x.shape[:2])}")
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
            where = True if where is True else self._fit(f"sub_states[{name!r}]", where, x).bool()[..., None]
            routed[:, :, list(heads)] = where
        return mask & routed


class Context(local):
    """What is bound in this thread, and what a checkpointed layer must remember to be computed again."""

    bound: Bound | None = None
    recorded: dict[str, Tensor] | None = None

    @contextmanager
    def using(self, bound: Bound | None, recorded: dict[str, Tensor] | None = None) -> Iterator[None]:
        before = self.bound, self.recorded
        self.bound, self.recorded = bound, recorded
        try:
            yield
        finally:
            self.bound, self.recorded = before
