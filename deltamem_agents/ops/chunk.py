"""The recurrence in chunks of tokens, in plain torch: for CPU, for training on any device, and differentiable.

The derivation stands in README.md beside this file. One Python step is a chunk, not a token.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .mask import neutralise

CHUNK = 32


def chunk_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    write_mask: Tensor | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Same arguments, results and gradients as :func:`naive_delta_scan`, computed ``chunk_size`` tokens at a time."""
    length = q.shape[1]
    chunks = -(-length // chunk_size)
    k, v, keep, erase, write = neutralise(k, v, keep, erase, write, write_mask)

    def split(x: Tensor, fill: float = 0.0) -> Tensor:  # (B, T, H, r) -> (B, H, N, C, r)
        x = pad(x.to(state.dtype), (0, 0, 0, 0, 0, chunks * chunk_size - length), value=fill)
        return x.unflatten(1, (chunks, chunk_size)).permute(0, 3, 1, 2, 4)

    q, k, v, keep, erase, write = split(q), split(k), split(v), split(keep, 1.0), split(erase), split(write)
    decay = _decay_between(keep)  # (B, H, N, r, C+1, C): what is left before token t of what token j wrote
    before, after = decay[..., :-1, :], decay[..., -1, :]  # ..., also at the end of the chunk
    from_start = torch.cumprod(keep, dim=3)
    start_before = torch.cat([torch.ones_like(from_start[:, :, :, :1]), from_start[:, :, :, :-1]], dim=3)

    gate = erase.transpose(3, 4)  # (B, H, N, r, C)
    system = gate[..., None] * before * (k @ k.transpose(3, 4))[:, :, :, None]
    identity = torch.eye(chunk_size, dtype=state.dtype, device=state.device)
    rhs_state = (gate * start_before.transpose(3, 4))[..., None] * k[:, :, :, None]  # (B, H, N, r, C, r)
    rhs = torch.cat([(write * v).transpose(3, 4)[..., None], rhs_state], dim=-1)
    solved = torch.linalg.solve_triangular(system + identity, rhs, upper=False, unitriangular=True)
    told, corrected = solved[..., 0], solved[..., 1:]  # update_j = told_j - corrected_j · (row of S at the start)
    attention = before * (q @ k.transpose(3, 4))[:, :, :, None]  # (B, H, N, r, C, C)

    # Chunks are taken apart once: the gradient of an index is a tensor of zeros as large as all chunks, for each chunk.
    parts = [x.unbind(2) for x in (q, k, told, corrected, attention, start_before, from_start[:, :, :, -1], after)]
    initial, reads = state, []
    for q_n, k_n, told_n, corrected_n, attention_n, start_n, left, after_n in zip(*parts, strict=True):
        update = told_n - torch.einsum("bhict,bhit->bhic", corrected_n, state)
        inside = torch.einsum("bhitj,bhij->bhti", attention_n, update)
        reads.append(inside + start_n * (q_n @ state.transpose(2, 3)))
        state = left[..., None] * state + (after_n * update) @ k_n
    if write_mask is not None:  # no write at all: the very bits that came in
        state = torch.where(write_mask.any(dim=1)[..., None, None], state, initial)
    out = torch.stack(reads, dim=2).permute(0, 2, 3, 1, 4).flatten(1, 2)
    return out[:, :length], state


def _decay_between(keep: Tensor) -> Tensor:
    """(B, H, N, C, r) -> (B, H, N, r, C+1, C): product of keep over the tokens j < m < t, 0 where j >= t."""
    size = keep.shape[3]
    t = torch.arange(size + 1, device=keep.device)[:, None]
    j = torch.arange(size, device=keep.device)[None, :]
    steps = keep.transpose(3, 4)[..., None].expand(*keep.shape[:3], keep.shape[4], size, size)
    steps = torch.where(t[:-1] > j, steps, torch.ones_like(steps))
    products = torch.cumprod(steps, dim=-2)
    products = torch.cat([torch.ones_like(products[..., :1, :]), products], dim=-2)
    return torch.where(t > j, products, torch.zeros_like(products))
