"""Triton kernels of the recurrence, parallel over chunks of tokens: what each computes stands in README.md.

A program is one warp. Its tile (P, G, P/V, V) holds, for G state heads, the rows of S on the lanes (axes 0 and 1) and
the keys in the registers of each lane (axes 2 and 3, V of them in one load), so a product with k or q needs no other
lane. Rank r is padded to P, a power of two; G P = 32. Heads are numbered over (B, H); all tensors are contiguous.
The order of the axes is what makes every load of a tile choose that one layout.
"""
# mypy: disable-error-code="no-untyped-def,assignment"
# ruff: noqa: RUF005 (a kernel's tuples are joined with +)

import triton
import triton.language as tl

# Numbers that must not make another variant of a kernel: a row gets the same bits in any batch.
OPAQUE = ["T", "H", "BH", "C", "COUNT"]


@triton.jit
def _places(T, H, BH, R: tl.constexpr, P: tl.constexpr, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """Heads (1, 1, G, 1), offsets of their first token's keys (tile) and rows (1, 1, G, P), what is no padding."""
    V: tl.constexpr = min(P, 4)
    i = tl.arange(0, P)[:, None, None, None]
    head = tl.program_id(1) * G + tl.arange(0, G)[None, :, None, None]
    c = (tl.arange(0, P // V)[:, None] * V + tl.arange(0, V)[None, :])[None, None, :, :]
    first = ((head // H).to(tl.int64) * T * H + head % H) * R
    keys = tl.broadcast_to(first + c, (P, G, P // V, V))
    is_key = tl.broadcast_to(head < BH, (P, G, P // V, V))
    is_row = tl.broadcast_to(head < BH, (P, G, 1, 1))
    if R != P:
        is_key = is_key & (c < R) & (i < R)
        is_row = is_row & (i < R)
    return head, i, c, keys, first + i, is_key, is_row


@triton.jit
def _inner(x, y):  # type: ignore[no-untyped-def]
    """Sum over the keys: two tiles -> (1, 1, G, P)."""
    return tl.sum(tl.sum(x * y, axis=2, keep_dims=True), axis=3, keep_dims=True)


@triton.jit
def _take(ptr, at, mask, other: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(ptr + at, mask=mask, other=other).to(tl.float32)


@triton.jit
def _writes(k_ptr, keep_ptr, erase_ptr, mask_ptr, keys, rows, first, is_key, is_row,
            R: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """k, keep and erase of one token, and where it writes; what may not write keeps all and erases nothing."""
    if MASKED:
        writes = tl.load(mask_ptr + first // R, mask=is_row, other=0) != 0
        is_row = is_row & writes
        is_key = is_key & writes
    k = _take(k_ptr, keys, is_key, 0.0)
    return k, _take(keep_ptr, rows, is_row, 1.0), _take(erase_ptr, rows, is_row, 0.0), is_row


@triton.jit
def _move_block(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, dout_ptr, mask_ptr, keys, rows, first,
                is_key, is_row, left, step, brings, R: tl.constexpr, U: tl.constexpr, MASKED: tl.constexpr,
                REVERSE: tl.constexpr):  # fmt: skip
    """(k, keep, erase, x, a) of the next U tokens: z becomes keep z + (a x, if brings) - erase (z k) k."""
    block = ()
    for u in tl.static_range(U):
        at, live = u * step, u < left
        k, keep, erase, writes = _writes(
            k_ptr, keep_ptr, erase_ptr, mask_ptr, keys + at, rows + at, first + at, is_key & live, is_row & live,
            R, MASKED,
        )  # fmt: skip
        x, a = k, erase
        if REVERSE:
            x = _take(q_ptr, keys + at, is_key & live & brings, 0.0)
            a = _take(dout_ptr, rows + at, is_row & live & brings, 0.0)
        else:
            writes = writes & brings
            a = _take(write_ptr, rows + at, writes, 0.0) * _take(v_ptr, rows + at, writes, 0.0)
        block = block + (k, keep, erase, x, a)
    return block


@triton.jit(do_not_specialize=OPAQUE)
def transition_kernel(
    q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, dout_ptr, mask_ptr, moves_ptr, T, H, BH, C,
    R: tl.constexpr, P: tl.constexpr, G: tl.constexpr, U: tl.constexpr, MASKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """moves (N-1, BH, r+1, r, r): where a chunk takes basis vector e < r of a row, and, in place r, a row of zeros.

    Forward: the state through chunks 0..N-2. REVERSE: its gradient, backwards through chunks 1..N-1.
    """
    slot, basis = tl.program_id(0), tl.program_id(2)
    head, i, c, keys, rows, is_key, is_row = _places(T, H, BH, R, P, G)
    t0 = (slot + 1) * C if REVERSE else slot * C
    left = tl.minimum(C, T - t0)
    step = H * R
    if REVERSE:
        t0 += left - 1
        step = -step
    keys += t0 * H * R
    rows += t0 * H * R
    first = rows - i
    brings = basis == R
    z = tl.where(is_key & (c == basis), 1.0, 0.0)
    block = _move_block(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, dout_ptr, mask_ptr, keys, rows, first,
                        is_key, is_row, left, step, brings, R, U, MASKED, REVERSE)  # fmt: skip
    for t in range(0, left, U):
        keys += U * step
        rows += U * step
        first += U * step
        following = _move_block(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, dout_ptr, mask_ptr, keys, rows,
                                first, is_key, is_row, left - t - U, step, brings, R, U, MASKED, REVERSE)  # fmt: skip
        for u in tl.static_range(U):
            k = block[5 * u]
            erased = block[5 * u + 2] * _inner(z, k)
            if REVERSE:
                z = block[5 * u + 1] * z - erased * k + block[5 * u + 4] * block[5 * u + 3]
            else:
                z = block[5 * u + 1] * z + (block[5 * u + 4] - erased) * k
        block = following
    at = (slot.to(tl.int64) * BH + head) * (R + 1) + basis
    tl.store(moves_ptr + at * R * R + i * R + c, z, mask=is_key)


@triton.jit(do_not_specialize=OPAQUE)
def combine_kernel(
    first_ptr, moves_ptr, out_ptr, BH, COUNT,
    R: tl.constexpr, P: tl.constexpr, SPAN: tl.constexpr, STAGES: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """out (N-1, BH, r, r): SPAN rows of a head through all moves, from ``first`` (BH, r, r), after each of them."""
    head = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * SPAN + tl.arange(0, SPAN)[:, None]
    c = tl.arange(0, P)[None, :]
    ok = (i < R) & (c < R)
    basis = tl.arange(0, P)[None, :, None]
    move = basis * R * R + (i * R + c)[:, None, :]
    ok_move = ok[:, None, :] & (basis < R)
    s = tl.load(first_ptr + head * R * R + i * R + c, mask=ok, other=0.0)
    for m in tl.range(0, COUNT, num_stages=STAGES):
        slot = COUNT - 1 - m if REVERSE else m
        at = slot.to(tl.int64) * BH + head
        moves = tl.load(moves_ptr + at * (R + 1) * R * R + move, mask=ok_move, other=0.0)
        brought = tl.load(moves_ptr + (at * (R + 1) + R) * R * R + i * R + c, mask=ok, other=0.0)
        new = tl.sum(s[:, :, None] * moves, axis=1) + brought
        s = tl.where(new == s, s, new)  # not even the sign of a zero changes where nothing was written
        tl.store(out_ptr + at * R * R + i * R + c, s, mask=ok)


@triton.jit
def _read_block(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, keys, rows, first, is_key, is_row,
                left, step, R: tl.constexpr, U: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """(q, k, keep, erase, write v) of the next U tokens."""
    block = ()
    for u in tl.static_range(U):
        at, live = u * step, u < left
        q = _take(q_ptr, keys + at, is_key & live, 0.0)
        k, keep, erase, writes = _writes(
            k_ptr, keep_ptr, erase_ptr, mask_ptr, keys + at, rows + at, first + at, is_key & live, is_row & live,
            R, MASKED,
        )  # fmt: skip
        told = _take(write_ptr, rows + at, writes, 0.0) * _take(v_ptr, rows + at, writes, 0.0)
        block = block + (q, k, keep, erase, told)
    return block


@triton.jit
def _start(state_ptr, starts_ptr, n, BH, inside, is_key, R: tl.constexpr):
    """The states before chunk n: ``state`` (BH, r, r) for the first, from ``starts`` (N-1, BH, r, r) for the others."""
    if n == 0:
        z = tl.load(state_ptr + inside, mask=is_key, other=0.0)
    else:
        z = tl.load(starts_ptr + (n - 1).to(tl.int64) * BH * R * R + inside, mask=is_key, other=0.0)
    return z


@triton.jit(do_not_specialize=OPAQUE)
def read_kernel(
    q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, state_ptr, starts_ptr, reads_ptr, final_ptr,
    T, H, BH, C, R: tl.constexpr, P: tl.constexpr, G: tl.constexpr, U: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """reads (B, T, H, r), each chunk from its start; the last chunk stores the final states (BH, r, r)."""
    n = tl.program_id(0)
    head, i, c, keys, rows, is_key, is_row = _places(T, H, BH, R, P, G)
    inside = head * R * R + i * R + c
    start = _start(state_ptr, starts_ptr, n, BH, inside, is_key, R)
    z = start
    left = tl.minimum(C, T - n * C)
    step = H * R
    keys += n * C * step
    rows += n * C * step
    first = rows - i
    block = _read_block(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, keys, rows, first,
                        is_key, is_row, left, step, R, U, MASKED)  # fmt: skip
    for t in range(0, left, U):
        following = _read_block(q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr, mask_ptr, keys + U * step,
                                rows + U * step, first + U * step, is_key, is_row, left - t - U, step,
                                R, U, MASKED)  # fmt: skip
        for u in tl.static_range(U):
            read = _inner(z, block[5 * u]).to(reads_ptr.dtype.element_ty)
            tl.store(reads_ptr + rows + u * step, read, mask=is_row & (t + u < left))
            k = block[5 * u + 1]
            update = block[5 * u + 4] - block[5 * u + 3] * _inner(z, k)
            z = block[5 * u + 2] * z + update * k
        block = following
        keys += U * step
        rows += U * step
        first += U * step
    if n == tl.num_programs(0) - 1:  # not even the sign of a zero changes where nothing was written
        tl.store(final_ptr + inside, tl.where(z == start, start, z), mask=is_key)
