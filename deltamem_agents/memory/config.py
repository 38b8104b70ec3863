"""What an adapter is: the fields that change the computation, and the names of its sub-states."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import AdapterError

HEADS = ("q", "k", "v", "o")
UPDATE_MODES = ("standard", "lambda_outside", "no_lambda")
GRANULARITIES = ("token", "message_mean", "sentence_mean")
SHARED = "shared"


@dataclass(frozen=True)
class AdapterConfig:
    """The live fields of a δ-mem adapter; names are those of the official ``delta_mem_config.json``.

    Attributes:
        rank: r, the side of one state (r x r per state head).
        alpha: corrections are scaled by alpha / rank.
        num_state_heads: H; 1 for TSW and SSW, more for MSW.
        memory_write_granularity: "token" (TSW, MSW), "message_mean" or "sentence_mean" (SSW).
        state_update_mode: (keep, erase, write) = (λ, β, β) "standard", (λ, λβ, β) "lambda_outside",
            (1, β, β) "no_lambda".
        couple_lambda: λ = 1 - β instead of a gate of its own.
        normalize_qk: tanh, then L2 norm per state head, on queries and keys; False skips both.
        rankwise_gates: one gate per row of S; False: one per state head.
        delta_heads: which projections are corrected, of q, k, v, o.
        target_layers: indices of corrected layers; empty means all.
        delta_o_rmsnorm, delta_o_rmsnorm_eps: RMS norm, in float32, of the scaled correction of o.
        trainable_delta_scale, delta_scale_max, delta_scale_granularity: a multiplier σ(raw) * max on top of
            alpha / rank, one per layer ("layer") or one per corrected head ("head", in the order q, k, v, o).
        sub_states: name -> state heads that belong to it; every head in exactly one. Default: one sub-state ``shared``.
    """

    rank: int = 8
    alpha: float = 16.0
    num_state_heads: int = 1
    memory_write_granularity: str = "token"
    state_update_mode: str = "standard"
    couple_lambda: bool = True
    normalize_qk: bool = True
    rankwise_gates: bool = True
    delta_heads: tuple[str, ...] = ("q", "o")
    target_layers: tuple[int, ...] = ()
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = 1e-6
    trainable_delta_scale: bool = False
    delta_scale_max: float = 2.0
    delta_scale_granularity: str = "layer"
    sub_states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "delta_heads", tuple(h for h in HEADS if h in self.delta_heads) + self._unknown_heads())
        put(self, "target_layers", tuple(sorted(set(self.target_layers))))
        layout: Mapping[str, Iterable[int]] = self.sub_states or {SHARED: range(self.num_state_heads)}
        put(self, "sub_states", {name: tuple(heads) for name, heads in layout.items()})
        self._check()

    def _unknown_heads(self) -> tuple[str, ...]:
        return tuple(h for h in self.delta_heads if h not in HEADS)

    def _check(self) -> None:
        def need(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise AdapterError(f"adapter config: {name} = {getattr(self, name)!r} is not supported; use {allowed}")

        for item in fields(self):
            value = getattr(self, item.name)
            need(item.type is not bool or isinstance(value, bool), item.name, "true or false")
            need(item.type is not float or type(value) in (int, float), item.name, "a number")
        need(isinstance(self.rank, int) and self.rank > 0, "rank", "a positive integer")
        need(
            isinstance(self.num_state_heads, int) and self.num_state_heads > 0, "num_state_heads", "a positive integer"
        )
        need(self.memory_write_granularity in GRANULARITIES, "memory_write_granularity", f"one of {GRANULARITIES}")
        need(self.state_update_mode in UPDATE_MODES, "state_update_mode", f"one of {UPDATE_MODES}")
        need(self.delta_scale_granularity in ("layer", "head"), "delta_scale_granularity", "'layer' or 'head'")
        need(bool(self.delta_heads) and not self._unknown_heads(), "delta_heads", f"some of {HEADS}")
        need(all(isinstance(i, int) and i >= 0 for i in self.target_layers), "target_layers", "layer indices from 0")
        owned = sorted(h for heads in self.sub_states.values() for h in heads)
        need(owned == list(range(self.num_state_heads)), "sub_states", "each state head in exactly one sub-state")
        need(all(self.sub_states.values()), "sub_states", "at least one state head for every sub-state")

    @property
    def width(self) -> int:
        """R = num_state_heads * rank: length of one concatenated read."""
        return self.num_state_heads * self.rank

    @property
    def gates(self) -> int:
        """G: gates per layer, R with rank-wise gates, else one per state head."""
        return self.width if self.rankwise_gates else self.num_state_heads

    @property
    def has_lambda(self) -> bool:
        """Whether λ has parameters of its own."""
        return not self.couple_lambda

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; read back by :meth:`from_dict`."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()} | {
            "sub_states": {name: list(heads) for name, heads in self.sub_states.items()}
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AdapterConfig":
        """Raises AdapterError naming the fields that are not known."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise AdapterError(f"adapter config: unknown fields {unknown}; known are {sorted(known)}")
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in data.items()}
        try:
            return cls(**values)
        except (AttributeError, TypeError) as error:
            raise AdapterError(f"adapter config: a field has a value of a wrong type ({error})") from error
