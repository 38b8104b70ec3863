"""Traced bindings: ``bound.gates`` against gates computed from the layer's weights on captured hidden states."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from memory_backbones import attached, build, random_adapter, random_state, same_bits, tokens
from memory_reference import SlowMemory
from torch import Tensor, nn

from deltamem_agents.memory import Adapter, attach

LAYOUT = {"facts": (0, 2), "task": (1,)}
MSW = {"num_state_heads": 3, "sub_states": LAYOUT}
SSW = MSW | {"memory_write_granularity": "message_mean"}
FIELDS: dict[str, dict[str, Any]] = {
    "tsw": {},
    "msw": MSW,
    "one gate per head": MSW | {"rankwise_gates": False},
    "lambda_outside": MSW | {"state_update_mode": "lambda_outside", "couple_lambda": False},
    "no_lambda": MSW | {"state_update_mode": "no_lambda"},
}
LEFT_PADDED = torch.ones(2, 12, dtype=torch.bool)
LEFT_PADDED[1, :5] = False


@contextmanager
def captured(model: nn.Module, adapter: Adapter) -> Iterator[dict[str, list[Tensor]]]:
    """Attention module -> the hidden states (B, T, D) that it was called with."""
    seen: dict[str, list[Tensor]] = {name: [] for name in adapter.layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].append(kwargs["hidden_states"].detach()), with_kwargs=True
        )
        for name in seen
    ]
    yield seen
    for handle in handles:
        handle.remove()


def mean_gates(adapter: Adapter, model: nn.Module, vectors: dict[str, list[list[list[Tensor]]]]) -> dict[str, Any]:
    """(B, H) per module, from the equations; ``vectors[module][row][head]``: the (D,) that were written there."""
    config = {name: getattr(adapter.config, name) for name in ("rank", "num_state_heads", "rankwise_gates")}
    layers = SlowMemory(model, adapter.tensors, 1, **config).layers

    def mean(name: str, head: int, written: list[Tensor]) -> float:
        return float(np.mean([layers[name].gate("beta", x.double().numpy(), head) for x in written] or [0.0]))

    return {
        name: np.array([[mean(name, h, written) for h, written in enumerate(row)] for row in rows])
        for name, rows in vectors.items()
    }


def assert_gates(got: dict[str, Tensor], want: dict[str, Any]) -> None:
    assert set(got) == set(want)
    for name, gates in got.items():
        assert gates.dtype == torch.float32
        np.testing.assert_allclose(gates.numpy(), want[name], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", FIELDS)
def test_gates_of_tokens_over_two_calls(case: str) -> None:
    """Padding is left out, and each call weighs by the tokens that it wrote."""
    model = build()
    adapter = random_adapter(model, **FIELDS[case])
    heads = adapter.config.num_state_heads
    masks = [LEFT_PADDED, torch.tensor([[True] * 4, [False] * 3 + [True]])]
    with (
        attached(model, adapter) as memory,
        captured(model, adapter) as seen,
        memory.bind(random_state(memory), trace=True) as bound,
    ):
        model(tokens(), attention_mask=masks[0].long())
        model(tokens(2, 4, seed=8), attention_mask=masks[1].long())
    vectors = {
        name: [
            [[x for call, mask in zip(calls, masks, strict=True) for x in call[b][mask[b]]]] * heads for b in range(2)
        ]
        for name, calls in seen.items()
    }
    assert_gates(bound.gates, mean_gates(adapter, model, vectors))


@torch.no_grad()
def test_gates_of_tokens_routed_to_sub_states() -> None:
    model = build()
    adapter = random_adapter(model, **MSW)
    facts = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    task = torch.zeros(2, 12, dtype=torch.bool)
    task[0, 3:6] = True  # and nothing into the row that is padded
    with attached(model, adapter) as memory, captured(model, adapter) as seen:
        routed = {"facts": facts, "task": task}
        with memory.bind(memory.new_state(2), sub_states=routed, token_mask=LEFT_PADDED, trace=True) as bound:
            model(tokens())
    wrote = [facts & LEFT_PADDED, task & LEFT_PADDED, facts & LEFT_PADDED]
    vectors = {name: [[list(call[b][w[b]]) for w in wrote] for b in range(2)] for name, [call] in seen.items()}
    assert_gates(bound.gates, mean_gates(adapter, model, vectors))
    assert all(gates[1, 1] == 0 and gates[:, 0].min() > 0 for gates in bound.gates.values())


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_gates_of_mean_writes(packed: bool) -> None:
    """Every segment counts once, however long; row 1 has padding, tokens of no segment, and one segment for task."""
    model = build()
    adapter = random_adapter(model, **SSW)
    segments = torch.tensor([[0] * 2 + [1] * 10, [0] * 6 + [-1] * 2 + [7] * 4])
    task = torch.zeros(2, 12, dtype=torch.bool)
    task[1, 8:] = True
    with attached(model, adapter) as memory, captured(model, adapter) as seen:
        routed = {"facts": torch.ones_like(task), "task": task}
        options: dict[str, Any] = {"segment_ids": segments, "sub_states": routed, "packed": packed}
        with memory.bind(random_state(memory), token_mask=LEFT_PADDED, trace=True, **options) as bound:
            model(tokens())
    vectors = {}
    for name, [x] in seen.items():
        long, short = [x[0, :2].mean(0), x[0, 2:].mean(0)], [x[1, 5], x[1, 8:].mean(0)]
        vectors[name] = [[long, [], long], [short, short[1:], short]]
    assert_gates(bound.gates, mean_gates(adapter, model, vectors))


@torch.no_grad()
@pytest.mark.parametrize("config", [MSW, SSW])
def test_where_nothing_wrote_the_gates_are_zero(config: dict[str, Any]) -> None:
    model, segments = build(), torch.zeros(2, 12, dtype=torch.long)
    with attached(model, random_adapter(model, **config)) as memory:
        start = random_state(memory)
        for options in ({"write": False}, {"sub_states": ()}, {"token_mask": torch.zeros(2, 12, dtype=torch.bool)}):
            with memory.bind(start, segment_ids=segments, trace=True, **options) as bound:  # type: ignore[arg-type]
                model(tokens())
            assert set(bound.gates) == set(start.tensors)
            assert all(torch.equal(gates, torch.zeros(2, 3)) for gates in bound.gates.values())


@torch.no_grad()
@pytest.mark.parametrize("config", [MSW, SSW])
def test_untraced_bindings_record_nothing_and_tracing_changes_nothing(config: dict[str, Any]) -> None:
    model, segments = build(), torch.zeros(2, 12, dtype=torch.long)
    with attached(model, random_adapter(model, **config)) as memory:
        start, logits, states = random_state(memory), [], []
        for trace in (True, False):
            with memory.bind(start, segment_ids=segments, trace=trace) as bound:
                logits.append(model(tokens()).logits)
            states.append(bound.state)
    assert bound.gates == {} and bound.traced == {}
    assert torch.equal(*logits) and same_bits(*states)


@torch.no_grad()
def test_threads_trace_their_own_bindings() -> None:
    model = build()
    with attached(model, random_adapter(model, **MSW)) as memory:

        def gates(seed: int) -> dict[str, Tensor]:
            with torch.no_grad(), memory.bind(memory.new_state(2), trace=True) as bound:
                for _ in range(4):
                    model(tokens(seed=seed))
            return bound.gates

        alone = [gates(seed) for seed in range(6)]
        with ThreadPoolExecutor(6) as pool:
            for want, got in zip(alone, pool.map(gates, range(6)), strict=True):
                assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_layers_that_are_computed_again_count_once() -> None:
    """The gates are cut from autograd, and the backward pass of gradient checkpointing does not add to them."""
    model = build(attention_dropout=0.0).requires_grad_(False).train()
    memory = attach(model, random_adapter(model, **MSW), trainable=True)
    model.gradient_checkpointing_enable()  # type: ignore[operator]
    with memory.bind(random_state(memory), trace=True) as bound:
        loss = model(tokens(), attention_mask=LEFT_PADDED.long(), use_cache=False).logits.square().mean()
    loss.backward()
    for traced in bound.traced.values():
        assert not traced.requires_grad
        assert torch.equal(traced[1], torch.tensor([[12.0] * 3, [7.0] * 3]))
