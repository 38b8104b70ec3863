"""Projections that add their output to a correction that stands there already, instead of the other way round.

For the tokens of replies, read from memory that does not change: the corrections of a layer are computed in one go
before its projections, whose matrix products then take them as what they add to. So a token costs no pass over an
output, and one kernel a layer.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from .backbones import Attention
from .binding import Context
from .config import AdapterConfig
from .replaced import Replaced


def can_accumulate(attention: Attention, config: AdapterConfig) -> bool:
    """Whether all corrected projections are plain linear layers, and no correction is normed."""
    chosen = [attention.projections[head] for head in config.delta_heads]
    normed = config.delta_o_rmsnorm and "o" in config.delta_heads
    return not normed and all(type(p.module) is nn.Linear and p.part == "all" for p in chosen)


@contextmanager
def accumulating(attentions: list[Attention], config: AdapterConfig, context: Context) -> Iterator[None]:
    """Inside, the corrected projections of ``attentions`` start from what is in ``context.bound.deltas``."""
    with ExitStack() as stack:
        for attention in attentions:
            for head in config.delta_heads:
                linear = attention.projections[head].module
                forward = partial(_forward, linear, linear.forward, attention.name, head, context)
                stack.enter_context(Replaced.put(linear, "forward", forward))
        yield


def _forward(
    linear: Any, otherwise: Callable[[Tensor], Tensor], name: str, head: str, context: Context, x: Tensor
) -> Tensor:
    bound = context.bound
    if bound is None or name not in bound.deltas:
        return otherwise(x)
    output = bound.deltas[name][head]
    rows = output.flatten(0, -2)
    if linear.bias is not None:
        rows.add_(linear.bias)
    rows.addmm_(x.flatten(0, -2), linear.weight.t())
    return output
