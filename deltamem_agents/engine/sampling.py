"""Sampling: the next token of each reply from the logits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .reply import Row


def choose_tokens(rows: "Sequence[Row]", logits: Tensor, likeliest: Sequence[int]) -> list[int]:
    """The next token of each row, from logits (B, V), in which the ``likeliest`` are already known."""
    tokens = list(likeliest)
    for i, row in enumerate(rows):
        if row.forced:
            tokens[i] = row.choose(logits[i])
    if drawn := [i for i, row in enumerate(rows) if not row.forced and not row.greedy]:
        numbers = torch.tensor([(rows[i].request.temperature, rows[i].request.top_p or 1.0) for i in drawn])
        points = torch.tensor([rows[i].draw() for i in drawn], dtype=torch.float64)
        picked = logits.index_select(0, torch.tensor(drawn, device=logits.device))
        found = sample(picked, *(x.to(logits.device) for x in (*numbers.unbind(1), points))).tolist()
        for i, token in zip(drawn, found, strict=True):
            tokens[i] = token
    return tokens


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, points: Tensor) -> Tensor:
    """A token (N,) from each row of logits (N, V), by temperature (N,) and nucleus (N,).

    ``points`` (N,) in [0, 1) say where in the cumulative distribution of the nucleus, likeliest tokens first.
    """
    chances, order = torch.softmax(logits.float() / temperature[:, None], -1).sort(dim=-1, descending=True, stable=True)
    chances = chances.double()
    before = chances.cumsum(-1) - chances
    inside = before < top_p[:, None].double()
    inside[:, 0] = True
    reach = torch.where(inside, chances, 0.0).cumsum(-1)
    index = torch.searchsorted(reach, points[:, None] * reach[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return order.gather(1, torch.minimum(index, inside.sum(-1, keepdim=True) - 1))[:, 0]
