"""The δ-mem of one attention layer: projections, gates, the scan, and the corrections."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import AdapterError
from ..ops import GateSpec, add_correction, delta_scan, gated_read, gated_scan, gates, masked_linear, read_correction
from ..ops.device import needs_gradients
from .config import HEADS, AdapterConfig

if TYPE_CHECKING:
    from .backbones import Projection

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

    memory_q_proj: Tensor
    beta_bias: Tensor
    lambda_bias: Tensor
    delta_o_rmsnorm_weight: Tensor
    delta_scale_raw: Tensor

    def __init__(self, config: AdapterConfig, hidden_size: int, outputs: Mapping[str, int]) -> None:
        """``outputs``: output width of each projection, by its letter."""
        super().__init__()
        self.config = config
        self.spec = GateSpec(
            config.num_state_heads,
            config.rank,
            config.state_update_mode,
            config.couple_lambda,
            config.normalize_qk,
            config.rankwise_gates,
        )
        self._made: dict[str, tuple[list[Any], Tensor]] = {}
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
            reads (B, T, R), float32 where there are gradients, else in the precision of the weights; and the new state
            (B, H, r, r).
        """
        if write_mask is None:
            reads, final = self._read(x, state, token_mask), state
        elif self.config.memory_write_granularity == "token":
            projected = self._project(x, token_mask)
            if note is not None:
                write_mask = write_mask if token_mask is None else write_mask & token_mask[..., None]
                with torch.no_grad():  # a layer that is computed again is not traced, and must save the same tensors
                    note(gates(projected, *self._biases, self.spec)[-1], write_mask)
            reads, final = gated_scan(
                projected, *self._biases, state, self.spec, token_mask, write_mask, self._reads_dtype
            )
        elif segment_ids is None:
            kind = self.config.memory_write_granularity
            raise AdapterError(f"a {kind} adapter writes one mean per segment: give segment_ids (B, T)")
        else:
            reads, final = self._scan_segments(x, state, token_mask, write_mask, segment_ids, packed, note)
        return reads.flatten(2), final

    def read_corrections(self, x: Tensor, state: Tensor, token_mask: Tensor | None) -> dict[str, Tensor]:
        """Δ of every corrected projection for a few tokens, nothing written: head -> (B, T, out), views of one tensor.

        Not for corrections that are normed, nor for gradients.
        """
        weights = [getattr(self, f"delta_{head}_proj") for head in self.config.delta_heads]
        up = self._joined("up", weights)
        scales = self._kept("scales", [*weights, *self._multipliers], lambda _: torch.cat(self._scales(weights)))
        x = x.to(self.memory_q_proj.dtype)
        deltas = read_correction(x, self.memory_q_proj, state, self.spec, up, scales, token_mask)
        parts = deltas.split([weight.shape[0] for weight in weights], dim=-1)
        return dict(zip(self.config.delta_heads, parts, strict=True))

    def correct(self, head: str, projection: "Projection", output: Tensor, reads: Tensor) -> Tensor:
        """``output`` of a projection with Δ of ``reads`` (B, T, R) added to its part: in place without gradients."""
        weight, scale = getattr(self, f"delta_{head}_proj"), self._scale(head)
        part = None if head == "o" and self.config.delta_o_rmsnorm else projection.view(output)
        if part is not None and not needs_gradients(output, reads, weight):
            if weight.dtype == output.dtype:
                add_correction(part, reads, weight, scale)
            else:
                part.add_(self.correction(head, reads, output.dtype))
            return output
        if part is output and isinstance(scale, float) and output.dtype == _precision(weight):
            flat = torch.addmm(output.flatten(0, -2), reads.flatten(0, -2).to(weight.dtype), weight.t(), alpha=scale)
            return flat.view_as(output)
        return projection.add(output, self.correction(head, reads, output.dtype))

    def correction(self, head: str, reads: Tensor, dtype: torch.dtype) -> Tensor:
        """Δ for one corrected projection: reads (B, T, R) -> (B, T, out) in ``dtype``."""
        weight, scale = getattr(self, f"delta_{head}_proj"), self._scale(head)
        delta = linear(reads.to(weight.dtype), weight)
        delta = delta * (scale.to(delta.dtype) if isinstance(scale, Tensor) else scale)
        if head == "o" and self.config.delta_o_rmsnorm:
            delta = delta.float()
            variance = delta.pow(2).mean(-1, keepdim=True)
            delta = (
                delta * torch.rsqrt(variance + self.config.delta_o_rmsnorm_eps) * self.delta_o_rmsnorm_weight.float()
            )
        return delta.to(dtype)

    @property
    def _multipliers(self) -> list[Any]:
        return [self.delta_scale_raw] if self.config.trainable_delta_scale else []

    def _scales(self, weights: list[nn.Parameter]) -> list[Tensor]:
        """The scale of each row of the corrections' weights, float32."""
        heads = zip(self.config.delta_heads, weights, strict=True)
        return [torch.ones(w.shape[0], device=w.device) * self._scale(head) for head, w in heads]

    def _scale(self, head: str) -> float | Tensor:
        scale = self.config.alpha / self.config.rank
        return scale * self._multiplier(head) if self.config.trainable_delta_scale else scale

    def _multiplier(self, head: str) -> Tensor:
        scale: Tensor = torch.sigmoid(self.delta_scale_raw.float()) * self.config.delta_scale_max
        if scale.numel() == 1:
            return scale.reshape(())
        order = HEADS if scale.numel() == len(HEADS) else self.config.delta_heads
        return scale.flatten()[order.index(head)]

    @property
    def _biases(self) -> tuple[Tensor, Tensor | None]:
        return self.beta_bias, self.lambda_bias if self.config.has_lambda else None

    @property
    def _reads_dtype(self) -> torch.dtype:
        return torch.float32 if torch.is_grad_enabled() else self.memory_q_proj.dtype

    def _project(self, x: Tensor, token_mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, 3R + G or 3R + 2G): queries, keys, values, gates."""
        names = ["memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj"]
        names += ["lambda_proj"] if self.config.has_lambda else []
        weight = self._joined("projections", [getattr(self, name) for name in names])
        dtype = _precision(weight)
        return masked_linear(x.to(dtype), weight.to(dtype), token_mask)

    def _joined(self, name: str, weights: list[Any]) -> Tensor:
        """All rows in one matrix, so that what they multiply is read once. Frozen ones become parts of it."""

        def join(_: list[Any]) -> Tensor:
            if torch.is_grad_enabled() or any(weight.requires_grad for weight in weights):
                return torch.cat(weights)
            with torch.inference_mode(False), torch.no_grad():  # weights must stay fit for autograd
                joined = torch.cat(weights)
                for weight, part in zip(weights, joined.split([w.shape[0] for w in weights]), strict=True):
                    weight.data = part
            return joined

        return self._kept(name, weights, join)

    def _kept(self, name: str, weights: list[Any], make: Callable[[list[Any]], Tensor]) -> Tensor:
        """What is made of ``weights``; without gradients it is kept while they do not change."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make(weights)
        made = self._made.get(name)
        if made is None or made[0] != _identity(weights):
            value = make(weights)
            made = self._made[name] = (_identity(weights), value)
        return made[1]

    def _read(self, x: Tensor, state: Tensor, token_mask: Tensor | None) -> Tensor:
        weight = self.memory_q_proj
        return gated_read(x.to(_precision(weight)), weight, state, self.spec, token_mask, self._reads_dtype)

    def _scan_segments(
        self,
        x: Tensor,
        state: Tensor,
        token_mask: Tensor | None,
        write_mask: Tensor,
        segment_ids: Tensor,
        packed: bool,
        note: NoteGates | None,
    ) -> tuple[Tensor, Tensor]:
        """One write per segment, of the mean of its tokens; the segments in the order of their numbers."""
        if token_mask is not None:  # a mean must see nothing of padding, NaN even
            x = torch.where(token_mask[..., None], x, torch.zeros_like(x))
        write_mask = write_mask if token_mask is None else write_mask & token_mask[..., None]
        inside = (segment_ids >= 0) & write_mask.any(-1)
        numbers, index = torch.unique(torch.where(inside, segment_ids, -1), return_inverse=True)
        if int(numbers[0]) == -1:
            numbers, index = numbers[1:], index - 1
        if not len(numbers):
            return self._read(x, state, token_mask), state
        member = index[..., None] == torch.arange(len(numbers), device=x.device)  # (B, T, N)
        count = member.sum(1)
        with torch.autocast(x.device.type, enabled=False):
            total = member.float().transpose(1, 2) @ x.float()
            mean = (total / count.clamp(min=1)[..., None]).to(x.dtype)
            heads = member.float().transpose(1, 2) @ write_mask.float() > 0
        k, v, keep, erase, write = gates(self._project(mean, None), *self._biases, self.spec)[1:]
        if note is not None:
            note(write, heads)
        if not packed:
            _, final = delta_scan(k, k, v, keep, erase, write, state, heads)
            return self._read(x, state, token_mask), final
        q = gates(self._project(x, token_mask), *self._biases, self.spec, token_mask)[0]
        position = torch.arange(x.shape[1], device=x.device)[:, None].expand(member.shape)
        last = torch.where(member, position, -1).amax(1).clamp(min=0)  # a segment is written at its last token
        where = last[..., None, None].expand(*last.shape, *k.shape[2:])

        def at_end(values: Tensor) -> Tensor:
            values = values * (count > 0)[..., None, None]
            return torch.zeros_like(q).scatter_add(1, where, values)

        mask = torch.zeros_like(write_mask, dtype=torch.float32)
        mask = mask.scatter_add(1, where[..., 0], (heads & (count > 0)[..., None]).float()) > 0
        return delta_scan(q, at_end(k), at_end(v), at_end(keep), at_end(erase), at_end(write), state, mask)


def _identity(weights: list[Any]) -> list[Any]:
    return [(w.data_ptr(), w._version, w.dtype) for w in weights]


def _precision(weight: Tensor) -> torch.dtype:
    """What a product with ``weight`` is computed in: autocast casts it."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


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
