"""The recurrence as Triton kernels, parallel over chunks of tokens, forward and backward, for CUDA devices.

Kept between the passes: the inputs and the state at the start of each chunk. No atomics: results do not change from
run to run, nor with the other rows of a batch.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from .mask import as_bytes
from .scan_backward_kernel import backward_kernel
from .scan_kernels import combine_kernel, read_kernel, transition_kernel

CHUNKS = ((910, 32), (3640, 64), (14560, 128))  # below so many tokens, chunks of so many: about sqrt(2.25 T)
LONGEST = 256
WARPS = 512  # that an H100 or H200 runs at full speed, about
WALK = 10  # steps over chunks in the time of a step of the whole walk, its gradients included, about
SUB = 8  # the backward pass keeps every SUB-th state of a chunk in scratch: an eighth of all states


def chunk_length(length: int) -> int:
    """Tokens of a chunk: the walk through one takes as long as the walk over all chunks."""
    return next((size for below, size in CHUNKS if length < below), LONGEST)


def training_chunk(length: int, rows: int, rank: int) -> int:
    """Tokens of a chunk where gradients are wanted: all of them where the ``rows`` states alone fill the device.

    Chunks walk each token r + 1 times more, which costs nothing only where the device has nothing else to do. So this
    depends on the batch, unlike :func:`chunk_length`.
    """
    size, warps = chunk_length(length), triton.cdiv(rows, launch_shape(rank)["G"])
    count = triton.cdiv(length, size)
    moves, walks = triton.cdiv(warps * (count - 1) * (rank + 1), WARPS), triton.cdiv(warps * count, WARPS)
    whole = WALK * triton.cdiv(warps, WARPS) * length
    return triton.cdiv(length, SUB) * SUB if whole < (moves + walks) * size + count else size


def launch_shape(rank: int) -> dict[str, int]:
    """R, its padding P, and the G heads that share a warp of 32 lanes."""
    padded = triton.next_power_of_2(rank)
    return {"R": rank, "P": padded, "G": max(1, 32 // padded), "num_warps": 1}


def _unroll(rank: int) -> int:
    return max(1, min(4, 32 // triton.next_power_of_2(rank)))


def _held(rank: int) -> int:
    """States that the backward pass holds in registers: as many as fit without spilling."""
    return max(1, min(SUB, 32 // triton.next_power_of_2(rank)))


def _boundaries(
    first: Tensor, tokens: list[Tensor], dout: Tensor, mask: Tensor | None, size: int, reverse: bool
) -> Tensor:
    """(N-1, B H, r, r): states before chunks 1..N-1 from ``first``; reverse: gradients after chunks 0..N-2."""
    batch, length, heads, rank = tokens[0].shape
    count, rows = -(-length // size) - 1, batch * heads
    out = first.new_empty(count, rows, rank, rank)
    if count == 0:
        return out
    moves = first.new_empty(count, rows, rank + 1, rank, rank)
    shape = launch_shape(rank)
    transition_kernel[(count, triton.cdiv(rows, shape["G"]), rank + 1)](
        *tokens, dout, tokens[0] if mask is None else mask, moves, length, heads, rows, size,
        **shape, U=_unroll(rank), MASKED=mask is not None, REVERSE=reverse,
    )  # fmt: skip
    padded = shape["P"]
    at_once = max(1, min(padded, 1024 // padded**2))
    combine_kernel[(rows, triton.cdiv(rank, at_once))](
        first, moves, out, rows, count, R=rank, P=padded, SPAN=at_once, STAGES=6, REVERSE=reverse, num_warps=1
    )
    return out


def scan_chunks(
    tokens: list[Tensor], state: Tensor, mask: Tensor | None, reads: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Fill ``reads`` (any float dtype); the final states and the states at the starts of chunks 1..N-1.

    Args:
        tokens: q, k, v, keep, erase, write (B, T, H, r), contiguous, of any float dtype.
        mask: (B, T, H) uint8, contiguous: which tokens write.
        size: tokens of a chunk, a multiple of :data:`SUB` where gradients are wanted.
    """
    batch, length, heads, rank = tokens[0].shape
    starts, final = _boundaries(state, tokens, tokens[0], mask, size, reverse=False), torch.empty_like(state)
    shape = launch_shape(rank)
    read_kernel[(triton.cdiv(length, size), triton.cdiv(batch * heads, shape["G"]))](
        *tokens, tokens[0] if mask is None else mask, state, starts, reads, final,
        length, heads, batch * heads, size, **shape, U=_unroll(rank), MASKED=mask is not None,
    )  # fmt: skip
    return final, starts


