"""Mean writes (SSW): order, reads inside the call, segments across calls, and several writes packed in one row."""

import numpy as np
import pytest
import torch
from memory_backbones import attached, build, close, close_states, random_adapter, random_state, same_bits, tokens
from memory_reference import SlowLayer, SlowMemory
from torch import Tensor

from deltamem_agents.errors import AdapterError, StateError

SSW = {"memory_write_granularity": "message_mean", "num_state_heads": 2}


@torch.no_grad()
def write(ids: Tensor, segments: Tensor, **options: object) -> tuple[Tensor, object]:
    model = build()
    with attached(model, random_adapter(model, **SSW)) as memory:
        start = random_state(memory)
        with memory.bind(start, segment_ids=segments, **options) as bound:  # type: ignore[arg-type]
            logits = model(ids).logits
    return logits, (start, bound.state)


def test_reads_inside_a_call_see_the_state_before_it() -> None:
    """Logits do not depend on how the tokens are split into messages."""
    one, _ = write(tokens(), torch.zeros(2, 12, dtype=torch.long))
    two, _ = write(tokens(), torch.arange(12).expand(2, 12))
    none, _ = write(tokens(), torch.full((2, 12), -1))
    assert torch.equal(one, two) and torch.equal(one, none)


def test_tokens_of_no_segment_do_not_write() -> None:
    _, (start, state) = write(tokens(), torch.full((2, 12), -1))  # type: ignore[misc]
    assert same_bits(state, start)  # type: ignore[has-type]
    ids, segments = tokens(), torch.full((2, 12), -1)
    segments[1, 4:7] = 0
    _, (start, state) = write(ids, segments)  # type: ignore[misc]
    assert same_bits(state.rows([0]), start.rows([0]))  # type: ignore[has-type]
    assert not same_bits(state.rows([1]), start.rows([1]))  # type: ignore[has-type]


def test_only_the_order_of_segment_numbers_counts() -> None:
    near = torch.tensor([[0] * 4 + [1] * 4 + [2] * 4] * 2)
    far = torch.tensor([[3] * 4 + [10] * 4 + [500] * 4] * 2)
    turned = torch.tensor([[2] * 4 + [1] * 4 + [0] * 4] * 2)
    states = [write(tokens(), segments)[1][1] for segments in (near, far, turned)]  # type: ignore[index]
    close_states(states[0], states[1])
    first, last = (state.tensors["model.layers.0.self_attn"] for state in (states[0], states[2]))
    assert (first - last).abs().max() > 1e-3


def test_a_write_mask_narrows_the_mean() -> None:
    model = build()
    adapter = random_adapter(model, **SSW)
    slow = SlowMemory(build(), adapter.tensors, 2, rank=4, **SSW)
    who = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.6
    segments = torch.tensor([[0] * 6 + [1] * 6, [-1] * 6 + [1] * 6])
    with torch.no_grad(), attached(model, adapter) as memory:
        start = memory.new_state(2)
        with memory.bind(start, write=who, segment_ids=segments) as bound:
            model(tokens())
    slow(tokens(), write=who[..., None].expand(2, 12, 2), segment_ids=segments)
    for name, state in bound.state.tensors.items():
        np.testing.assert_allclose(state.numpy(), slow.state[name], atol=1e-4, rtol=1e-4)


def test_packed_segments_are_seen_by_later_ones() -> None:
    """One layer: token t reads a state that holds the segments that ended before t."""
    model = build(num_hidden_layers=1)
    adapter = random_adapter(model, **SSW)
    segments = torch.tensor([[0] * 4 + [1] * 3 + [2] * 5, [-1] * 2 + [5] * 3 + [-1] * 3 + [7] * 4])
    seen: list[Tensor] = []
    model.model.layers[0].self_attn.register_forward_pre_hook(  # type: ignore[union-attr, index]
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad(), attached(model, adapter) as memory:
        start = memory.new_state(2)
        with memory.bind(start, segment_ids=segments, packed=True) as bound:
            model(tokens())
    name = "model.layers.0.self_attn"
    slow = SlowMemory(model, adapter.tensors, 2, rank=4, **SSW)
    layer: SlowLayer = slow.layers[name]
    x = seen[0].double().numpy()
    for b in range(2):
        state = np.zeros((2, 4, 4))
        for t in range(12):
            one = np.full(12, -1)
            number = int(segments[b, t])
            reads, _ = layer.run(x[b, t : t + 1], state, np.ones(1, bool), np.zeros((1, 2), bool), None)
            np.testing.assert_allclose(bound.reads[name][b, t].numpy(), reads[0], atol=1e-5, rtol=1e-4)
            if number >= 0 and (t == 11 or int(segments[b, t + 1]) != number):
                one[(segments[b] == number).numpy()] = 0
                _, state = layer.run(x[b], state, np.ones(12, bool), np.ones((12, 2), bool), one)
        np.testing.assert_allclose(bound.state.tensors[name][b].numpy(), state, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_or_not_the_first_layer_ends_with_the_same_state() -> None:
    segments = torch.tensor([[0] * 4 + [1] * 3 + [2] * 5, [-1] * 2 + [5] * 3 + [-1] * 3 + [7] * 4])
    (_, (_, plain)), (_, (_, packed)) = (write(tokens(), segments, packed=packed) for packed in (False, True))  # type: ignore[misc]
    name = "model.layers.0.self_attn"
    close(plain.tensors[name], packed.tensors[name])  # type: ignore[has-type]


@torch.no_grad()
def test_sentences_and_messages_are_the_same_arithmetic() -> None:
    model, segments = build(), torch.tensor([[0] * 6 + [1] * 6] * 2)
    states = []
    for kind in ("message_mean", "sentence_mean"):
        with attached(model, random_adapter(model, memory_write_granularity=kind)) as memory:
            start = memory.new_state(2)
            with memory.bind(start, segment_ids=segments) as bound:
                model(tokens())
        states.append(bound.state)
    assert same_bits(*states)
    with pytest.raises(StateError):
        states[0].fingerprint.check(states[1].fingerprint)  # and yet another adapter


@torch.no_grad()
def test_segment_ids_are_asked_for_and_checked() -> None:
    model = build()
    with attached(model, random_adapter(model, **SSW)) as memory:
        with memory.bind(memory.new_state(2)), pytest.raises(AdapterError, match=r"message_mean.*segment_ids"):
            model(tokens())
        wrong = torch.zeros(2, 11, dtype=torch.long)
        with (
            memory.bind(memory.new_state(2), segment_ids=wrong),
            pytest.raises(StateError, match=r"segment_ids.*\(2, 11\).*\(2, 12\)"),
        ):
            model(tokens())
        with memory.bind(memory.new_state(2), write=False):
            model(tokens())  # reading needs none
