"""The recurrence token by token in as few and as small calls of torch as it takes: for CPU without gradients.

A step is bound by the cost of calling torch, not by arithmetic. Products are element by element: a matrix product would
wake a second thread for each token, and on busy cores wait for it.
"""

import torch
from torch import Tensor

from .mask import neutralise


def loop_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    write_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as :func:`naive_delta_scan`.

    Raises:
        RuntimeError: gradients would be needed, which this form does not have.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, keep, erase, write, state)):
        raise RuntimeError("the loop has no gradients: take the chunks (form='chunk'), or torch.no_grad()")
    batch, length, heads, rank = q.shape
    k, v, keep, erase, write = neutralise(k, v, keep, erase, write, write_mask)

    def by_token(x: Tensor) -> Tensor:  # (B, T, H, r) -> (T, B H, r)
        return x.detach().to(state.dtype).transpose(0, 1).reshape(length, batch * heads, rank)

    keys, gates, erased = by_token(k), by_token(keep)[..., None], by_token(erase).neg()
    told = by_token(write) * by_token(v)
    asked = torch.stack([by_token(q), keys], dim=2)[..., None, :]  # read with the query and with the key at once
    found = torch.empty_like(asked[..., 0, :])
    s = state.detach().reshape(batch * heads, rank, rank).clone()
    products = s.new_empty(batch * heads, 2, rank, rank)
    for t in range(length):
        torch.mul(s[:, None], asked[t], out=products)
        torch.sum(products, dim=-1, out=found[t])
        update = torch.addcmul(told[t], erased[t], found[t, :, 1])
        s.mul_(gates[t]).addcmul_(update[..., None], keys[t, :, None])
    final = s.view_as(state)
    if write_mask is not None:  # no write at all: the very bits that came in
        final = torch.where(write_mask.any(dim=1)[..., None, None], final, state)
    reads = found[:, :, 0].unflatten(1, (batch, heads)).transpose(0, 1)
    return reads, final
