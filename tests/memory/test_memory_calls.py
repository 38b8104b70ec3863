"""Calls of a bound model: the KV cache, padding, batches, threads, generation and compiled calls."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from memory_backbones import (
    BACKBONES,
    attached,
    build,
    close,
    close_states,
    random_adapter,
    random_state,
    same_bits,
    tokens,
)
from torch import Tensor

from deltamem_agents.errors import StateError
from deltamem_agents.memory import MemoryState

EVERY = {"num_state_heads": 2, "delta_heads": ("q", "k", "v", "o")}


@pytest.fixture(params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
@pytest.mark.parametrize("write", [True, False])
def test_prefill_in_chunks_and_decoding_equal_one_shot(name: str, write: bool) -> None:
    model, ids = build(name), tokens(2, 14)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start = random_state(memory)
        with memory.bind(start, write=write) as whole:
            want = model(ids, attention_mask=mask).logits
        cache, logits, position = None, [], 0
        with memory.bind(start, write=write) as parts:
            for step in (5, 4, 1, 1, 1, 1, 1):
                now = slice(position, position := position + step)
                out = model(
                    ids[:, now], attention_mask=mask[:, :position], past_key_values=cache, use_cache=True,
                    position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, now],
                )  # fmt: skip
                cache, _ = out.past_key_values, logits.append(out.logits)
        with memory.bind(start, write=write) as placed:
            want = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    close(torch.cat(logits, 1)[mask.bool()], want[mask.bool()], 1e-4)
    close_states(parts.state, placed.state, 1e-4)
    assert same_bits(whole.state, start) is not write


@torch.no_grad()
def test_a_left_padded_row_is_the_row_alone(name: str) -> None:
    model, ids = build(name), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start = random_state(memory)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with memory.bind(start) as both:
            batch = model(ids, attention_mask=mask, position_ids=positions).logits
        with memory.bind(start.rows([1])) as one:
            alone = model(ids[1:, 5:]).logits
    close(batch[1:, 5:], alone, 1e-4)
    close_states(both.state.rows([1]), one.state, 1e-4)


@torch.no_grad()
def test_padding_never_writes_nor_reads(name: str) -> None:
    """Whatever stands in the padding, states and reads stay bit for bit."""
    model, ids = build(name), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1] = 0, 0
    other = torch.where(mask.bool(), ids, (ids + 7) % 60 + 3)
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start, states = random_state(memory), []
        for given in (ids, other):
            with memory.bind(start) as bound:
                model(given, attention_mask=mask)
            assert all(not reads[~mask.bool()].any() for reads in bound.reads.values())
            states.append(bound.state)
        with memory.bind(start, token_mask=mask.bool()) as masked:
            model(ids)
    assert same_bits(states[0].rows([1]), start.rows([1]))
    close_states(*states)
    assert same_bits(masked.state.rows([1]), start.rows([1]))


@torch.no_grad()
def test_right_padding_writes_nothing() -> None:
    model, ids = build(), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with attached(model, random_adapter(model)) as memory:
        with memory.bind(memory.new_state(2)) as both:
            model(ids, attention_mask=mask)
        with memory.bind(memory.new_state(1)) as one:
            model(ids[1:, :7])
    close_states(both.state.rows([1]), one.state)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["token", "message_mean", "sentence_mean"])
def test_two_agents_in_one_batch_equal_each_alone(kind: str) -> None:
    model, ids = build(), tokens(3, 12)
    segments = torch.tensor([[0] * 5 + [1] * 7, [-1] * 3 + [4] * 9, [2] * 4 + [-1] * 4 + [7] * 4])
    with attached(model, random_adapter(model, memory_write_granularity=kind, **EVERY)) as memory:
        start = random_state(memory, 3)
        with memory.bind(start, segment_ids=segments) as both:
            batch = model(ids).logits
        for i in range(3):
            with memory.bind(start.rows([i]), segment_ids=segments[i : i + 1]) as one:
                close(model(ids[i : i + 1]).logits, batch[i : i + 1], 1e-4)
            close_states(both.state.rows([i]), one.state, 1e-4)


@torch.no_grad()
def test_who_writes_can_be_said_by_row_and_by_token() -> None:
    model, ids = build(), tokens(2, 12)
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start = random_state(memory)

        def write(who: bool | Tensor) -> MemoryState:
            with memory.bind(start, write=who) as bound:
                model(ids)
            return bound.state

        everyone, first = write(True), write(torch.tensor([True, False]))
        by_token = torch.zeros(2, 12, dtype=torch.bool)
        by_token[0] = True
        assert same_bits(first.rows([0]), everyone.rows([0])) and same_bits(first.rows([1]), start.rows([1]))
        assert same_bits(write(by_token), first)


@pytest.mark.parametrize(
    "write",
    [
        None,
        0,
        1,
        "yes",
        [True, False],
        np.False_,
        torch.tensor([1, 0]),
        torch.tensor(True),
        torch.ones(2, 12, 1).bool(),
    ],
    ids=str,
)
def test_who_writes_is_not_guessed(write: Any) -> None:
    model = build()
    with (
        attached(model, random_adapter(model)) as memory,
        pytest.raises(StateError, match=r"write is .*bool tensor \(B,\)"),
        memory.bind(memory.new_state(2), write=write),
    ):
        pytest.fail("bound")


@torch.no_grad()
@pytest.mark.parametrize("names", ["facts", ("facts",), ["task"], ("facts", "task"), ()])
def test_only_the_named_sub_states_are_written(names: str | tuple[str, ...]) -> None:
    model, layout = build(), {"facts": (0, 2), "task": (1,)}
    with attached(model, random_adapter(model, num_state_heads=3, sub_states=layout)) as memory:
        start = random_state(memory)
        with memory.bind(start, sub_states=names) as bound:
            model(tokens())
        written = (names,) if isinstance(names, str) else names
        for name in layout:
            assert same_bits(bound.state.select(name), start.select(name)) is (name not in written)


@torch.no_grad()
def test_the_bound_state_is_not_changed() -> None:
    model = build()
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        copy = {name: t.clone() for name, t in start.tensors.items()}
        with memory.bind(start) as bound:
            model(tokens())
            middle = bound.state
            kept = {name: t.clone() for name, t in middle.tensors.items()}
            model(tokens(seed=8))
    assert all(torch.equal(start.tensors[name], copy[name]) for name in copy)
    assert all(torch.equal(middle.tensors[name], kept[name]) for name in kept)
    assert not same_bits(bound.state, middle)


@torch.no_grad()
def test_bindings_nest_and_end() -> None:
    model = build()
    with attached(model, random_adapter(model)) as memory:
        free, start = model(tokens()).logits, random_state(memory)
        with memory.bind(start) as outer:
            with memory.bind(start.reset(), write=False):
                assert torch.equal(model(tokens()).logits, free)
            assert same_bits(outer.state, start)
            with pytest.raises(RuntimeError, match="stop"), memory.bind(start):
                raise RuntimeError("stop")
            model(tokens())
        assert not same_bits(outer.state, start)
        assert torch.equal(model(tokens()).logits, free)


@torch.no_grad()
def test_threads_with_different_states_do_not_mix() -> None:
    model = build()
    with attached(model, random_adapter(model, **EVERY)) as memory:
        states = [random_state(memory, 1, seed) for seed in range(8)]

        def use(i: int) -> tuple[Tensor, MemoryState]:
            with torch.no_grad(), memory.bind(states[i], write=i % 3 != 0) as bound:
                logits = [model(tokens(1, 6, seed)).logits for seed in range(i, i + 4)]
            return torch.cat(logits), bound.state

        serial = [use(i) for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                for (want, state), (got, other) in zip(serial, pool.map(use, range(8)), strict=True):
                    assert torch.equal(got, want) and same_bits(state, other)
        with memory.bind(states[0]), ThreadPoolExecutor(1) as pool:  # a binding is of its own thread
            assert torch.equal(pool.submit(lambda: model(tokens(1)).logits).result(), unbound(model))


def unbound(model: torch.nn.Module) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: model(tokens(1)).logits.detach()).result()


@torch.no_grad()
def test_generate_with_left_padding_equals_a_loop_of_full_calls() -> None:
    model, ids = build(), tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        with memory.bind(start, write=False):
            got = model.generate(  # type: ignore[operator]
                ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=True
            )
            row = ids[1:, 2:]
        with memory.bind(start.rows([1]), write=False):
            for _ in range(5):
                row = torch.cat([row, model(row).logits[:, -1:].argmax(-1)], dim=1)
    assert got[1, 6:].tolist() == row[0, 4:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_compiled_call_equals_the_eager_one(kind: str) -> None:
    model, ids = build(num_hidden_layers=1), tokens(2, 10)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start = random_state(memory)

        def call(given: Tensor, where: Tensor) -> Tensor:
            logits: Tensor = model(given, attention_mask=where, use_cache=False).logits
            return logits

        with memory.bind(start, write=kind == "write") as eager:
            want = call(ids, mask)
        torch.compiler.reset()
        fast = torch.compile(call, backend="aot_eager", fullgraph=True)
        for _ in range(2):  # the second call runs what the first compiled
            with memory.bind(start, write=kind == "write") as bound:
                got = fast(ids, mask)
            close(got[mask.bool()], want[mask.bool()])
            close_states(bound.state, eager.state)
    torch.compiler.reset()
