"""The correction of projections: a few columns of reads, through a low-rank weight; added to an output, or alone."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from .device import HAS_TRITON, needs_gradients
from .gates import GateSpec
from .scan import gated_read

if HAS_TRITON:
    from .triton_correction import triton_add_correction, triton_read_correction
    from .triton_gates import DECODE


def add_correction(
    output: Tensor, reads: Tensor, weight: Tensor, scale: float | Tensor, form: str | None = None
) -> None:
    """output (..., O) += scale · reads (..., R) weight (O, R)^T, in place and without gradients.

    Args:
        output: rows may stand apart, as in a slice of a fused projection.
        reads: any float dtype; multiplied in the dtype of ``weight``.
        scale: a number, or a tensor of no dimensions.
        form: "triton" (one read and one write of ``output``, one rounding) or "torch"; None takes the best here.
    """
    if form not in (None, "torch", "triton") or (form == "triton" and not HAS_TRITON):
        raise ValueError(f"no form {form!r} of the correction here")
    rows, few = _rows(output), _rows(reads)
    if form is None:
        form = "triton" if output.is_cuda and HAS_TRITON else "torch"
    if form == "triton" and rows is not None and few is not None:
        triton_add_correction(rows, few, weight, scale)
        return
    with torch.autocast(output.device.type, enabled=False):
        reads = reads.to(weight.dtype)
        if rows is not None and few is not None and rows.dtype == weight.dtype and not isinstance(scale, Tensor):
            rows.addmm_(reads.reshape(-1, reads.shape[-1]), weight.t(), alpha=scale)
        else:
            output.add_(linear(reads, weight) * scale)


def read_correction(
    x: Tensor,
    q_weight: Tensor,
    state: Tensor,
    spec: GateSpec,
    up: Tensor,
    scales: Tensor,
    token_mask: Tensor | None = None,
    form: str | None = None,
) -> Tensor:
    """Δ = scales · reads up^T of all corrected projections from reads alone; on CUDA one or two kernels for few tokens.

    Args:
        x, q_weight, state, spec, token_mask: as in :func:`gated_read`; Δ is zero on padding.
        up: (O, R), the low-rank weights one above the other; the reads are rounded to its dtype.
        scales: (O,) float32.
        form: "triton" (no gradients) or "torch"; None takes the best here.

    Returns:
        (B, T, O) in the dtype of ``x``.
    """
    if form not in (None, "torch", "triton") or (form == "triton" and not HAS_TRITON):
        raise ValueError(f"no form {form!r} of the correction here")
    if HAS_TRITON and form is None and x.is_cuda and x.shape[0] * x.shape[1] <= DECODE:
        form = None if needs_gradients(x, q_weight, state, up, scales) else "triton"
    if form == "triton":
        return triton_read_correction(x, q_weight, state, spec, up, scales, token_mask)
    reads = gated_read(x, q_weight, state, spec, token_mask, up.dtype, form)
    with torch.autocast(x.device.type, enabled=False):
        return (linear(reads.flatten(2), up) * scales).to(x.dtype)


def _rows(x: Tensor) -> Tensor | None:
    """``x`` (..., n) as rows (M, n) of the same storage, or None where its strides do not allow that."""
    if x.dim() == 1:
        return x[None] if x.stride(0) == 1 else None
    apart = x.stride(-2)
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size != 1 and stride != apart:
            return None
        apart = apart * size
    return x.view(-1, x.shape[-1]) if x.stride(-1) == 1 else None
