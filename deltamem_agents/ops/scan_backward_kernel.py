"""The Triton kernel of the recurrence's gradients; tiles as in scan_kernels.py, formulas in README.md."""
# mypy: disable-error-code="no-untyped-def,assignment"
# ruff: noqa: RUF005 (a kernel's tuples are joined with +)

import triton
import triton.language as tl

from .scan_kernels import OPAQUE, _inner, _places, _start, _take, _writes


@triton.jit
def _step(z, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, keys, rows, first, is_key, is_row,
          R: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The state after one more token."""
    k, keep, erase, writes = _writes(
        k_ptr, keep_ptr, erase_ptr, mask_ptr, keys, rows, first, is_key, is_row, R, MASKED
    )  # fmt: skip
    told = _take(write_ptr, rows, writes, 0.0) * _take(v_ptr, rows, writes, 0.0)
    return keep * z + (told - erase * _inner(z, k)) * k


@triton.jit
def _token(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, dout_ptr, mask_ptr, keys, rows, first,
           is_key, is_row, R: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """All that the gradients of one token need: q, k, v, keep, erase, write, the gradient of its read, if it writes."""
    k, keep, erase, writes = _writes(
        k_ptr, keep_ptr, erase_ptr, mask_ptr, keys, rows, first, is_key, is_row, R, MASKED
    )  # fmt: skip
    v = _take(v_ptr, rows, writes, 0.0)
    write = _take(write_ptr, rows, writes, 0.0)
    return (
        _take(q_ptr, keys, is_key, 0.0), k, v, keep, erase, write, _take(dout_ptr, rows, is_row, 0.0), writes,
    )  # fmt: skip


@triton.jit
def _put(ptr, at, value, mask):
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _over_rows(x, P: tl.constexpr, G: tl.constexpr, V: tl.constexpr):
    """Sum over the rows, which all lanes of the head then hold: a store from one of them needs no other layout."""
    return tl.broadcast_to(tl.sum(x, axis=0, keep_dims=True), (P, G, P // V, V))


@triton.jit
def _checkpoint(s, scratch, stride, parts, count, step, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr,
                keys, rows, first, is_key, is_row,
                R: tl.constexpr, SUB: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Walk a chunk and store every SUB-th state, the first one included, ``stride`` numbers apart."""
    for part in range(0, parts):
        tl.store(scratch + part * stride, s, mask=is_key)
        for u in tl.static_range(SUB):
            at, live = (part * SUB + u) * step, part * SUB + u < count
            s = _step(s, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, keys + at, rows + at, first + at,
                      is_key & live, is_row & live, R, MASKED)  # fmt: skip
    tl.debug_barrier()


@triton.jit
def _token_gradients(grad, s, token, dq_ptr, dk_ptr, dv_ptr, dkeep_ptr, derase_ptr, dwrite_ptr, keys, rows,
                     is_key, is_row, P: tl.constexpr, G: tl.constexpr):  # fmt: skip
    """Store the gradients of one token, given that of the state after it; returns that of ``s``, before it."""
    V: tl.constexpr = min(P, 4)
    q, k, v, keep, erase, write, dout, writes = token
    recalled = _inner(s, k)
    gk = _inner(grad, k)
    update = write * v - erase * recalled
    _put(dq_ptr, keys, _over_rows(s * dout, P, G, V), is_key)
    _put(dk_ptr, keys, _over_rows(grad * update - s * (erase * gk), P, G, V), is_key)
    _put(dv_ptr, rows, write * gk, is_row)
    _put(dwrite_ptr, rows, v * gk, is_row)
    _put(derase_ptr, rows, -recalled * gk, is_row)
    _put(dkeep_ptr, rows, tl.where(writes, _inner(grad, s), 0.0), is_row)
    return keep * grad - (erase * gk) * k + dout * q


@triton.jit(do_not_specialize=OPAQUE)
def backward_kernel(
    q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, state_ptr, starts_ptr, dout_ptr, dfinal_ptr,
    ends_ptr, scratch_ptr, dq_ptr, dk_ptr, dv_ptr, dkeep_ptr, derase_ptr, dwrite_ptr, dstate_ptr, T, H, BH, C,
    R: tl.constexpr, P: tl.constexpr, G: tl.constexpr, SUB: tl.constexpr, HOLD: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Gradients (B, T, H, r) of one chunk, from the states before it and the states' gradient after it.

    ends (N-1, BH, r, r): that gradient after chunks 0..N-2. scratch (N, C/SUB, BH, r, r): every SUB-th state.
    """
    n = tl.program_id(0)
    head, i, c, keys, rows, is_key, is_row = _places(T, H, BH, R, P, G)
    inside = head * R * R + i * R + c
    s = _start(state_ptr, starts_ptr, n, BH, inside, is_key, R)
    if n == tl.num_programs(0) - 1:
        grad = tl.load(dfinal_ptr + inside, mask=is_key, other=0.0)
    else:
        grad = tl.load(ends_ptr + n.to(tl.int64) * BH * R * R + inside, mask=is_key, other=0.0)
    count = tl.minimum(C, T - n * C)
    step = H * R
    keys += n * C * step
    rows += n * C * step
    first = rows - i
    parts = tl.cdiv(count, SUB)
    stride = BH.to(tl.int64) * R * R
    scratch = scratch_ptr + n * (C // SUB) * stride + inside
    _checkpoint(s, scratch, stride, parts, count, step, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr,
                keys, rows, first, is_key, is_row, R, SUB, MASKED)  # fmt: skip
    pieces = parts * (SUB // HOLD)
    for back in range(0, pieces):
        piece = pieces - 1 - back
        part = piece // (SUB // HOLD)
        s = tl.load(scratch + part * stride, mask=is_key, other=0.0)
        for t in range(part * SUB, piece * HOLD):
            at = t * step
            s = _step(s, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, keys + at, rows + at, first + at,
                      is_key & (t < count), is_row & (t < count), R, MASKED)  # fmt: skip
        states = (s,)
        for u in tl.static_range(HOLD - 1):
            at, live = (piece * HOLD + u) * step, piece * HOLD + u < count
            s = _step(s, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, keys + at, rows + at, first + at,
                      is_key & live, is_row & live, R, MASKED)  # fmt: skip
            states = states + (s,)
        t = piece * HOLD + HOLD - 1
        token = _token(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, dout_ptr, mask_ptr, keys + t * step,
                       rows + t * step, first + t * step, is_key & (t < count), is_row & (t < count),
                       R, MASKED)  # fmt: skip
        for d in tl.static_range(HOLD):
            now, at, live = token, (t - d) * step, t - d < count
            if d < HOLD - 1:  # before the stores, which no load may pass
                before, earlier = at - step, t - d - 1 < count
                token = _token(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, dout_ptr, mask_ptr, keys + before,
                               rows + before, first + before, is_key & earlier, is_row & earlier,
                               R, MASKED)  # fmt: skip
            grad = _token_gradients(
                grad, states[HOLD - 1 - d], now, dq_ptr, dk_ptr, dv_ptr, dkeep_ptr, derase_ptr, dwrite_ptr,
                keys + at, rows + at, is_key & live & (i == 0), is_row & live, P, G,
            )  # fmt: skip
    if n == 0:
        tl.store(dstate_ptr + inside, grad, mask=is_key)
