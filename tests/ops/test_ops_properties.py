"""What holds for every input of the recurrence: splits, masks, linearity, rows and heads that do not see each other."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.ops import chunk_delta_scan, delta_scan, naive_delta_scan

FORMS = st.sampled_from(["naive", "chunk"])
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def scans(draw: st.DrawFn, longest: int = 70) -> tuple[list[Tensor], Tensor]:
    """Inputs of a scan in float64, with a write mask."""
    batch, heads, rank = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    length, seed = draw(st.integers(1, longest)), draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads, rank)
    q, k = (torch.nn.functional.normalize(torch.randn(shape, generator=g).double(), dim=-1) for _ in range(2))
    v = torch.randn(shape, generator=g).double()
    gates = [torch.rand(shape, generator=g).double() for _ in range(3)]
    state = torch.randn(batch, heads, rank, rank, generator=g).double()
    mask = torch.rand(batch, length, heads, generator=g) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    return [q, k, v, *gates, state], mask


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)


@QUICK
@given(scans(), st.integers(1, 40))
def test_chunks_equal_the_loop(scan: tuple[list[Tensor], Tensor], chunk_size: int) -> None:
    inputs, mask = scan
    for a, b in zip(chunk_delta_scan(*inputs, mask, chunk_size), naive_delta_scan(*inputs, mask), strict=True):
        close(a, b)


@QUICK
@given(scans(), FORMS, st.data())
def test_any_split_equals_one_run(scan: tuple[list[Tensor], Tensor], form: str, data: st.DataObject) -> None:
    (*tokens, state), mask = scan
    length = mask.shape[1]
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=3))})
    reads, final = delta_scan(*tokens, state, mask, form=form)
    parts = []
    for a, b in pairwise(cuts):
        part, state = delta_scan(*(x[:, a:b] for x in tokens), state, mask[:, a:b], form=form)
        parts.append(part)
    close(torch.cat(parts, dim=1), reads)
    close(state, final)


@QUICK
@given(scans(), FORMS)
def test_heads_that_never_write_keep_their_bits(scan: tuple[list[Tensor], Tensor], form: str) -> None:
    inputs, mask = scan
    _, final = delta_scan(*inputs, mask, form=form)
    silent = ~mask.any(dim=1)
    assert torch.equal(final[silent], inputs[-1][silent])


@QUICK
@given(scans(longest=30), FORMS, st.integers(1, 30))
def test_masked_tokens_at_the_end_change_no_bit(scan: tuple[list[Tensor], Tensor], form: str, kept: int) -> None:
    (*tokens, state), mask = scan
    kept = min(kept, mask.shape[1])
    mask[:, kept:] = False
    _, whole = delta_scan(*tokens, state, mask, form=form)
    _, short = delta_scan(*(x[:, :kept] for x in tokens), state, mask[:, :kept], form=form)
    assert torch.equal(whole, short)


@QUICK
@given(scans(), FORMS)
def test_masked_tokens_may_be_left_out(scan: tuple[list[Tensor], Tensor], form: str) -> None:
    """With one mask for all heads of one row, the state is that of the row without its masked tokens."""
    (*tokens, state), mask = scan
    for b in range(mask.shape[0]):
        writes = mask[b, :, 0]
        row = mask[b : b + 1, :, :1].expand(1, -1, mask.shape[2])
        _, final = delta_scan(*(x[b : b + 1] for x in tokens), state[b : b + 1], row, form=form)
        _, alone = naive_delta_scan(*_at_least_one(tokens, b, writes), state[b : b + 1], _mask_for(writes, mask))
        close(final, alone)


def _at_least_one(tokens: list[Tensor], b: int, writes: Tensor) -> list[Tensor]:
    index = writes.nonzero()[:, 0] if writes.any() else torch.zeros(1, dtype=torch.long)
    return [x[b : b + 1, index] for x in tokens]


def _mask_for(writes: Tensor, mask: Tensor) -> Tensor:
    count = max(int(writes.sum()), 1)
    return writes.any().expand(1, count, mask.shape[2])


@QUICK
@given(scans(), FORMS, st.floats(-3, 3))
def test_linear_in_values_and_state(scan: tuple[list[Tensor], Tensor], form: str, scale: float) -> None:
    """With keys and gates fixed, reads and states are linear in (v, initial state) together."""
    (q, k, v, keep, erase, write, state), mask = scan
    other_v, other_state = v.flip(1) - 0.5, state.transpose(2, 3) + 0.25

    def run(values: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        return delta_scan(q, k, values, keep, erase, write, start, mask, form=form)

    one, two = run(v, state), run(other_v, other_state)
    both = run(v + scale * other_v, state + scale * other_state)
    for a, b, c in zip(one, two, both, strict=True):
        close(a + scale * b, c)


@QUICK
@given(scans(), FORMS)
def test_rows_and_heads_do_not_see_each_other(scan: tuple[list[Tensor], Tensor], form: str) -> None:
    (*tokens, state), mask = scan
    reads, final = delta_scan(*tokens, state, mask, form=form)
    b, h = mask.shape[0] - 1, mask.shape[2] - 1
    alone = [x[b:, :, h:] for x in tokens]
    part, end = delta_scan(*alone, state[b:, h:], mask[b:, :, h:], form=form)
    close(part, reads[b:, :, h:])
    close(end, final[b:, h:])


@QUICK
@given(scans(), FORMS)
def test_reads_never_see_their_own_or_a_later_token(scan: tuple[list[Tensor], Tensor], form: str) -> None:
    (q, *tokens, state), mask = scan
    t = mask.shape[1] // 2
    reads, _ = delta_scan(q, *tokens, state, mask, form=form)
    changed = [torch.cat([x[:, :t], x[:, t:].flip(1) * 0.5], dim=1) for x in tokens]
    again, _ = delta_scan(q, *changed, state, mask, form=form)
    close(again[:, : t + 1], reads[:, : t + 1])
