"""Triton kernels around the recurrence, without gradients: gates from projections, and a decode step."""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .scan_kernels import OPAQUE, _inner, _places


@triton.jit
def _tanh(x):
    """Near zero a polynomial: a quotient of exponentials would lose the digits that the norm brings back."""
    y = x * x
    odd = ((((-1382.0 / 155925.0 * y + 62.0 / 2835.0) * y - 17.0 / 315.0) * y + 2.0 / 15.0) * y - 1.0 / 3.0) * y + 1.0
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.25, x * odd, tl.where(x < 0.0, -far, far))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _raw(ptr, at, ok):
    return tl.load(ptr + at, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def _gates(projected_ptr, beta_ptr, lambda_ptr, at, g, ok, GATES, MODE: tl.constexpr, COUPLED: tl.constexpr):
    """keep, erase, write from the columns of β at ``at`` (and of λ, GATES further on), gate numbers ``g``."""
    beta = _sigmoid(_raw(projected_ptr, at, ok) + _raw(beta_ptr, g, ok))
    keep = 1.0 - beta
    if not COUPLED:
        keep = _sigmoid(_raw(projected_ptr, at + GATES, ok) + _raw(lambda_ptr, g, ok))
    erase = beta
    if MODE == "lambda_outside":
        erase = keep * beta
    if MODE == "no_lambda":
        keep = tl.full(beta.shape, 1.0, tl.float32)
    return keep, erase, beta


@triton.jit(do_not_specialize=OPAQUE)
def prepare_kernel(
    projected_ptr, beta_ptr, lambda_ptr, token_ptr, mask_ptr, q_ptr, k_ptr, v_ptr, keep_ptr, erase_ptr, write_ptr,
    ROW, H, COUNT, R: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr, COUPLED: tl.constexpr,
    NORMALIZE: tl.constexpr, RANKWISE: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Projections (B T, columns), ROW numbers apart, to q, k, v and gates (B T H, r), COUNT rows; masks applied."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    i = tl.arange(0, P)[None, :]
    token, head = row // H, row % H
    width = H * R
    ok = (row < COUNT) & (i < R)
    reads = row < COUNT
    if PADDED:
        reads = reads & (tl.load(token_ptr + token, mask=row < COUNT, other=0) != 0)
    writes = reads
    if MASKED:
        writes = writes & (tl.load(mask_ptr + row, mask=row < COUNT, other=0) != 0)
    reads, writes = reads & ok, writes & ok
    at = token.to(tl.int64) * ROW + head * R + i
    q, k = _raw(projected_ptr, at, reads), _raw(projected_ptr, at + width, writes)
    v = _raw(projected_ptr, at + 2 * width, writes)
    if NORMALIZE:
        q, k = _tanh(q), _tanh(k)
        q = q / tl.maximum(tl.sqrt(tl.sum(q * q, axis=1, keep_dims=True)), 1e-12)
        k = k / tl.maximum(tl.sqrt(tl.sum(k * k, axis=1, keep_dims=True)), 1e-12)
    g, count = head * R + i, width
    if not RANKWISE:
        g, count = head + 0 * i, H
    at = token.to(tl.int64) * ROW + 3 * width + g
    keep, erase, write = _gates(projected_ptr, beta_ptr, lambda_ptr, at, g, writes, count, MODE, COUPLED)
    to = row.to(tl.int64) * R + i
    tl.store(q_ptr + to, q, mask=ok)
    tl.store(k_ptr + to, k, mask=ok)
    tl.store(v_ptr + to, v, mask=ok)
    tl.store(keep_ptr + to, tl.where(writes, keep, 1.0), mask=ok)
    tl.store(erase_ptr + to, tl.where(writes, erase, 0.0), mask=ok)
    if MODE == "lambda_outside":
        tl.store(write_ptr + to, tl.where(writes, write, 0.0), mask=ok)


@triton.jit
def _address(projected_ptr, at, ok, NORMALIZE: tl.constexpr):
    x = _raw(projected_ptr, at, ok)
    if NORMALIZE:
        x = _tanh(x)
        x = x / tl.maximum(tl.sqrt(_inner(x, x)), 1e-12)
    return x


@triton.jit(do_not_specialize=OPAQUE)
def step_kernel(
    projected_ptr, beta_ptr, lambda_ptr, token_ptr, mask_ptr, state_ptr, reads_ptr, final_ptr, ROW, T, H, BH,
    R: tl.constexpr, P: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, COUPLED: tl.constexpr,
    NORMALIZE: tl.constexpr, RANKWISE: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A few tokens at once, from projections (B T, columns), ROW numbers apart, to reads and states; G heads a warp."""
    number, i, c, _, rows, is_key, is_row = _places(T, H, BH, R, P, G)
    b, h = number // H, number % H
    width = H * R
    inside = number * R * R + i * R + c
    start = tl.load(state_ptr + inside, mask=is_key, other=0.0)
    z = start
    g, count = h * R + i, width
    if not RANKWISE:
        g, count = h + 0 * i, H
    for t in range(0, T):
        token = b * T + t
        reads = number < BH
        if PADDED:
            reads = reads & (tl.load(token_ptr + token, mask=number < BH, other=0) != 0)
        writes = reads
        if MASKED:
            writes = writes & (tl.load(mask_ptr + token * H + h, mask=number < BH, other=0) != 0)
        at = token.to(tl.int64) * ROW
        q = _address(projected_ptr, at + h * R + c + 0 * i, is_key & reads, NORMALIZE)
        k = _address(projected_ptr, at + width + h * R + c + 0 * i, is_key & writes, NORMALIZE)
        v = _raw(projected_ptr, at + 2 * width + h * R + i, is_row & writes)
        keep, erase, write = _gates(projected_ptr, beta_ptr, lambda_ptr, at + 3 * width + g, g, is_row & writes, count,
                                    MODE, COUPLED)  # fmt: skip
        tl.store(reads_ptr + rows + t * width, _inner(z, q).to(reads_ptr.dtype.element_ty), mask=is_row)
        updated = keep * z + (write * v - erase * _inner(z, k)) * k
        z = tl.where(writes, updated, z)
    tl.store(final_ptr + inside, tl.where(z == start, start, z), mask=is_key)
