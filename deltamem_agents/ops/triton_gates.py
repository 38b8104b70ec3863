"""The inference path on CUDA devices: from projections to reads in one or a few kernels, without gradients."""

from typing import Any

import torch
import triton
from torch import Tensor

from .device import from_python
from .gate_kernels import prepare_kernel, step_kernel
from .gates import GateSpec
from .mask import as_bytes
from .read_kernels import gemv_read_kernel
from .triton_scan import chunk_length, launch_shape, scan_chunks

STEP = 16  # up to so many tokens one kernel does everything, token by token
DECODE = 256  # tokens of all rows, up to which reads alone are one kernel with the projection inside
ROWS = 1024  # numbers that a program of the gates' kernel works on
WARPS = 8  # of a program that projects
REGISTERS = 240  # of a thread, for what it loads ahead and its sums


def gate_flags(
    mode: str, coupled: bool, normalize: bool, rankwise: bool, token_mask: Tensor | None, write_mask: Tensor | None
) -> dict[str, Any]:
    """What the variants of the gates' kernels differ in."""
    flags = {"MODE": mode, "COUPLED": coupled, "NORMALIZE": normalize, "RANKWISE": rankwise}
    return flags | {"PADDED": token_mask is not None, "MASKED": write_mask is not None}


def gate_arguments(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, token_mask: Tensor | None,
    write_mask: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The first arguments of these kernels; another tensor, which they do not use, stands for one that is None."""
    flat = projected.flatten(0, 1)
    lam = beta_bias if lambda_bias is None else lambda_bias
    return flat, beta_bias, lam, *(flat if x is None else x for x in (token_mask, write_mask))


def prepare(args: tuple[Tensor, ...], size: torch.Size, heads: int, rank: int, flags: dict[str, Any]) -> list[Tensor]:
    """q, k, v, keep, erase, write (B, T, H, r) float32, masks applied; ``size`` is (B, T)."""
    shape, rows = launch_shape(rank), size.numel() * heads
    count, block = 6 if flags["MODE"] == "lambda_outside" else 5, ROWS // shape["P"]
    buffers = args[0].new_empty(count, *size, heads, rank, dtype=torch.float32)
    tokens = [*buffers[:5], buffers[-1]]  # write is erase, but for lambda_outside
    prepare_kernel[(triton.cdiv(rows, block),)](
        *args, *tokens, args[0].stride(0), heads, rows, R=rank, P=shape["P"], BLOCK=block, **flags
    )
    return tokens


def _gated_scan(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, token_mask: Tensor | None,
    write_mask: Tensor | None, heads: int, rank: int, mode: str, coupled: bool, normalize: bool, rankwise: bool,
    reads_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, length = projected.shape[:2]
    args = gate_arguments(projected, beta_bias, lambda_bias, token_mask, write_mask)
    flags = gate_flags(mode, coupled, normalize, rankwise, token_mask, write_mask)
    shape = launch_shape(rank)
    reads = projected.new_empty(batch, length, heads, rank, dtype=reads_dtype)
    with torch.cuda.device_of(projected):
        if length <= STEP:
            final = torch.empty_like(state)
            step_kernel[(1, triton.cdiv(batch * heads, shape["G"]))](
                *args, state, reads, final, args[0].stride(0), length, heads, batch * heads, **shape, **flags
            )
            return reads, final
        tokens = prepare(args, projected.shape[:2], heads, rank, flags)
        final, _ = scan_chunks(tokens, state, None, reads, chunk_length(length))
    return reads, final


_gated_scan_op = torch.library.custom_op("deltamem::gated_scan", _gated_scan, mutates_args=())


@_gated_scan_op.register_fake
def _(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, token_mask: Tensor | None,
    write_mask: Tensor | None, heads: int, rank: int, mode: str, coupled: bool, normalize: bool, rankwise: bool,
    reads_dtype: torch.dtype,
) -> Any:  # fmt: skip
    return projected.new_empty(*projected.shape[:2], heads, rank, dtype=reads_dtype), torch.empty_like(state)


def triton_gated_scan(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, spec: GateSpec,
    token_mask: Tensor | None, write_mask: Tensor | None, reads_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Same arguments and results as :func:`deltamem_agents.ops.gated_scan`, without gradients."""
    if projected.stride(-1) != 1:
        projected = projected.contiguous()
    return from_python(_gated_scan, _gated_scan_op)(
        projected, beta_bias, lambda_bias, state.float().contiguous(), as_bytes(token_mask), as_bytes(write_mask),
        spec.heads, spec.rank, spec.mode, spec.coupled, spec.normalize, spec.rankwise, reads_dtype,
    )  # fmt: skip


def projection_shape(rows: int, weight: Tensor, at_most: int = REGISTERS) -> dict[str, int]:
    """The tile of the kernels that project: A warps, B rows for each, C columns, and the chunks AHEAD."""
    a = min(WARPS, rows)
    b = rows // a
    ahead = (REGISTERS - 8 * b) // (4 * b + 4)
    return {"A": a, "B": b, "C": 512 // weight.element_size(), "AHEAD": min(ahead, at_most), "num_warps": a}


def launch_read(
    x: Tensor, weight: Tensor, state: Tensor, token_mask: Tensor | None, reads: Tensor, normalize: bool
) -> None:
    """Fill ``reads`` (B, T, H, r) from x (B, T, D), whose rows may stand apart; a program for each token and head."""
    batch, length, heads, rank = reads.shape
    flat = x.flatten(0, 1)
    gemv_read_kernel[(batch * length, heads)](
        flat, weight, state, flat if token_mask is None else token_mask, reads, flat.stride(0), length, heads,
        D=x.shape[2], R=rank, NORMALIZE=normalize, PADDED=token_mask is not None,
        **projection_shape(max(4, triton.next_power_of_2(rank)), weight, at_most=12),
    )  # fmt: skip


def _gated_read(
    x: Tensor, weight: Tensor, state: Tensor, token_mask: Tensor | None, heads: int, rank: int, normalize: bool,
    reads_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    reads = x.new_empty(*x.shape[:2], heads, rank, dtype=reads_dtype)
    with torch.cuda.device_of(x):
        launch_read(x, weight, state, token_mask, reads, normalize)
    return reads


_gated_read_op = torch.library.custom_op("deltamem::gated_read", _gated_read, mutates_args=())


@_gated_read_op.register_fake
def _(
    x: Tensor, weight: Tensor, state: Tensor, token_mask: Tensor | None, heads: int, rank: int, normalize: bool,
    reads_dtype: torch.dtype,
) -> Any:  # fmt: skip
    return x.new_empty(*x.shape[:2], heads, rank, dtype=reads_dtype)


def triton_gated_read(
    x: Tensor, q_weight: Tensor, state: Tensor, spec: GateSpec, token_mask: Tensor | None, reads_dtype: torch.dtype
) -> Tensor:
    """Same arguments and results as :func:`deltamem_agents.ops.gated_read`, without gradients; few tokens."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    return from_python(_gated_read, _gated_read_op)(
        x, q_weight.contiguous(), state.float().contiguous(), as_bytes(token_mask),
        spec.heads, spec.rank, spec.normalize, reads_dtype,
    )  # fmt: skip
