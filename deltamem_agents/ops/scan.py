"""One entry for the recurrence: which form runs is decided here and nowhere else."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from .chunk import chunk_delta_scan
from .loop import loop_delta_scan
from .naive import naive_delta_scan

HAS_TRITON = find_spec("triton") is not None  # once: the choice must not break a compiled graph
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
    if form is not None and form not in _FORMS:
        raise ValueError(f"no form {form!r} of the scan here; there are {', '.join(_FORMS)}")
    with torch.autocast(q.device.type, enabled=False):
        return _FORMS[form or choose_form(q)](q, k, v, keep, erase, write, state, write_mask)


def delta_read(q: Tensor, state: Tensor) -> Tensor:
    """Reads alone, r_t = S q_t: q (B, T, H, r) and state (B, H, r, r) -> (B, T, H, r)."""
    with torch.autocast(q.device.type, enabled=False):
        return torch.einsum("bhij,bthj->bthi", state, q.to(state.dtype))


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


_FORMS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "naive": naive_delta_scan,
    "chunk": chunk_delta_scan,
    "loop": loop_delta_scan,
}
if HAS_TRITON:
    from .triton_scan import triton_delta_scan

    _FORMS["triton"] = triton_delta_scan
