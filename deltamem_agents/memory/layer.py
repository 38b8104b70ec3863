"""The δ-mem of one attention layer: projections, gates, the scan, and the corrections."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from ..errors import AdapterError
from ..ops import delta_read, delta_scan
from .config import HEADS, AdapterConfig

NoteGates = Callable[[Tensor, Tensor], None]


class DeltaMemLayer(nn.Module):
    """Reads and writes the states S of one layer (arXiv 2605.12357, and ops/README.md for the scan).

        q_t = norm(tanh(W_q x_t))    k_t = norm(tanh(W_k x_t))    v_t = W_v x_t
        β_t = σ(W_β x_t + b_β)       λ_t = 1 - β_t, or σ(W_λ x_t + b_λ)
        Δ_t = (alpha / rank) A S_{t-1} q_t      for each corrected projection

    Parameters carry the official names: memory_{q,k,v}_proj (R, D), beta_proj and lambda_proj (G, D), their biases
    (G,), delta_{q,k,v,o}_proj (out, R), delta_o_rmsnorm_weight (out,), delta_scale_raw: one number, or one for each
    corrected head (official files: always four, for q, k, v, o).
    """

    delta_o_rmsnorm_weight: Tensor
    delta_scale_raw: Tensor

    def __init__(self, config: AdapterConfig, hidden_size: int, outputs: Mapping[str, int]) -> None:
        """``outputs``: output width of each projection, by its letter."""
        super().__init__()
        self.config = config
        for name, shape in layer_shapes(config, hidden_size, outputs).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def scan(
        self,
        x: Tensor,
        state: Tensor,
        token_mask: Tensor | None,
        write_mask: Tensor | None,
        segment_ids: Tensor | None = None,
        packed: bool = False,
        note: NoteGates | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read at every token and write where it is allowed.

        Args:
            x: (B, T, D), input of the attention module.
            state: (B, H, r, r) float32.
            token_mask: (B, T) bool, False on padding, which neither reads nor writes. None: no padding.
            write_mask: (B, T, H) bool. None: nothing is written.
            segment_ids: (B, T) int for mean writes; tokens of -1 do not write.
            packed: each segment is a write of its own (reads see the segments before it) instead of all one write.
            note: called with the write gates β (B, N, H, r) of the N tokens, or segments, and (B, N, H) bool: which
                of them wrote into which state head. Not called when nothing can write.

        Returns:
            reads (B, T, R) float32 and the new state (B, H, r, r).
        """
        if token_mask is not None:  # a query of zero reads nothing, and NaN in padding reaches no gradient
            x = torch.where(token_mask[..., None], x, torch.zeros_like(x))
        q = self._address(x, "memory_q_proj")
        if write_mask is None:
            reads, final = delta_read(q, state), state
        else:
            if token_mask is not None:
                write_mask = write_mask & token_mask[..., None]
            if self.config.memory_write_granularity == "token":
                writes = self._writes(x)
                if note is not None:
                    note(writes[-1], write_mask)
                reads, final = delta_scan(q, *writes, state, write_mask)
            elif segment_ids is None:
                kind = self.config.memory_write_granularity
                raise AdapterError(f"a {kind} adapter writes one mean per segment: give segment_ids (B, T)")
            else:
                reads, final = self._scan_segments(x, q, state, write_mask, segment_ids, packed, note)
        return reads.flatten(2), final

    def correction(self, head: str, reads: Tensor, dtype: torch.dtype) -> Tensor:
        """Δ for one corrected projection: reads (B, T, R) -> (B, T, out) in ``dtype``."""
        weight = getattr(self, f"delta_{head}_proj")
        delta = linear(reads.to(weight.dtype), weight) * (self.config.alpha / self.config.rank)
        if self.config.trainable_delta_scale:
            delta = delta * self._multiplier(head).to(delta.dtype)
        if head == "o" and self.config.delta_o_rmsnorm:
            delta = delta.float()
            variance = delta.pow(2).mean(-1, keepdim=True)
            delta = (
                delta * torch.rsqrt(variance + self.config.delta_o_rmsnorm_eps) * self.delta_o_rmsnorm_weight.float()
            )
        return delta.to(dtype)

    def _multiplier(self, head: str) -> Tensor:
        scale: Tensor = torch.sigmoid(self.delta_scale_raw.float()) * self.config.delta_scale_max
        if scale.numel() == 1:
            return scale.reshape(())
        order = HEADS if scale.numel() == len(HEADS) else self.config.delta_heads
        return scale.flatten()[order.index(head)]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_state_heads, -1))

    def _project(self, x: Tensor, name: str) -> Tensor:
        weight = getattr(self, name)
        return linear(x.to(weight.dtype), weight).float()

    def _address(self, x: Tensor, name: str) -> Tensor:
        heads = self._split(self._project(x, name))
        return normalize(torch.tanh(heads), dim=-1) if self.config.normalize_qk else heads

    def _gate(self, x: Tensor, name: str) -> Tensor:
        gate = torch.sigmoid(self._project(x, f"{name}_proj") + getattr(self, f"{name}_bias").float())
        return self._split(gate).expand(*x.shape[:-1], self.config.num_state_heads, self.config.rank)

    def _writes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """k, v, keep, erase, write, each (B, T, H, r)."""
        k, v = self._address(x, "memory_k_proj"), self._split(self._project(x, "memory_v_proj"))
        beta = self._gate(x, "beta")
        lam = self._gate(x, "lambda") if self.config.has_lambda else 1 - beta
        match self.config.state_update_mode:
            case "lambda_outside":
                return k, v, lam, lam * beta, beta
            case "no_lambda":
                return k, v, torch.ones_like(beta), beta, beta
            case _:
                return k, v, lam, beta, beta

    def _scan_segments(
        self,
        x: Tensor,
        q: Tensor,
        state: Tensor,
        write_mask: Tensor,
        segment_ids: Tensor,
        packed: bool,
        note: NoteGates | None,
    ) -> tuple[Tensor, Tensor]:
        """One write per segment, of the mean of its tokens; the segments in the order of their numbers."""
        inside = (segment_ids >= 0) & write_mask.any(-1)
        numbers, index = torch.unique(torch.where(inside, segment_ids, -1), return_inverse=True)
        if int(numbers[0]) == -1:
            numbers, index = numbers[1:], index - 1
        if not len(numbers):
            return delta_read(q, state), state
        member = index[..., None] == torch.arange(len(numbers), device=x.device)  # (B, T, N)
        count = member.sum(1)
        with torch.autocast(x.device.type, enabled=False):
            total = member.float().transpose(1, 2) @ x.float()
            mean = (total / count.clamp(min=1)[..., None]).to(x.dtype)
            heads = member.float().transpose(1, 2) @ write_mask.float() > 0
        k, v, keep, erase, write = self._writes(mean)
        if note is not None:
            note(write, heads)
        if not packed:
            _, final = delta_scan(k, k, v, keep, erase, write, state, heads)
            return delta_read(q, state), final
        position = torch.arange(x.shape[1], device=x.device)[:, None].expand(member.shape)
        last = torch.where(member, position, -1).amax(1).clamp(min=0)  # a segment is written at its last token
        where = last[..., None, None].expand(*last.shape, *k.shape[2:])

        def at_end(values: Tensor) -> Tensor:
            values = values * (count > 0)[..., None, None]
            return torch.zeros_like(q).scatter_add(1, where, values)

        mask = torch.zeros_like(write_mask, dtype=torch.float32)
        mask = mask.scatter_add(1, where[..., 0], (heads & (count > 0)[..., None]).float()) > 0
        return delta_scan(q, at_end(k), at_end(v), at_end(keep), at_end(erase), at_end(write), state, mask)


def layer_shapes(config: AdapterConfig, hidden_size: int, outputs: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Official parameter name -> shape, for one layer."""
    width, gates = config.width, config.gates
    shapes: dict[str, tuple[int, ...]] = {f"memory_{p}_proj": (width, hidden_size) for p in "qkv"}
    shapes |= {f"delta_{head}_proj": (outputs[head], width) for head in config.delta_heads}
    for gate in ("beta", "lambda") if config.has_lambda else ("beta",):
        shapes |= {f"{gate}_proj": (gates, hidden_size), f"{gate}_bias": (gates,)}
    if config.delta_o_rmsnorm and "o" in config.delta_heads:
        shapes["delta_o_rmsnorm_weight"] = (outputs["o"],)
    if config.trainable_delta_scale:
        shapes["delta_scale_raw"] = (1,) if config.delta_scale_granularity == "layer" else (len(config.delta_heads),)
    return shapes
