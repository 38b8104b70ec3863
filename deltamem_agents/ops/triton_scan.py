"""The recurrence as Triton kernels, forward and backward, for CUDA devices.

One program walks the tokens of one (row, state head) with its r x r state in registers. The forward pass keeps the
state only at every CHUNK-th token; the backward pass recomputes the states of one chunk at a time into a small scratch
buffer, so no (B, T, r, r) history is ever stored. No atomics: results do not change from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mask import neutralise

CHUNK = 64


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, s0_ptr, out_ptr, s_ptr, ckpt_ptr,
    T, H, N, R: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    i = tl.arange(0, P)
    ok = i < R
    tile = i[:, None] * R + i[None, :]
    ok2 = ok[:, None] & ok[None, :]
    s = tl.load(s0_ptr + tl.program_id(0) * R * R + tile, mask=ok2, other=0.0)
    base = (b.to(tl.int64) * T * H + h) * R
    for t in range(0, T):
        if t % C == 0:
            tl.store(ckpt_ptr + (tl.program_id(0).to(tl.int64) * N + t // C) * R * R + tile, s, mask=ok2)
        at = base + t * H * R + i
        q = tl.load(q_ptr + at, mask=ok, other=0.0)
        k = tl.load(k_ptr + at, mask=ok, other=0.0)
        v = tl.load(v_ptr + at, mask=ok, other=0.0)
        keep = tl.load(keep_ptr + at, mask=ok, other=0.0)
        erase = tl.load(erase_ptr + at, mask=ok, other=0.0)
        write = tl.load(write_ptr + at, mask=ok, other=0.0)
        tl.store(out_ptr + at, tl.sum(s * q[None, :], axis=1), mask=ok)
        update = write * v - erase * tl.sum(s * k[None, :], axis=1)
        s = keep[:, None] * s + update[:, None] * k[None, :]
    tl.store(s_ptr + tl.program_id(0) * R * R + tile, s, mask=ok2)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, ckpt_ptr, scratch_ptr, dout_ptr, ds_ptr,
    dq_ptr, dk_ptr, dv_ptr, dkeep_ptr, derase_ptr, dwrite_ptr, ds0_ptr,
    T, H, N, R: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    i = tl.arange(0, P)
    ok = i < R
    tile = i[:, None] * R + i[None, :]
    ok2 = ok[:, None] & ok[None, :]
    grad = tl.load(ds_ptr + tl.program_id(0) * R * R + tile, mask=ok2, other=0.0)
    base = (b.to(tl.int64) * T * H + h) * R
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * C * R * R
    for m in range(0, N):
        n = N - 1 - m
        count = tl.minimum(C, T - n * C)
        s = tl.load(ckpt_ptr + (tl.program_id(0).to(tl.int64) * N + n) * R * R + tile, mask=ok2, other=0.0)
        for c in range(0, count):
            tl.store(scratch + c * R * R + tile, s, mask=ok2)
            at = base + (n * C + c) * H * R + i
            k = tl.load(k_ptr + at, mask=ok, other=0.0)
            v = tl.load(v_ptr + at, mask=ok, other=0.0)
            keep = tl.load(keep_ptr + at, mask=ok, other=0.0)
            erase = tl.load(erase_ptr + at, mask=ok, other=0.0)
            write = tl.load(write_ptr + at, mask=ok, other=0.0)
            update = write * v - erase * tl.sum(s * k[None, :], axis=1)
            s = keep[:, None] * s + update[:, None] * k[None, :]
        tl.debug_barrier()
        for d in range(0, count):
            c = count - 1 - d
            s = tl.load(scratch + c * R * R + tile, mask=ok2, other=0.0)
            at = base + (n * C + c) * H * R + i
            q = tl.load(q_ptr + at, mask=ok, other=0.0)
            k = tl.load(k_ptr + at, mask=ok, other=0.0)
            v = tl.load(v_ptr + at, mask=ok, other=0.0)
            keep = tl.load(keep_ptr + at, mask=ok, other=0.0)
            erase = tl.load(erase_ptr + at, mask=ok, other=0.0)
            write = tl.load(write_ptr + at, mask=ok, other=0.0)
            dout = tl.load(dout_ptr + at, mask=ok, other=0.0)
            recalled = tl.sum(s * k[None, :], axis=1)
            gk = tl.sum(grad * k[None, :], axis=1)
            update = write * v - erase * recalled
            tl.store(dq_ptr + at, tl.sum(s * dout[:, None], axis=0), mask=ok)
            dk = tl.sum(grad * update[:, None], axis=0) - tl.sum(s * (erase * gk)[:, None], axis=0)
            tl.store(dk_ptr + at, dk, mask=ok)
            tl.store(dv_ptr + at, write * gk, mask=ok)
            tl.store(dwrite_ptr + at, v * gk, mask=ok)
            tl.store(derase_ptr + at, -recalled * gk, mask=ok)
            tl.store(dkeep_ptr + at, tl.sum(grad * s, axis=1), mask=ok)
            grad = keep[:, None] * grad - (erase * gk)[:, None] * k[None, :] + dout[:, None] * q[None, :]
        tl.debug_barrier()
    tl.store(ds0_ptr + tl.program_id(0) * R * R + tile, grad, mask=ok2)


@torch.library.custom_op("deltamem::scan_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, rank = q.shape
    chunks = -(-length // CHUNK)
    reads, final = torch.empty_like(q), torch.empty_like(state)
    checkpoints = q.new_empty(batch * heads, chunks, rank, rank)
    _forward_kernel[(batch * heads,)](
        q, k, v, keep, erase, write, state, reads, final, checkpoints,
        length, heads, chunks, R=rank, P=triton.next_power_of_2(rank), C=CHUNK, num_warps=1,
    )  # fmt: skip
    return reads, final, checkpoints


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor) -> Any:
    batch, length, heads, rank = q.shape
    checkpoints = q.new_empty(batch * heads, -(-length // CHUNK), rank, rank)
    return torch.empty_like(q), torch.empty_like(state), checkpoints


@torch.library.custom_op("deltamem::scan_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor,
    checkpoints: Tensor, dreads: Tensor, dfinal: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, heads, rank = q.shape
    grads = [torch.empty_like(q) for _ in range(6)]
    dstate = torch.empty_like(dfinal)
    scratch = q.new_empty(batch * heads, CHUNK, rank, rank)
    _backward_kernel[(batch * heads,)](
        q, k, v, keep, erase, write, checkpoints, scratch, dreads, dfinal, *grads, dstate,
        length, heads, checkpoints.shape[1], R=rank, P=triton.next_power_of_2(rank), C=CHUNK, num_warps=1,
    )  # fmt: skip
    dq, dk, dv, dkeep, derase, dwrite = grads
    return dq, dk, dv, dkeep, derase, dwrite, dstate


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor,
    checkpoints: Tensor, dreads: Tensor, dfinal: Tensor,
) -> Any:  # fmt: skip
    return (*(torch.empty_like(q) for _ in range(6)), torch.empty_like(dfinal))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], output[2])


def _differentiate(ctx: Any, dreads: Tensor, dfinal: Tensor, _checkpoints: Tensor) -> tuple[Tensor, ...]:
    return tuple(_backward(*ctx.saved_tensors, dreads.contiguous(), dfinal.contiguous()))


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
    k, v, keep, erase, write = neutralise(k, v, keep, erase, write, write_mask)
    tensors = (x.float().contiguous() for x in (q, k, v, keep, erase, write, state))
    reads, final, _ = _forward(*tensors)
    return reads, final
