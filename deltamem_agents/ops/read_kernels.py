"""Triton kernels of reads alone: the query's projection, address and read of one token, and Δ of all projections.

A program waits for memory. Its warps take rows of the weight: axis 0 of a tile (A, B, C) is the warps, B rows for each,
and C columns are 16 bytes on each of 32 lanes. So a row's sum leaves no warp, x is loaded once by each warp, and the
loads of AHEAD chunks of C columns are issued before the first is used.
"""
# mypy: disable-error-code="no-untyped-def,assignment"

import triton
import triton.language as tl

from .gate_kernels import _tanh


@triton.jit
def _load(ptr, at, ok, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(ptr + at, mask=ok, other=0.0)
    return tl.load(ptr + at)


@triton.jit
def _spread(x, N: tl.constexpr):
    """x (N,), but what is made from it need not have its layout: without this the loads of S and up would take it."""
    return tl.gather(x, tl.arange(0, N), 0)


@triton.jit
def _chunk(x_ptr, weight_ptr, row, ok, chunk, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
           RAGGED: tl.constexpr):  # fmt: skip
    """Columns of x (A, 1, C), the same for each warp, and of the weight's rows (A, B, C)."""
    d = tl.broadcast_to(chunk * C + tl.arange(0, C)[None, None, :], (A, 1, C))
    x = _load(x_ptr, d, d < D, D % C != 0)
    return x, _load(weight_ptr, row * D + d, ok & (d < D), RAGGED or D % C != 0)


@triton.jit
def _summed(held, x_ptr, weight_ptr, row, ok, first, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
            C: tl.constexpr, DEPTH: tl.constexpr, RAGGED: tl.constexpr):  # fmt: skip
    """Products (A, B, C) of the DEPTH chunks that are held, summed with those of the chunks after them."""
    CHUNKS: tl.constexpr = (D + C - 1) // C
    acc = tl.zeros((A, B, C), tl.float32)
    for n in tl.static_range(CHUNKS):
        acc += held[2 * n].to(tl.float32) * held[2 * n + 1].to(tl.float32)
        if n + DEPTH < CHUNKS:
            held = held + _chunk(x_ptr, weight_ptr, row, ok, (first + n + DEPTH) % CHUNKS, D, A, B, C, RAGGED)
    return acc


@triton.jit
def _project(x_ptr, weight_ptr, row, ok, first, tokens, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
             C: tl.constexpr, AHEAD: tl.constexpr, RAGGED: tl.constexpr):  # fmt: skip
    """x (D,) times rows (A, B, 1) of the weight (·, D) -> (A, B) float32, from chunk ``first`` on and around."""
    CHUNKS: tl.constexpr = (D + C - 1) // C
    DEPTH: tl.constexpr = min(AHEAD, CHUNKS)
    held = ()
    for n in tl.static_range(DEPTH):
        held = held + _chunk(x_ptr, weight_ptr, row, ok, (first + n) % CHUNKS, D, A, B, C, RAGGED)
    acc = tl.zeros((A, B, C), tl.float32)
    tl.debug_barrier()  # no load sinks below it
    if tokens > 0:  # always, but the compiler does not know: no sum rises above it
        acc = _summed(held, x_ptr, weight_ptr, row, ok, first, D, A, B, C, DEPTH, RAGGED)
    return tl.sum(acc, axis=2)


@triton.jit
def _read(q, s, axis: tl.constexpr, NORMALIZE: tl.constexpr):
    """S q from ``q`` and ``s`` with the keys on ``axis``; the norm divides the sum, which then need not wait for it."""
    read = tl.sum(s * q, axis=axis)
    if NORMALIZE:
        read = read / tl.maximum(tl.sqrt(tl.sum(tl.broadcast_to(q * q, s.shape), axis=axis)), 1e-12)
    return read


@triton.jit(do_not_specialize=["T", "H"])
def gemv_read_kernel(
    x_ptr, weight_ptr, state_ptr, token_ptr, reads_ptr, ROW, T, H, D: tl.constexpr, R: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, C: tl.constexpr, AHEAD: tl.constexpr, NORMALIZE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One token and head: q = W x (rows of ``weight`` (H r, D)), tanh and norm, read from ``state`` (B, H, r, r)."""
    token, head = tl.program_id(0), tl.program_id(1)
    P: tl.constexpr = A * B
    i = tl.arange(0, P)
    inside = ((token // T) * H + head) * R * R + i[:, None] * R + i[None, :]
    s = _load(state_ptr, inside, (i < R)[:, None] & (i < R)[None, :], R != P)
    live = True
    if PADDED:
        live = tl.load(token_ptr + token) != 0
    row = tl.arange(0, A)[:, None, None] * B + tl.arange(0, B)[None, :, None]
    x_ptr += token.to(tl.int64) * ROW
    q = tl.reshape(_project(x_ptr, weight_ptr, head * R + row, row < R, 0, T, D, A, B, C, AHEAD, R != P), (P,))
    if NORMALIZE:
        q = _tanh(q)
    if PADDED:
        q = tl.where(live, q, 0.0)
    read = _read(q[None, :], s, 1, NORMALIZE).to(reads_ptr.dtype.element_ty)
    tl.store(reads_ptr + (token * H + head) * R + i, read, mask=i < R)


@triton.jit(do_not_specialize=["T"])
def read_correction_kernel(
    x_ptr, weight_ptr, state_ptr, up_ptr, scales_ptr, token_ptr, out_ptr, ROW, T, WIDTH: tl.constexpr,
    H: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, AHEAD: tl.constexpr, NORMALIZE: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """N of the WIDTH numbers of one token's Δ: its reads (H, R), padded to (HEADS, P), times up (WIDTH, H r)^T."""
    token, tile = tl.program_id(0), tl.program_id(1)
    RAGGED: tl.constexpr = H * R != HEADS * P
    h, i, c = tl.arange(0, HEADS)[:, None, None], tl.arange(0, P)[None, :, None], tl.arange(0, P)[None, None, :]
    inside = (((token // T) * H + h) * R + i) * R + c
    s = _load(state_ptr, inside, (h < H) & (i < R) & (c < R), RAGGED)
    n = tl.arange(0, HEADS * P)[None, :]
    o = tile * N + tl.arange(0, N)
    column = n if not RAGGED else n // P * R + n % P
    ok = (o < WIDTH)[:, None] & (n // P < H) & (n % P < R)
    up = _load(up_ptr, o[:, None] * (H * R) + column, ok, RAGGED or WIDTH % N != 0)
    scales = _load(scales_ptr, o, o < WIDTH, WIDTH % N != 0)
    live = True
    if PADDED:
        live = tl.load(token_ptr + token) != 0
    row = tl.arange(0, A)[:, None, None] * B + tl.arange(0, B)[None, :, None]
    ok = (row // P < H) & (row % P < R)
    row = row if not RAGGED else row // P * R + row % P
    q = _project(x_ptr + token.to(tl.int64) * ROW, weight_ptr, row, ok, tile, T, D, A, B, C, AHEAD, RAGGED)
    q = tl.reshape(_spread(tl.reshape(q, (HEADS * P,)), HEADS * P), (HEADS, 1, P))
    if NORMALIZE:
        q = _tanh(q)
    if PADDED:
        q = tl.where(live, q, 0.0)
    reads = tl.reshape(_read(q, s, 2, NORMALIZE).to(up.dtype), (HEADS * P,))
    delta = tl.sum(up.to(tl.float32) * _spread(reads, HEADS * P).to(tl.float32)[None, :], axis=1) * scales
    tl.store(out_ptr + token.to(tl.int64) * WIDTH + o, delta.to(out_ptr.dtype.element_ty), mask=o < WIDTH)


@triton.jit(do_not_specialize=["ROWS"])
def delta_kernel(
    reads_ptr, up_ptr, scales_ptr, out_ptr, ROWS, WIDTH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """out (ROWS, WIDTH) = reads (ROWS, R) up (WIDTH, R)^T times scales (WIDTH,)."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    o = tl.program_id(1) * N + tl.arange(0, N)
    r = tl.arange(0, K)
    reads = tl.load(reads_ptr + m[:, None] * R + r[None, :], mask=(m < ROWS)[:, None] & (r < R)[None, :], other=0.0)
    up = _load(up_ptr, o[None, :] * R + r[:, None], (o < WIDTH)[None, :] & (r < R)[:, None], R != K or WIDTH % N != 0)
    scales = _load(scales_ptr, o, o < WIDTH, WIDTH % N != 0)
    delta = tl.dot(reads, up, input_precision="ieee") * scales[None, :]
    at = out_ptr + m[:, None].to(tl.int64) * WIDTH + o[None, :]
    tl.store(at, delta.to(out_ptr.dtype.element_ty), mask=(m < ROWS)[:, None] & (o < WIDTH)[None, :])
