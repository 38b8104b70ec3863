"""The training path on CUDA devices: from projections to reads, and all gradients back, as one operator of torch.

Kept between the passes: the projections and the states between chunks. Queries, keys, values and gates are made again.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from .gate_backward_kernel import project_backward_kernel
from .gates import GateSpec
from .mask import as_bytes
from .triton_gates import ROWS, gate_arguments, gate_flags, prepare
from .triton_scan import launch_shape, scan_backward, scan_chunks, starts_shape, training_chunk


def _chunk(reads: Tensor) -> int:
    """Tokens of a chunk for reads (B, T, H, r)."""
    batch, length, heads, rank = reads.shape
    return training_chunk(length, batch * heads, rank)


@torch.library.custom_op("deltamem::gated_scan_forward", mutates_args=())
def _forward(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, token_mask: Tensor | None,
    write_mask: Tensor | None, heads: int, rank: int, mode: str, coupled: bool, normalize: bool, rankwise: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    args = gate_arguments(projected, beta_bias, lambda_bias, token_mask, write_mask)
    flags = gate_flags(mode, coupled, normalize, rankwise, token_mask, write_mask)
    reads = state.new_empty(*projected.shape[:2], heads, rank)
    with torch.cuda.device_of(projected):
        tokens = prepare(args, projected.shape[:2], heads, rank, flags)
        final, starts = scan_chunks(tokens, state, None, reads, _chunk(reads))
    return reads, final, starts


@_forward.register_fake
def _(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, token_mask: Tensor | None,
    write_mask: Tensor | None, heads: int, rank: int, mode: str, coupled: bool, normalize: bool, rankwise: bool,
) -> Any:  # fmt: skip
    reads = state.new_empty(*projected.shape[:2], heads, rank)
    return reads, torch.empty_like(state), state.new_empty(starts_shape(_chunk(reads), *reads.shape))


@torch.library.custom_op("deltamem::gated_scan_backward", mutates_args=())
def _backward(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, token_mask: Tensor | None,
    write_mask: Tensor | None, starts: Tensor, dreads: Tensor | None, dfinal: Tensor | None, heads: int, rank: int,
    mode: str, coupled: bool, normalize: bool, rankwise: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the projections, of the biases (1 or 2, G) float32, and of the states."""
    args = gate_arguments(projected, beta_bias, lambda_bias, token_mask, write_mask)
    flags = gate_flags(mode, coupled, normalize, rankwise, token_mask, write_mask)
    count, shape = projected.shape[0] * projected.shape[1], launch_shape(rank)
    dreads = state.new_zeros(*projected.shape[:2], heads, rank) if dreads is None else dreads.contiguous()
    dfinal = torch.zeros_like(state) if dfinal is None else dfinal.contiguous()
    padded = triton.next_power_of_2(heads)
    block = max(1, ROWS // (padded * shape["P"]))
    programs = triton.cdiv(count, block)
    dprojected = projected.new_empty(projected.shape)
    sums = state.new_empty(programs, 1 if coupled else 2, heads * rank if rankwise else heads)
    with torch.cuda.device_of(projected):
        tokens = prepare(args, projected.shape[:2], heads, rank, flags)
        *grads, dstate = scan_backward(tokens, state, None, starts, dreads, dfinal, _chunk(dreads))
        project_backward_kernel[(programs,)](
            *args, *grads, dprojected, sums, args[0].stride(0), heads, count, R=rank, P=shape["P"], HEADS=padded,
            BLOCK=block, **flags,
        )  # fmt: skip
    return dprojected, sums.sum(0), dstate


@_backward.register_fake
def _(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, token_mask: Tensor | None,
    write_mask: Tensor | None, starts: Tensor, dreads: Tensor | None, dfinal: Tensor | None, heads: int, rank: int,
    mode: str, coupled: bool, normalize: bool, rankwise: bool,
) -> Any:  # fmt: skip
    biases = state.new_empty(1 if coupled else 2, heads * rank if rankwise else heads)
    return projected.new_empty(projected.shape), biases, torch.empty_like(state)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], output[2])
    ctx.spec = inputs[6:]
    ctx.set_materialize_grads(False)  # no zeros for the states between chunks


def _differentiate(
    ctx: Any, dreads: Tensor | None, dfinal: Tensor | None, _starts: Tensor | None
) -> tuple[Tensor | None, ...]:
    _, _, mode, coupled, _, _ = ctx.spec
    beta_bias, lambda_bias = ctx.saved_tensors[1:3]
    dprojected, biases, dstate = _backward(*ctx.saved_tensors, dreads, dfinal, *ctx.spec)
    has_lambda = lambda_bias is not None and not coupled and mode != "no_lambda"
    dlambda = biases[1].to(lambda_bias.dtype) if has_lambda else None
    return dprojected, biases[0].to(beta_bias.dtype), dlambda, dstate, *[None] * 8


_forward.register_autograd(_differentiate, setup_context=_save)


def triton_gated_scan_with_gradients(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, state: Tensor, spec: GateSpec,
    token_mask: Tensor | None, write_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Same arguments, results and gradients as :func:`deltamem_agents.ops.gated_scan`; float32 inside."""
    if projected.stride(-1) != 1:
        projected = projected.contiguous()
    reads, final, _ = _forward(
        projected, beta_bias, lambda_bias, state.float().contiguous(), as_bytes(token_mask), as_bytes(write_mask),
        spec.heads, spec.rank, spec.mode, spec.coupled, spec.normalize, spec.rankwise,
    )  # fmt: skip
    return reads, final
