"""Every form of the recurrence against the loop: outputs and gradients, lengths around the chunk, masks, hand-over."""

import pytest
import torch
from torch import Tensor

from deltamem_agents.ops import choose_form, chunk_delta_scan, delta_read, delta_scan, naive_delta_scan
from deltamem_agents.ops.scan import HAS_TRITON

LENGTHS = (1, 2, 63, 64, 65, 500)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FORMS = ["chunk", pytest.param("triton", marks=[pytest.mark.gpu, GPU])]
ALL = ["naive", "loop", *FORMS]  # for what needs no gradients


def make(
    batch: int = 2,
    length: int = 20,
    heads: int = 3,
    rank: int = 4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> list[Tensor]:
    """q, k, v, keep, erase, write, state with independent gates: no coupling hides an exchanged argument."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads, rank)
    q, k = (torch.nn.functional.normalize(torch.randn(shape, generator=g, dtype=dtype), dim=-1) for _ in range(2))
    v = torch.randn(shape, generator=g, dtype=dtype)
    keep, erase, write = (torch.rand(shape, generator=g, dtype=dtype) for _ in range(3))
    keep = 1 - 0.3 * keep  # long memories, so that early tokens still count at the end
    state = torch.randn(batch, heads, rank, rank, generator=g, dtype=dtype)
    return [x.to(device) for x in (q, k, v, keep, erase, write, state)]


def make_mask(batch: int, length: int, heads: int, device: str = "cpu", seed: int = 1) -> Tensor:
    return (torch.rand(batch, length, heads, generator=torch.Generator().manual_seed(seed)) < 0.6).to(device)


def with_gradients(form: str, inputs: list[Tensor], mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = list(delta_scan(*leaves, mask, form=form))
    g = torch.Generator().manual_seed(2)
    loss = sum((out * torch.randn(out.shape, generator=g, dtype=out.dtype).to(out.device)).sum() for out in outputs)
    return outputs, list(torch.autograd.grad(loss, leaves))


def device_of(form: str) -> str:
    return "cuda" if form == "triton" else "cpu"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_equal_the_loop(form: str, length: int, masked: bool) -> None:
    inputs = make(2, length, 2, 8, device=device_of(form))
    mask = make_mask(2, length, 2, device_of(form)) if masked else None
    (want, want_grads), (got, got_grads) = with_gradients("naive", inputs, mask), with_gradients(form, inputs, mask)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, float(b.abs().max())), rtol=1e-3)


@pytest.mark.parametrize("length", [1, 65, 500])
def test_chunk_equals_the_loop_in_float64(length: int) -> None:
    inputs, mask = make(2, length, 2, 5, dtype=torch.float64), make_mask(2, length, 2)
    (want, want_grads), (got, got_grads) = with_gradients("naive", inputs, mask), with_gradients("chunk", inputs, mask)
    for a, b in zip(got + got_grads, want + want_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 3, 16, 64])
def test_every_chunk_size_gives_the_same(chunk_size: int) -> None:
    inputs = make(length=37, dtype=torch.float64)
    for a, b in zip(chunk_delta_scan(*inputs, chunk_size=chunk_size), naive_delta_scan(*inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("form", [naive_delta_scan, chunk_delta_scan])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_in_float64(form: object, masked: bool) -> None:
    inputs = [x.requires_grad_() for x in make(1, 5, 2, 2, dtype=torch.float64)]
    mask = make_mask(1, 5, 2) if masked else None
    extra = {"chunk_size": 2} if form is chunk_delta_scan else {}
    assert torch.autograd.gradcheck(lambda *x: form(*x, mask, **extra), inputs)  # type: ignore[operator]


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("middle", [1, 31, 32, 50])
def test_state_handed_over_in_the_middle_equals_one_run(form: str, middle: int) -> None:
    *tokens, state = make(length=65, device=device_of(form))
    mask = make_mask(2, 65, 3, device_of(form))
    reads, final = delta_scan(*tokens, state, mask, form=form)
    first, between = delta_scan(*(x[:, :middle] for x in tokens), state, mask[:, :middle], form=form)
    second, end = delta_scan(*(x[:, middle:] for x in tokens), between, mask[:, middle:], form=form)
    torch.testing.assert_close(torch.cat([first, second], dim=1), reads, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(end, final, atol=1e-5, rtol=1e-5)


def test_gradients_cross_the_hand_over() -> None:
    inputs = make(length=40, dtype=torch.float64)
    whole, parts = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    reads, final = chunk_delta_scan(*whole)
    want = torch.autograd.grad(reads.square().sum() + final.square().sum(), whole)
    *tokens, state = parts
    first, between = chunk_delta_scan(*(x[:, :17] for x in tokens), state)
    second, end = chunk_delta_scan(*(x[:, 17:] for x in tokens), between)
    loss = first.square().sum() + second.square().sum() + end.square().sum()
    for a, b in zip(torch.autograd.grad(loss, parts), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9)


def test_the_loop_is_the_equation() -> None:
    """One token written out with explicit matrices: reads before writing, erases from the undecayed state."""
    q, k, v, keep, erase, write, state = make(1, 1, 1, 4, dtype=torch.float64)
    reads, final = naive_delta_scan(q, k, v, keep, erase, write, state)
    s, kt, vt = state[0, 0], k[0, 0, 0], v[0, 0, 0]
    a, e, w = (torch.diag(x[0, 0, 0]) for x in (keep, erase, write))
    torch.testing.assert_close(reads[0, 0, 0], s @ q[0, 0, 0])
    torch.testing.assert_close(final[0, 0], a @ s - e @ torch.outer(s @ kt, kt) + w @ torch.outer(vt, kt))


@pytest.mark.parametrize("form", ALL)
def test_gates_of_exactly_zero_and_one(form: str) -> None:
    q, k, v, keep, erase, write, state = make(length=70, dtype=torch.float32, device=device_of(form))
    keep, erase = (keep > 0.8).float(), (erase > 0.5).float()
    want, final = naive_delta_scan(q, k, v, keep, erase, write, state)
    got, end = delta_scan(q, k, v, keep, erase, write, state, form=form)
    assert got.isfinite().all()
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(end, final, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("length", [1, 40, 70])
def test_masked_tokens_leave_the_very_bits(form: str, length: int) -> None:
    *tokens, state = make(length=length, device=device_of(form))
    mask = torch.ones(2, length, 3, dtype=torch.bool, device=state.device)
    mask[0, :, 1] = False
    _, final = delta_scan(*tokens, state, mask, form=form)
    assert torch.equal(final[0, 1], state[0, 1])
    assert not torch.equal(final[0, 0], state[0, 0]) and not torch.equal(final[1, 1], state[1, 1])
    reads, same = delta_scan(*tokens, state, torch.zeros_like(mask), form=form)
    assert torch.equal(same, state)
    torch.testing.assert_close(reads, delta_read(tokens[0], state), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["naive", *FORMS])
def test_what_is_masked_may_hold_anything(form: str) -> None:
    """Padding can be NaN where attention had nothing to attend to; it reaches neither states nor their gradients."""
    *tokens, state = make(length=40, device=device_of(form))
    mask = make_mask(2, 40, 3, device_of(form))
    want = with_gradients(form, [*tokens, state], mask)
    spoiled = [tokens[0], *(torch.where(mask[..., None], x, torch.full_like(x, torch.nan)) for x in tokens[1:])]
    got = with_gradients(form, [*spoiled, state], mask)
    for a, b in zip(got[0], want[0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got[1][0], want[1][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got[1][-1], want[1][-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ALL)
def test_low_precision_inputs_keep_a_float32_state(form: str) -> None:
    *tokens, state = make(length=33, device=device_of(form))
    low = [x.bfloat16() for x in tokens]
    with torch.autocast(state.device.type, dtype=torch.bfloat16):
        reads, final = delta_scan(*low, state, form=form)
    assert reads.dtype == final.dtype == torch.float32
    want, end = naive_delta_scan(*(x.float() for x in low), state)
    torch.testing.assert_close(reads, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(final, end, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ALL)
def test_inputs_are_not_changed(form: str) -> None:
    inputs, mask = make(length=33, device=device_of(form)), make_mask(2, 33, 3, device_of(form))
    copies = [x.clone() for x in inputs]
    delta_scan(*inputs, mask, form=form)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_reads_alone_are_the_reads_of_a_scan_that_writes_nothing() -> None:
    q, *_, state = make(dtype=torch.float64)
    want = torch.stack([torch.stack([state[b] @ q[b, t, :, :, None] for t in range(20)]) for b in range(2)])
    torch.testing.assert_close(delta_read(q, state), want[..., 0])


@pytest.mark.parametrize("length", LENGTHS)
def test_the_loop_of_few_calls_equals_the_specification(length: int) -> None:
    inputs, mask = make(3, length, 2, 5, dtype=torch.float64), make_mask(3, length, 2)
    for got, want in zip(delta_scan(*inputs, mask, form="loop"), naive_delta_scan(*inputs, mask), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    with pytest.raises(RuntimeError, match="no gradients"):
        delta_scan(*(x.requires_grad_() for x in inputs), form="loop")


def test_the_form_follows_device_and_length() -> None:
    assert choose_form(torch.zeros(1, 1, 1, 4)) == "naive"
    assert choose_form(torch.zeros(1, 500, 1, 4)) == "chunk"
    with torch.no_grad():
        assert choose_form(torch.zeros(1, 1, 1, 4)) == choose_form(torch.zeros(1, 500, 4, 8)) == "loop"
        assert choose_form(torch.zeros(1, 500, 1, 8)) == "chunk"
    with pytest.raises(ValueError, match=r"quick.*naive, chunk"):
        delta_scan(*make(), form="quick")


@pytest.mark.gpu
@GPU
def test_on_cuda_the_kernels_are_chosen() -> None:
    assert choose_form(torch.zeros(1, 1, 1, 4, device="cuda")) == ("triton" if HAS_TRITON else "naive")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("rank", [2, 5, 8, 16])
def test_kernels_take_any_rank_and_strided_inputs(rank: int) -> None:
    inputs = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in make(3, 130, 2, rank, device="cuda")]
    mask = make_mask(3, 130, 2, "cuda")
    (want, want_grads), (got, got_grads) = with_gradients("naive", inputs, mask), with_gradients("triton", inputs, mask)
    for a, b in zip(got + got_grads, want + want_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, float(b.abs().max())), rtol=1e-3)
