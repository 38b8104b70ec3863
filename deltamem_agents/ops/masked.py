"""A linear layer of which padding is no part: whatever stands there, NaN even, reaches no gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def masked_linear(x: Tensor, weight: Tensor, token_mask: Tensor | None) -> Tensor:
    """x (B, T, D), weight (W, D) of one dtype -> (B, T, W). Rows where ``token_mask`` (B, T) is False hold anything.

    The gradient coming back must be zero in those rows, as that of :func:`gates` is; then x is masked in the backward
    pass alone, where the weight's gradient is made, and no masked copy of it is kept.
    """
    if token_mask is None or not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, weight)
    out: Tensor = _MaskedLinear.apply(x, weight, token_mask)
    return out


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, token_mask: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, token_mask)
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight, token_mask = ctx.saved_tensors
        dx = gradient @ weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        inside = torch.where(token_mask[..., None], x, torch.zeros_like(x))
        return dx, gradient.flatten(0, -2).t() @ inside.flatten(0, -2), None
