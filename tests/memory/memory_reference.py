"""δ-mem once more, slowly and from the equations: loops over rows, tokens and state heads in float64.

It shares no code with the library: the forward methods of the attention modules and of their projections are replaced
for a while, and everything in between is written out with numpy.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[np.float64]]
DEFAULTS: dict[str, Any] = {
    "rank": 8,
    "alpha": 16.0,
    "num_state_heads": 1,
    "memory_write_granularity": "token",
    "state_update_mode": "standard",
    "couple_lambda": True,
    "normalize_qk": True,
    "rankwise_gates": True,
    "delta_heads": ("q", "o"),
    "delta_o_rmsnorm": False,
    "delta_o_rmsnorm_eps": 1e-6,
    "trainable_delta_scale": False,
    "delta_scale_max": 2.0,
    "delta_scale_granularity": "layer",
}


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


class SlowLayer:
    """The δ-mem of one attention module. ``weights`` by official name, as float64 arrays."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        self.c, self.w = config, weights
        self.heads, self.rank = config["num_state_heads"], config["rank"]

    def address(self, name: str, x: Array, h: int) -> Array:
        part = (self.w[name] @ x)[h * self.rank : (h + 1) * self.rank]
        if not self.c["normalize_qk"]:
            return part
        part = np.tanh(part)
        return part / max(float(np.sqrt((part * part).sum())), 1e-12)

    def gate(self, name: str, x: Array, h: int) -> Array:
        gates = sigmoid(self.w[f"{name}_proj"] @ x + self.w[f"{name}_bias"])
        return gates[h * self.rank : (h + 1) * self.rank] if self.c["rankwise_gates"] else np.full(self.rank, gates[h])

    def written(self, s: Array, x: Array, h: int) -> Array:
        k = self.address("memory_k_proj", x, h)
        v = (self.w["memory_v_proj"] @ x)[h * self.rank : (h + 1) * self.rank]
        beta = self.gate("beta", x, h)
        lam = 1 - beta if self.c["couple_lambda"] else self.gate("lambda", x, h)
        keep, erase = {
            "standard": (lam, beta),
            "lambda_outside": (lam, lam * beta),
            "no_lambda": (np.ones_like(beta), beta),
        }[self.c["state_update_mode"]]
        return np.diag(keep) @ s - np.diag(erase) @ np.outer(s @ k, k) + np.diag(beta) @ np.outer(v, k)

    def run(self, x: Array, state: Array, valid: Array, writes: Array, segments: Array | None) -> tuple[Array, Array]:
        """x (T, D), state (H, r, r), valid (T,), writes (T, H) of one row -> reads (T, H * r) and the new state."""
        reads = np.zeros((len(x), self.heads * self.rank))
        token = self.c["memory_write_granularity"] == "token"
        state = state.copy()
        for h in range(self.heads):
            s = state[h].copy()
            for t in range(len(x)):
                if valid[t]:
                    reads[t, h * self.rank : (h + 1) * self.rank] = s @ self.address("memory_q_proj", x[t], h)
                if token and valid[t] and writes[t, h]:
                    s = self.written(s, x[t], h)
            if not token and segments is not None:
                for number in sorted(set(segments.tolist()) - {-1}):
                    members = [t for t in range(len(x)) if segments[t] == number and valid[t] and writes[t, h]]
                    if members:
                        s = self.written(s, np.mean([x[t] for t in members], axis=0), h)
            state[h] = s
        return reads, state

    def correction(self, head: str, reads: Array) -> Array:
        delta = reads @ self.w[f"delta_{head}_proj"].T * (self.c["alpha"] / self.rank)
        if self.c["trainable_delta_scale"]:
            raw = self.w["delta_scale_raw"]
            order = ["q", "k", "v", "o"] if len(raw) == 4 else [x for x in "qkvo" if x in self.c["delta_heads"]]
            raw = raw[order.index(head)] if self.c["delta_scale_granularity"] == "head" else raw[0]
            delta = delta * sigmoid(raw) * self.c["delta_scale_max"]
        if head == "o" and self.c["delta_o_rmsnorm"]:
            size = np.sqrt((delta * delta).mean(-1, keepdims=True) + self.c["delta_o_rmsnorm_eps"])
            delta = delta / size * self.w["delta_o_rmsnorm_weight"]
        return delta