def starts_shape(size: int, batch: int, length: int, heads: int, rank: int) -> tuple[int, int, int, int]:
    """Of the states at the starts of chunks 1..N-1 of ``size`` tokens."""
    return -(-length // size) - 1, batch * heads, rank, rank


def scan_backward(
    tokens: list[Tensor], state: Tensor, mask: Tensor | None, starts: Tensor, dreads: Tensor, dfinal: Tensor, size: int
) -> list[Tensor]:
    """The gradients of ``tokens`` and ``state``; arguments as of :func:`scan_chunks`, and what that gave as starts."""
    batch, length, heads, rank = tokens[0].shape
    chunks, rows = -(-length // size), batch * heads
    scratch = state.new_empty(chunks, size // SUB, rows, rank, rank)
    grads = [torch.empty_like(x) for x in (*tokens, state)]
    shape = launch_shape(rank)
    ends = _boundaries(dfinal, tokens, dreads, mask, size, reverse=True)
    backward_kernel[(chunks, triton.cdiv(rows, shape["G"]))](
        *tokens, tokens[0] if mask is None else mask, state, starts, dreads, dfinal, ends, scratch, *grads,
        length, heads, rows, size, **shape, SUB=SUB, HOLD=_held(rank), MASKED=mask is not None,
    )  # fmt: skip
    return grads


@torch.library.custom_op("deltamem::scan_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    reads = torch.empty_like(q, dtype=torch.float32)
    with torch.cuda.device_of(q):
        final, starts = scan_chunks([q, k, v, keep, erase, write], state, mask, reads, chunk_length(q.shape[1]))
    return reads, final, starts


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, mask: Tensor | None
) -> Any:
    starts = state.new_empty(starts_shape(chunk_length(q.shape[1]), *q.shape))
    return torch.empty_like(q, dtype=torch.float32), torch.empty_like(state), starts


@torch.library.custom_op("deltamem::scan_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, mask: Tensor | None,
    starts: Tensor, dreads: Tensor, dfinal: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.cuda.device_of(q):
        tokens, size = [q, k, v, keep, erase, write], chunk_length(q.shape[1])
        grads = scan_backward(tokens, state, mask, starts, dreads, dfinal, size)
    dq, dk, dv, dkeep, derase, dwrite, dstate = grads
    return dq, dk, dv, dkeep, derase, dwrite, dstate


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, mask: Tensor | None,
    starts: Tensor, dreads: Tensor, dfinal: Tensor,
) -> Any:  # fmt: skip
    return tuple(torch.empty_like(x) for x in (q, k, v, keep, erase, write, state))


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2])


def _differentiate(ctx: Any, dreads: Tensor, dfinal: Tensor, _starts: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(*ctx.saved_tensors, dreads.contiguous(), dfinal.contiguous()), None)


_forward.register_autograd(_differentiate, setup_context=_save)


def triton_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    write_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same arguments, results and gradients as :func:`naive_delta_scan`; float32 inside, tensors on a CUDA device."""
    tokens = (x.contiguous() for x in (q, k, v, keep, erase, write))
    reads, final, _ = _forward(*tokens, state.float().contiguous(), as_bytes(write_mask))
    return reads, final
