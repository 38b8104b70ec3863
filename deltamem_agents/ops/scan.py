"""One entry for the recurrence: which form runs is decided here and nowhere else."""

from collections.abc import Callable

import torch
from torch import Tensor

from .chunk import chunk_delta_scan
from .device import HAS_TRITON, needs_gradients, say
from .gates import GateSpec, address, gates, needed
from .loop import loop_delta_scan
from .masked import masked_linear
from .naive import naive_delta_scan

WIDE = 24  # rows of all states, from which the loop is faster than chunks on CPU without gradients
SHORT = 8  # up to this many tokens a loop is the fastest form on CPU


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    write_mask: Tensor | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Read and write the states of one layer: see :func:`naive_delta_scan` for shapes and equations.

    Args:
        form: "naive", "chunk", "loop" (no gradients) or "triton" forces a form; None takes the best one for the device
            and length.
    """
    _check(form)
    chosen = form or choose_form(q)
    if not torch.compiler.is_compiling():
        say("delta_scan", q.device.type, chosen, "asked for" if form else _why(q, chosen))
    with torch.autocast(q.device.type, enabled=False):
        return _FORMS[chosen](q, k, v, keep, erase, write, state, write_mask)


def gated_scan(
    projected: Tensor,
    beta_bias: Tensor,
    lambda_bias: Tensor | None,
    state: Tensor,
    spec: GateSpec,
    token_mask: Tensor | None = None,
    write_mask: Tensor | None = None,
    reads_dtype: torch.dtype = torch.float32,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`gates` and :func:`delta_scan` in one: on CUDA a few kernels do all of it, and all of its gradients.

    Args:
        projected: (B, T, columns), any float dtype, see :func:`gates`; rows may stand apart.
        state: (B, H, r, r).
        token_mask: (B, T) bool, False on padding: it does not write, and its reads are zero whatever it holds.
        write_mask: (B, T, H) bool. None: all tokens but padding write.
        form: as in :func:`delta_scan`.

    Returns:
        reads (B, T, H, r) in ``reads_dtype`` and the state after the last token (B, H, r, r) float32.
    """
    _check(form)
    if projected.shape[-1] != spec.columns:
        raise ValueError(f"a projection of {spec} has {spec.columns} columns, not {projected.shape[-1]}")
    if not spec.coupled and spec.mode != "no_lambda":
        needed(lambda_bias)
    fused = HAS_TRITON and form in (None, "triton") and (projected.is_cuda or form == "triton")
    if fused:
        train = needs_gradients(projected, beta_bias, lambda_bias, state)
        if not torch.compiler.is_compiling():
            say("gated_scan", projected.device.type, "triton", _inside(projected.shape[1], state, train))
        args = (projected, beta_bias, lambda_bias, state, spec, token_mask, write_mask)
        if not train:
            return triton_gated_scan(*args, reads_dtype)
        reads, final = triton_gated_scan_with_gradients(*args)
        return reads.to(reads_dtype), final
    tokens = gates(projected, beta_bias, lambda_bias, spec, token_mask)
    if token_mask is not None:
        padding = token_mask[..., None].expand(*token_mask.shape, spec.heads)
        write_mask = padding if write_mask is None else write_mask & padding
    reads, final = delta_scan(*tokens, state.float(), write_mask, form)
    return reads.to(reads_dtype), final


def delta_read(q: Tensor, state: Tensor) -> Tensor:
    """Reads alone, r_t = S q_t: q (B, T, H, r) and state (B, H, r, r) -> (B, T, H, r)."""
    with torch.autocast(q.device.type, enabled=False):
        return torch.einsum("bhij,bthj->bthi", state, q.to(state.dtype))


def gated_read(
    x: Tensor,
    q_weight: Tensor,
    state: Tensor,
    spec: GateSpec,
    token_mask: Tensor | None = None,
    reads_dtype: torch.dtype | None = None,
    form: str | None = None,
) -> Tensor:
    """Project, address and read, r_t = S norm(tanh(W_q x_t)); on CUDA one kernel where tokens are few.

    Args:
        x: (B, T, D); q_weight: (R, D); state: (B, H, r, r).
        token_mask: (B, T) bool, False on padding, whose reads are zero.
        reads_dtype: None is float32.
        form: "triton" or "torch"; None takes the best here.

    Returns:
        (B, T, H, r) in ``reads_dtype``.
    """
    if form not in (None, "torch", "triton") or (form == "triton" and not HAS_TRITON):
        raise ValueError(f"no form {form!r} of the reads here")
    dtype = reads_dtype or torch.float32
    if HAS_TRITON and form is None and x.is_cuda and x.shape[0] * x.shape[1] <= DECODE:
        form = None if needs_gradients(x, q_weight, state) else "triton"
    if form == "triton":
        return triton_gated_read(x, q_weight, state, spec, token_mask, dtype)
    with torch.autocast(x.device.type, enabled=False):
        projected = masked_linear(x.to(q_weight.dtype), q_weight, token_mask)
        if token_mask is not None:
            projected = torch.where(token_mask[..., None], projected, torch.zeros_like(projected))
        return delta_read(address(projected, spec), state.float()).to(dtype)


def choose_form(q: Tensor) -> str:
    """The form that :func:`delta_scan` takes for queries like ``q`` (B, T, H, r).

    Without gradients on CPU the loop wins as soon as one step has enough to do: it touches (B, H, r, r) numbers a
    token, the chunks (B, H, 32, 32, r) a chunk. The loop has no gradients.
    """
    if q.is_cuda and HAS_TRITON:
        return "triton"
    batch, length, heads, rank = q.shape
    if not torch.is_grad_enabled() and (length <= SHORT or batch * heads * rank >= WIDE):
        return "loop"
    return "naive" if length <= SHORT else "chunk"


def _why(q: Tensor, form: str) -> str:
    if form == "triton":
        return f"chunks of {chunk_length(q.shape[1])} tokens"
    reason = "gradients" if torch.is_grad_enabled() else "no gradients"
    return f"{'few' if q.shape[1] <= SHORT else 'many'} tokens, {reason}"


def _inside(length: int, state: Tensor, train: bool) -> str:
    if train:
        size = training_chunk(length, state.shape[0] * state.shape[1], state.shape[-1])
        return f"gates inside, gradients too, chunks of {size} tokens"
    return f"gates inside, {'token by token' if length <= STEP else f'chunks of {chunk_length(length)} tokens'}"


def _check(form: str | None) -> None:
    if form is not None and form not in _FORMS:
        raise ValueError(f"no form {form!r} of the scan here; there are {', '.join(_FORMS)}")


_FORMS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "naive": naive_delta_scan,
    "chunk": chunk_delta_scan,
    "loop": loop_delta_scan,
}
if HAS_TRITON:
    from .triton_gates import DECODE, STEP, triton_gated_read, triton_gated_scan
    from .triton_scan import chunk_length, training_chunk, triton_delta_scan
    from .triton_training import triton_gated_scan_with_gradients

    _FORMS["triton"] = triton_delta_scan
