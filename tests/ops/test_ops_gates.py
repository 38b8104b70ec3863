"""Gates, the path from projections to reads, and corrections, in torch on the CPU."""

import logging

import ops_kernel_cases as cases
import pytest
import torch
from torch import Tensor

from deltamem_agents.ops import (
    GateSpec,
    add_correction,
    delta_read,
    delta_scan,
    gated_read,
    gated_scan,
    gates,
    naive_delta_scan,
)
from deltamem_agents.ops.device import say

SPECS = [
    GateSpec(2, 3, mode, coupled, normalize, rankwise)
    for mode in cases.MODES
    for coupled, normalize, rankwise in [(True, True, True), (False, True, False), (False, False, True)]
]


def written_out(p: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, spec: GateSpec) -> list[Tensor]:
    """q, k, v, keep, erase, write of one token, p (columns,), number by number."""
    width, gates, rank = spec.width, spec.gates, spec.rank
    q, k, v = (p[n * width : (n + 1) * width].view(spec.heads, rank) for n in range(3))
    if spec.normalize:
        q, k = (torch.stack([h.tanh() / h.tanh().norm() for h in x]) for x in (q, k))
    beta = torch.sigmoid(p[3 * width : 3 * width + gates] + beta_bias)
    lam = 1 - beta if lambda_bias is None else torch.sigmoid(p[3 * width + gates :] + lambda_bias)
    if not spec.rankwise:
        beta, lam = (x.repeat_interleave(rank) for x in (beta, lam))
    beta, lam = beta.view(spec.heads, rank), lam.view(spec.heads, rank)
    keep, erase = {
        "standard": (lam, beta),
        "lambda_outside": (lam, lam * beta),
        "no_lambda": (torch.ones_like(lam), beta),
    }[spec.mode]
    return [q, k, v, keep, erase, beta]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gates_are_the_equations(spec: GateSpec) -> None:
    projected, beta, lam, _, _, _ = cases.gated_inputs(spec, 2, 5, "cpu", torch.float32)
    projected = torch.nan_to_num(projected, nan=0.5)
    assert projected.shape[-1] == spec.columns
    got = gates(projected, beta, lam, spec)
    for b in range(2):
        for t in range(5):
            for a, want in zip(got, written_out(projected[b, t], beta, lam, spec), strict=True):
                torch.testing.assert_close(a[b, t], want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("length", [3, 40])
def test_gated_scan_is_gates_and_scan(spec: GateSpec, length: int) -> None:
    """Padding, NaN even, neither reads nor writes, and reaches no gradient."""
    projected, beta, lam, state, token_mask, write_mask = cases.gated_inputs(spec, 2, length, "cpu", torch.float32)
    leaf = projected.clone().requires_grad_()
    reads, final = gated_scan(leaf, beta, lam, state, spec, token_mask, write_mask)
    tokens = gates(torch.nan_to_num(projected), beta, lam, spec)
    want, end = naive_delta_scan(*tokens, state, write_mask & token_mask[..., None])
    cases.close(reads, torch.where(token_mask[..., None, None], want, 0.0), 1e-5)
    cases.close(final, end, 1e-5)
    (grad,) = torch.autograd.grad(reads.sum() + final.sum(), leaf)
    assert grad.isfinite().all() and (grad[~token_mask] == 0).all() and (grad[token_mask] != 0).any()
    with torch.no_grad():
        low, _ = gated_scan(projected, beta, lam, state, spec, token_mask, write_mask, torch.bfloat16)
    assert low.dtype == torch.bfloat16
    cases.close(low, reads, cases.TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("normalize", [True, False])
def test_gated_read_reads_what_the_scan_reads(normalize: bool) -> None:
    spec = GateSpec(2, 4, normalize=normalize)
    x, weight, state = torch.randn(2, 5, 12), torch.randn(8, 12), torch.randn(2, 2, 4, 4)
    token_mask = cases.random_mask(2, 5)
    leaves = [t.requires_grad_() for t in (weight, state)]
    q = (x @ weight.T).view(2, 5, 2, 4)
    if normalize:
        q = torch.nn.functional.normalize(q.tanh(), dim=-1)
    want = torch.where(token_mask[..., None, None], delta_read(q, state), 0.0)
    x = torch.where(token_mask[..., None], x, torch.nan).requires_grad_()
    got = gated_read(x, weight, state, spec, token_mask)
    dx, *grads = torch.autograd.grad(got.sin().sum(), [x, *leaves])
    assert dx.isfinite().all() and (dx[~token_mask] == 0).all() and (dx[token_mask] != 0).any()
    for a, b in zip(grads, torch.autograd.grad(want.sin().sum(), leaves), strict=True):
        cases.close(a, b, 1e-5)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert gated_read(x, weight, state, spec, token_mask, torch.float16).dtype == torch.float16


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_correction_is_added_in_place(scale: float | Tensor, dtype: torch.dtype) -> None:
    reads, weight = torch.randn(2, 3, 4), torch.randn(10, 4).to(dtype)
    whole = torch.randn(2, 3, 16).to(dtype)
    for output in (whole[..., 2:12], whole[:, 0, :10], whole[0, 0, :10], whole.transpose(0, 1)[..., 6:]):
        few = reads if output.dim() == 3 else reads[:, 0] if output.dim() == 2 else reads[0, 0]
        few = few.transpose(0, 1) if output.shape[0] == 3 else few
        want = output.double() + 0.5 * few.to(dtype).double() @ weight.double().T
        add_correction(output, few, weight, scale)
        cases.close(output, want, cases.TOLERANCE[dtype])


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match=r"quick.*standard"):
        GateSpec(1, 2, "quick")
    spec = GateSpec(1, 2, coupled=False)
    projected, beta, _, state, _, _ = cases.gated_inputs(spec, 1, 2, "cpu", torch.float32)
    with pytest.raises(ValueError, match="lambda_bias"):
        gated_scan(projected, beta, None, state, spec)
    with pytest.raises(ValueError, match="16 columns, not 15"):
        gated_scan(torch.ones(1, 2, 15), beta, None, state, GateSpec(2, 2))
    with pytest.raises(ValueError, match="quick"):
        gated_read(torch.ones(1, 1, 2), torch.ones(2, 2), state, spec, form="quick")
    with pytest.raises(ValueError, match="quick"):
        add_correction(torch.ones(1, 2), torch.ones(1, 2), torch.ones(2, 2), 1.0, form="quick")


def test_each_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    say.cache_clear()
    inputs = [x.float() for x in cases.scan_inputs(1, 40, 1, 4)]
    with caplog.at_level(logging.INFO, logger="deltamem_agents.ops"):
        for _ in range(2):
            delta_scan(*inputs)
    assert caplog.messages == ["delta_scan: chunk (cpu, many tokens, gradients)"]
