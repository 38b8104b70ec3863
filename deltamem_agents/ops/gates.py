"""From the projections of a token to its query, key, value and gates: in plain torch, differentiable."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

MODES = ("standard", "lambda_outside", "no_lambda")


@dataclass(frozen=True)
class GateSpec:
    """What the columns of a projection hold, and how they become gates (mechanism: arXiv 2605.12357).

    Attributes:
        mode: what keep, erase and write are: (λ, β, β) standard, (λ, λβ, β) lambda_outside, (1, β, β) no_lambda.
        coupled: λ = 1 - β; else λ has columns of its own.
        normalize: tanh, then the L2 norm in each state head, of q and k.
        rankwise: a gate for each row of S; else one for each state head, used by all its rows.
    """

    heads: int
    rank: int
    mode: str = "standard"
    coupled: bool = True
    normalize: bool = True
    rankwise: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"no gate mode {self.mode!r}; there are {', '.join(MODES)}")

    @property
    def width(self) -> int:
        """Numbers in q, in k, in v, and in the reads of all state heads."""
        return self.heads * self.rank

    @property
    def gates(self) -> int:
        return self.width if self.rankwise else self.heads

    @property
    def columns(self) -> int:
        """Width of a projection: q, k, v, β and, unless coupled, λ."""
        return 3 * self.width + self.gates * (1 if self.coupled else 2)


def address(x: Tensor, spec: GateSpec) -> Tensor:
    """(B, T, R) projected queries or keys -> (B, T, H, r) float32."""
    heads = x.float().unflatten(-1, (spec.heads, spec.rank))
    return normalize(torch.tanh(heads), dim=-1) if spec.normalize else heads


def gates(
    projected: Tensor,
    beta_bias: Tensor,
    lambda_bias: Tensor | None,
    spec: GateSpec,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, keep, erase, write, each (B, T, H, r) float32.

    Args:
        projected: (B, T, columns), any float dtype: q (R), k (R), v (R), β (G) and, unless coupled, λ (G).
        beta_bias, lambda_bias: (G,); the second only where λ has columns.
        token_mask: (B, T) bool, False on padding, whose q is zero and whose values, NaN even, reach no gradient.
    """
    with torch.autocast(projected.device.type, enabled=False):
        if token_mask is not None:
            projected = torch.where(token_mask[..., None], projected, torch.zeros_like(projected))
        q, k, v, *raw = projected.split([*[spec.width] * 3, *[spec.gates] * (1 if spec.coupled else 2)], dim=-1)
        beta = _gate(raw[0], beta_bias, spec)
        keep, erase = torch.ones_like(beta), beta
        if spec.mode != "no_lambda":
            keep = _gate(raw[1], needed(lambda_bias), spec) if not spec.coupled else 1 - beta
        if spec.mode == "lambda_outside":
            erase = keep * beta
        value = v.float().unflatten(-1, (spec.heads, spec.rank))
        return address(q, spec), address(k, spec), value, keep, erase, beta


def needed(lambda_bias: Tensor | None) -> Tensor:
    """The bias of λ, which a spec with columns for λ cannot do without."""
    if lambda_bias is None:
        raise ValueError("λ has columns of its own (coupled=False): give lambda_bias (G,)")
    return lambda_bias


def _gate(x: Tensor, bias: Tensor, spec: GateSpec) -> Tensor:
    gate = torch.sigmoid(x.float() + bias.float()).unflatten(-1, (spec.heads, -1))
    return gate.expand(*x.shape[:-1], spec.heads, spec.rank)