Place = Callable[[Tensor, Tensor], Tensor]


def places(attention: nn.Module) -> dict[str, tuple[nn.Module, Place]]:
    """Which child computes q, k, v and o, and how a correction is added to its output."""

    def at(start: int, width: int) -> Place:
        def place(output: Tensor, delta: Tensor) -> Tensor:
            output = output.clone()
            output[..., start : start + width] += delta
            return output

        return place

    def whole(output: Tensor, delta: Tensor) -> Tensor:
        return output + delta

    if not hasattr(attention, "qkv_proj"):
        return {x: (getattr(attention, f"{x}_proj"), whole) for x in "qkvo"}
    q = attention.config.num_attention_heads * attention.head_dim  # type: ignore[union-attr, operator]
    kv = attention.config.num_key_value_heads * attention.head_dim  # type: ignore[union-attr, operator]
    fused: nn.Module = attention.qkv_proj  # type: ignore[assignment]
    starts = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}
    return {x: (fused, at(*starts[x])) for x in "qkv"} | {"o": (attention.o_proj, whole)}  # type: ignore[dict-item]


class SlowMemory:
    """Runs a model with δ-mem: ``state`` is attention name -> (B, H, r, r) float64."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor], batch: int, **config: Any) -> None:
        self.model, self.c = model, {**DEFAULTS, **config}
        weights: dict[str, dict[str, Array]] = {}
        for key, tensor in tensors.items():
            name, _, parameter = key.rpartition(".")
            weights.setdefault(name, {})[parameter] = tensor.double().numpy()
        self.layers = {name: SlowLayer(self.c, w) for name, w in weights.items()}
        side = (batch, self.c["num_state_heads"], self.c["rank"], self.c["rank"])
        self.state = {name: np.zeros(side) for name in self.layers}

    @contextmanager
    def patched(self, valid: Array, writes: Array, segments: Array | None) -> Iterator[None]:
        replaced: list[nn.Module] = []
        for name, layer in self.layers.items():
            attention = self.model.get_submodule(name)
            reads: dict[str, Array] = {}
            self._replace(attention, self._reading(attention.forward, name, layer, reads, valid, writes, segments))
            replaced.append(attention)
            for head, (linear, place) in places(attention).items():
                if head in self.c["delta_heads"]:
                    self._replace(linear, self._correcting(linear.forward, layer, head, reads, place))
                    replaced.append(linear)
        try:
            yield
        finally:
            for module in replaced:
                module.__dict__.pop("forward", None)

    @staticmethod
    def _replace(module: nn.Module, forward: Any) -> None:
        module.__dict__["forward"] = forward

    def _reading(
        self, forward: Any, name: str, layer: SlowLayer, reads: dict[str, Array], valid: Array, writes: Array, ids: Any
    ) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            x = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).detach().double().numpy()
            rows = [
                layer.run(x[b], self.state[name][b], valid[b], writes[b], None if ids is None else ids[b])
                for b in range(len(x))
            ]
            reads["now"] = np.stack([row[0] for row in rows])
            self.state[name] = np.stack([row[1] for row in rows])
            return forward(*args, **kwargs)

        return run

    def _correcting(self, forward: Any, layer: SlowLayer, head: str, reads: dict[str, Array], place: Place) -> Any:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            delta = torch.from_numpy(layer.correction(head, reads["now"])).float()
            return place(forward(*args, **kwargs), delta)

        return run

    @torch.no_grad()
    def __call__(
        self,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        write: bool | Tensor = True,
        segment_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the model; ``write`` is a bool or (B, T, H)."""
        valid = np.ones(tuple(ids.shape), bool) if attention_mask is None else attention_mask.bool().numpy()
        shape = (*ids.shape, self.c["num_state_heads"])
        writes = np.full(shape, write) if isinstance(write, bool) else write.numpy()
        segments = None if segment_ids is None else segment_ids.numpy()
        with self.patched(valid[:, -ids.shape[1] :], writes, segments):
            return self.model(ids, attention_mask=attention_mask, **kwargs)
