"""The gated delta rule of δ-mem as a plain loop: the specification that every other form is tested against.

Notation (arXiv 2605.12357, one layer): B rows, T tokens, H state heads, rank r. ``S`` is (B, H, r, r), its rows index
values and its columns index keys.
"""

import torch
from torch import Tensor

from .mask import neutralise


def naive_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    write_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Read, then write, one token after the other.

        r_t = S_{t-1} q_t
        S_t = diag(keep_t) S_{t-1} - diag(erase_t) (S_{t-1} k_t) k_t^T + diag(write_t) v_t k_t^T

    The erase term uses the undecayed S_{t-1}, and every row of S has its own gates.

    Args:
        q, k, v: (B, T, H, r).
        keep, erase, write: (B, T, H, r), gates in [0, 1], one per row of S.
        state: (B, H, r, r), S before the first token.
        write_mask: (B, T, H) bool; where False the token leaves that head's S as it is, bit for bit. None: all write.

    Returns:
        reads (B, T, H, r) and the state after the last token (B, H, r, r), in the dtype of ``state``.
    """
    reads = []
    k, v, keep, erase, write = neutralise(k, v, keep, erase, write, write_mask)
    q, k, v, keep, erase, write = (x.to(state.dtype) for x in (q, k, v, keep, erase, write))
    for t in range(q.shape[1]):
        reads.append(torch.einsum("bhij,bhj->bhi", state, q[:, t]))
        recalled = torch.einsum("bhij,bhj->bhi", state, k[:, t])
        update = write[:, t] * v[:, t] - erase[:, t] * recalled
        written = keep[:, t, :, :, None] * state + update[..., None] * k[:, t, :, None, :]
        state = written if write_mask is None else torch.where(write_mask[:, t, :, None, None], written, state)
    return torch.stack(reads, dim=1), state
