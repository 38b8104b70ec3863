"""A low-rank correction added to a projection's output, in place, in one pass over it; for CUDA devices."""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import from_python
from .gates import GateSpec
from .mask import as_bytes
from .read_kernels import delta_kernel, read_correction_kernel
from .triton_gates import launch_read, projection_shape

FEW = 32  # rows, up to which tiles are small so that one row still keeps many multiprocessors busy
FUSED = 4  # tokens, up to which each program of the correction makes the reads for itself
WIDEST = 64  # numbers in the reads of a token, up to which it can
BUSY = 132  # multiprocessors, each of which holds one such program


@triton.jit(do_not_specialize=["ROWS"])
def _correction_kernel(
    out_ptr, reads_ptr, weight_ptr, scale_ptr, ROWS, OUT_ROW, READ_ROW, scale,
    WIDTH: tl.constexpr, R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """out (ROWS, WIDTH) += scale reads (ROWS, R) weight (WIDTH, R)^T; rows OUT_ROW and READ_ROW numbers apart."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    o = tl.program_id(1) * N + tl.arange(0, N)
    r = tl.arange(0, K)
    reads = tl.load(
        reads_ptr + m[:, None].to(tl.int64) * READ_ROW + r[None, :],
        mask=(m < ROWS)[:, None] & (r < R)[None, :],
        other=0.0,
    )
    weight = tl.load(weight_ptr + o[None, :] * R + r[:, None], mask=(o < WIDTH)[None, :] & (r < R)[:, None], other=0.0)
    if SCALED:
        scale = scale * tl.load(scale_ptr).to(tl.float32)
    at = out_ptr + m[:, None].to(tl.int64) * OUT_ROW + o[None, :]
    ok = (m < ROWS)[:, None] & (o < WIDTH)[None, :]
    out = tl.load(at, mask=ok, other=0.0)
    added = tl.dot(reads.to(weight.dtype), weight, input_precision="ieee")
    tl.store(at, (out.to(tl.float32) + added * scale).to(out.dtype), mask=ok)


def _add_correction(output: Tensor, reads: Tensor, weight: Tensor, scale: float, factor: Tensor | None) -> None:
    rows, width = output.shape
    rank = weight.shape[1]
    few = rows <= FEW
    m, n = (16, 128 if width >= 4096 else 32) if few else (64, 128)
    with torch.cuda.device_of(output):
        _correction_kernel[(triton.cdiv(rows, m), triton.cdiv(width, n))](
            output, reads, weight, output if factor is None else factor, rows, output.stride(0), reads.stride(0), scale,
            WIDTH=width, R=rank, K=max(16, triton.next_power_of_2(rank)), M=m, N=n, SCALED=factor is not None,
            num_warps=1 if few else 4,
        )  # fmt: skip


_add_correction_op = torch.library.custom_op("deltamem::add_correction", _add_correction, mutates_args=("output",))


@_add_correction_op.register_fake
def _(output: Tensor, reads: Tensor, weight: Tensor, scale: float, factor: Tensor | None) -> None:
    return None


def triton_add_correction(output: Tensor, reads: Tensor, weight: Tensor, scale: float | Tensor) -> None:
    """output (M, O), unit stride inside a row, += scale reads (M, R) weight (O, R)^T, rounded once."""
    if reads.stride(-1) != 1:
        reads = reads.contiguous()
    factor = scale if isinstance(scale, Tensor) else None
    number = 1.0 if isinstance(scale, Tensor) else float(scale)
    from_python(_add_correction, _add_correction_op)(output, reads, weight.contiguous(), number, factor)


def _launch_fused(
    x: Tensor, weight: Tensor, state: Tensor, up: Tensor, scales: Tensor, token_mask: Tensor | None, out: Tensor,
    normalize: bool, shape: dict[str, int],
) -> None:  # fmt: skip
    flat, (outputs, _) = x.flatten(0, 1), up.shape
    tokens = flat.shape[0]
    n = 128 if tokens * triton.cdiv(outputs, 128) <= BUSY else 256
    read_correction_kernel[(tokens, triton.cdiv(outputs, n))](
        flat, weight, state, up, scales, flat if token_mask is None else token_mask, out, flat.stride(0), x.shape[1],
        H=state.shape[1], R=state.shape[2], **shape, WIDTH=outputs, N=n, D=x.shape[2], NORMALIZE=normalize,
        PADDED=token_mask is not None, **projection_shape(shape["HEADS"] * shape["P"], weight),
    )  # fmt: skip


def _read_correction(
    x: Tensor, weight: Tensor, state: Tensor, up: Tensor, scales: Tensor, token_mask: Tensor | None, normalize: bool
) -> Tensor:
    batch, length, _ = x.shape
    outputs, width = up.shape
    rows = batch * length
    out = x.new_empty(batch, length, outputs)
    heads, rank = state.shape[1:3]
    shape = {"HEADS": triton.next_power_of_2(heads), "P": max(4, triton.next_power_of_2(rank))}
    with torch.cuda.device_of(x):
        if rows <= FUSED and shape["HEADS"] * shape["P"] <= WIDEST:
            _launch_fused(x, weight, state, up, scales, token_mask, out, normalize, shape)
            return out
        reads = x.new_empty(batch, length, heads, rank, dtype=up.dtype)
        launch_read(x, weight, state, token_mask, reads, normalize)
        m, n = (16, 64) if rows <= 64 or up.dtype == torch.float32 else (64, 128)
        delta_kernel[(triton.cdiv(rows, m), triton.cdiv(outputs, n))](
            reads, up, scales, out, rows, WIDTH=outputs, R=width, K=max(16, triton.next_power_of_2(width)), M=m, N=n,
            num_warps=4,
        )  # fmt: skip
    return out


_read_correction_op = torch.library.custom_op("deltamem::read_correction", _read_correction, mutates_args=())


@_read_correction_op.register_fake
def _(
    x: Tensor, weight: Tensor, state: Tensor, up: Tensor, scales: Tensor, token_mask: Tensor | None, normalize: bool
) -> Tensor:
    return x.new_empty(*x.shape[:2], up.shape[0])


def triton_read_correction(
    x: Tensor, q_weight: Tensor, state: Tensor, spec: GateSpec, up: Tensor, scales: Tensor, token_mask: Tensor | None
) -> Tensor:
    """Same arguments and results as :func:`deltamem_agents.ops.read_correction`, without gradients; few tokens."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    return from_python(_read_correction, _read_correction_op)(
        x, q_weight.contiguous(), state.float().contiguous(), up.contiguous(), scales.float().contiguous(),
        as_bytes(token_mask), spec.normalize,
    )  # fmt: skip
