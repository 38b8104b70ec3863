"""The Triton kernel that takes gradients of queries, keys, values and gates back to the projections."""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .gate_kernels import _gates, _raw, _tanh
from .scan_kernels import OPAQUE


@triton.jit
def _address_gradient(x, dy, NORMALIZE: tl.constexpr):
    """The gradient of projections ``x``, given that of their addresses; torch's normalize holds the norm at 1e-12."""
    if NORMALIZE:
        t = _tanh(x)
        norm = tl.sqrt(tl.sum(t * t, axis=2, keep_dims=True))
        y = t / tl.maximum(norm, 1e-12)
        along = tl.where(norm > 1e-12, tl.sum(y * dy, axis=2, keep_dims=True), 0.0)
        dy = (dy - along * y) / tl.maximum(norm, 1e-12) * (1.0 - t * t)
    return dy


@triton.jit
def _put(ptr, at, value, mask):
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=OPAQUE)
def project_backward_kernel(
    projected_ptr, beta_ptr, lambda_ptr, token_ptr, mask_ptr, dq_ptr, dk_ptr, dv_ptr, dkeep_ptr, derase_ptr,
    dwrite_ptr, dprojected_ptr, sums_ptr, ROW, H, COUNT,
    R: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
    COUPLED: tl.constexpr, NORMALIZE: tl.constexpr, RANKWISE: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradients (B T, H, r) to those of the projections (B T, columns), BLOCK of COUNT tokens; masked ones get zeros.

    sums (programs, 1 or 2, G) float32: what these tokens give to the gradients of the biases of β and λ.
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None, None]
    head = tl.arange(0, HEADS)[None, :, None]
    i = tl.arange(0, P)[None, None, :]
    width = H * R
    row_ok = (token < COUNT) & (head < H)
    ok = row_ok & (i < R)
    reads = row_ok
    if PADDED:
        reads = reads & (tl.load(token_ptr + token, mask=token < COUNT, other=0) != 0)
    writes = reads
    if MASKED:
        writes = writes & (tl.load(mask_ptr + token * H + head, mask=row_ok, other=0) != 0)
    number = token.to(tl.int64)
    at, to = number * ROW, number * width + head * R + i
    dkeep, derase, dwrite = (
        _raw(dkeep_ptr, to, writes & ok), _raw(derase_ptr, to, writes & ok), _raw(dwrite_ptr, to, writes & ok),
    )  # fmt: skip
    g, count, gate_ok, has_gate = head * R + i, width, ok, (head < H) & (i < R)
    if not RANKWISE:
        dkeep, derase, dwrite = (
            tl.sum(dkeep, axis=2, keep_dims=True), tl.sum(derase, axis=2, keep_dims=True),
            tl.sum(dwrite, axis=2, keep_dims=True),
        )  # fmt: skip
        g, count, gate_ok, has_gate = head, H, row_ok, head < H
    keep, _, beta = _gates(projected_ptr, beta_ptr, lambda_ptr, at + 3 * width + g, g, writes & gate_ok, count,
                           MODE, COUPLED)  # fmt: skip
    dbeta = derase + dwrite
    if MODE == "lambda_outside":
        dbeta = derase * keep + dwrite
        dkeep = dkeep + derase * beta
    if COUPLED and MODE != "no_lambda":
        dbeta = dbeta - dkeep
    dbeta = dbeta * beta * (1.0 - beta)
    gates = count if COUPLED else 2 * count
    sums = tl.program_id(0).to(tl.int64) * gates + g
    back = number * (3 * width + gates)
    _put(dprojected_ptr, back + 3 * width + g, dbeta, gate_ok)
    tl.store(sums_ptr + sums, tl.sum(dbeta, axis=0, keep_dims=True), mask=has_gate)
    if not COUPLED:
        dlambda = dkeep * keep * (1.0 - keep)  # without λ, keep is 1: zero
        _put(dprojected_ptr, back + 3 * width + count + g, dlambda, gate_ok)
        tl.store(sums_ptr + sums + count, tl.sum(dlambda, axis=0, keep_dims=True), mask=has_gate)
    at, back = at + head * R + i, back + head * R + i
    reads, writes = reads & ok, writes & ok
    dq = _address_gradient(_raw(projected_ptr, at, reads), _raw(dq_ptr, to, reads), NORMALIZE)
    _put(dprojected_ptr, back, dq, ok)
    dk = _address_gradient(_raw(projected_ptr, at + width, writes), _raw(dk_ptr, to, writes), NORMALIZE)
    _put(dprojected_ptr, back + width, dk, ok)
    _put(dprojected_ptr, back + 2 * width, _raw(dv_ptr, to, writes), ok)
