"""Injection into any decoder: zero corrections change nothing, detach leaves nothing, each head goes to its place."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from memory_backbones import BACKBONES, OTHERS, attached, build, close, random_adapter, random_state, same_bits, tokens
from torch import nn

from deltamem_agents.errors import AdapterError, BackboneError
from deltamem_agents.memory import AdapterConfig, attach, new_adapter

EVERY = [*BACKBONES, *OTHERS]
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@pytest.fixture(params=EVERY)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    with torch.no_grad():
        yield request.param


def heads_of(name: str) -> tuple[str, ...]:
    return (BACKBONES | OTHERS)[name].heads


def tree(model: nn.Module) -> Any:
    """Everything that attaching could leave behind."""
    return (
        [(name, id(module), type(module), sorted(vars(module))) for name, module in model.named_modules()],
        [{hook: list(getattr(m, hook)) for hook in HOOKS} for m in model.modules()],
        {key: (id(value), value.shape) for key, value in model.named_parameters()},
        list(model.state_dict()),
    )


def test_zero_corrections_give_the_very_bits(name: str) -> None:
    model, ids = build(name), tokens()
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    want = model(ids, attention_mask=mask).logits
    zero = new_adapter(model, AdapterConfig(rank=4, num_state_heads=2, delta_heads=heads_of(name)))
    with attached(model, zero) as memory:
        assert torch.equal(model(ids, attention_mask=mask).logits, want)
        with memory.bind(random_state(memory)) as bound:
            assert torch.equal(model(ids, attention_mask=mask).logits, want)
        assert not same_bits(bound.state, bound.initial)
        with memory.bind(bound.state, write=False):
            assert torch.equal(model(ids, attention_mask=mask).logits, want)
    assert torch.equal(model(ids, attention_mask=mask).logits, want)


def test_detach_restores_the_module_tree(name: str) -> None:
    model = build(name)
    before, keys = tree(model), list(model.state_dict())
    want = model(tokens()).logits
    memory = attach(model, random_adapter(model, delta_heads=heads_of(name)))
    assert tree(model) != before
    assert list(model.state_dict()) == keys and memory.model is model
    with memory.bind(random_state(memory)):
        assert not torch.equal(model(tokens()).logits, want)
    memory.detach()
    assert tree(model) == before
    assert torch.equal(model(tokens()).logits, want)
    again = attach(model, random_adapter(model, delta_heads=heads_of(name)))
    again.detach()
    assert tree(model) == before


def test_state_names_and_shapes(name: str) -> None:
    model, pattern = build(name), (BACKBONES | OTHERS)[name].attention
    with attached(model, random_adapter(model, num_state_heads=3, delta_heads=heads_of(name))) as memory:
        state = memory.new_state(5)
    assert list(state.tensors) == [pattern.format(0), pattern.format(1)]
    assert all(t.shape == (5, 3, 4, 4) and t.dtype == torch.float32 and not t.any() for t in state.tensors.values())


def test_each_correction_reaches_its_own_part(name: str) -> None:
    """A correction equals a change of the projection's output by Δ, measured at the output itself."""
    for head in heads_of(name):
        model = build(name)
        seen: list[torch.Tensor] = []
        with attached(model, random_adapter(model, delta_heads=(head,), target_layers=(0,))) as memory:
            layer = memory.layers[0]
            attention = model.get_submodule(next(iter(memory.new_state().tensors)))
            linears = [m for m in attention.children() if m._forward_hooks]
            assert len(linears) == 1
            handle = linears[0].register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.clone()))
            model(tokens())
            with memory.bind(random_state(memory), write=False) as bound:
                model(tokens())
            handle.remove()
        delta = layer.correction(head, next(iter(bound.reads.values())), torch.float32)  # type: ignore[operator]
        difference = seen[1] - seen[0]
        if delta.shape == difference.shape:
            close(difference, delta, 1e-4)
        else:  # fused: the rest is untouched
            felt = difference.abs().amax((0, 1)) > 1e-6
            assert int(felt.sum()) == delta.shape[-1]
            close(difference[..., felt], delta, 1e-4)


def test_neox_interleaves_heads_and_gpt2_does_not() -> None:
    def felt(name: str, head: str) -> list[int]:
        model, seen = build(name), []
        with torch.no_grad(), attached(model, random_adapter(model, delta_heads=(head,))) as memory:
            attention = model.get_submodule(next(iter(memory.new_state().tensors)))
            linear = next(m for m in attention.children() if m._forward_hooks)
            handle = linear.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
            model(tokens())
            with memory.bind(random_state(memory), write=False):
                model(tokens())
            handle.remove()
        return ((seen[1] - seen[0]).abs().amax((0, 1)) > 1e-6).nonzero()[:, 0].tolist()

    assert felt("gpt2", "k") == list(range(32, 64))
    assert felt("gpt_neox", "k") == [h * 24 + 8 + i for h in range(4) for i in range(8)]


@torch.no_grad()
@pytest.mark.parametrize("layers", [(), (0,), (1,), (0, 2), (2, 1)])
def test_any_subset_of_layers(layers: tuple[int, ...]) -> None:
    model = build("llama", num_hidden_layers=3)
    with attached(model, random_adapter(model, target_layers=layers)) as memory:
        with memory.bind(memory.new_state(2)) as bound:
            model(tokens())
        assert list(bound.state.tensors) == [f"model.layers.{i}.self_attn" for i in (sorted(layers) or range(3))]
        assert all(t.any() for t in bound.state.tensors.values())


@torch.no_grad()
def test_the_bare_decoder_takes_the_adapter_of_the_whole_model() -> None:
    """Layer names end alike with and without a wrapper; the numbers are the same."""
    model = build("qwen3")
    adapter = random_adapter(model)
    with attached(model, adapter) as memory, memory.bind(memory.new_state(2)) as bound:
        want = model(tokens(), output_hidden_states=True).hidden_states[-1]
    with attached(model.model, adapter) as memory, memory.bind(memory.new_state(2)) as bare:
        got = model.model(tokens()).last_hidden_state
    close(got, want)
    close(bare.state.tensors["layers.0.self_attn"], bound.state.tensors["model.layers.0.self_attn"])


@torch.no_grad()
def test_the_state_stays_float32_in_a_bfloat16_model() -> None:
    model = build("qwen3").bfloat16()
    with attached(model, random_adapter(model)) as memory:
        assert {p.dtype for p in memory.parameters()} == {torch.bfloat16}
        with memory.bind(memory.new_state(2)) as bound:
            assert model(tokens()).logits.dtype == torch.bfloat16
        assert {t.dtype for t in bound.state.tensors.values()} == {torch.float32}
    with attached(model, random_adapter(model), dtype=torch.float32) as memory:
        assert {p.dtype for p in memory.parameters()} == {torch.float32}
        with memory.bind(memory.new_state(2)):
            assert model(tokens()).logits.dtype == torch.bfloat16


def test_only_a_trainable_memory_has_gradients() -> None:
    model = build("qwen3").requires_grad_(False)
    adapter = random_adapter(model)
    with attached(model, adapter) as memory:
        assert not any(p.requires_grad for p in memory.parameters())
    with attached(model, adapter, trainable=True) as memory:
        with memory.bind(memory.new_state(2)):
            model(tokens()).logits.square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in memory.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_two_memories_do_not_fit_on_one_model() -> None:
    model = build("qwen3")
    with attached(model, random_adapter(model)), pytest.raises(BackboneError, match="detach"):
        attach(model, random_adapter(model))


def test_detaching_again_leaves_the_next_memory_alone() -> None:
    model = build("qwen3")
    first = attach(model, random_adapter(model))
    first.detach()
    second = attach(model, random_adapter(model))
    attached_once = tree(model)
    first.detach()
    assert tree(model) == attached_once
    with pytest.raises(BackboneError, match="detach"):
        attach(model, random_adapter(model))
    second.detach()


def test_a_model_without_attention_is_named() -> None:
    with pytest.raises(BackboneError, match=r"Sequential.*PROJECTIONS"):
        new_adapter(nn.Sequential(nn.Linear(2, 2)), AdapterConfig())


def test_a_head_that_the_backbone_has_not() -> None:
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn.*'k'"):
        new_adapter(build("deepseek_v3"), AdapterConfig(delta_heads=("k", "o")))


def test_a_failed_attach_leaves_nothing() -> None:
    model = build("qwen3")
    before = tree(model)
    other = random_adapter(build("qwen3", hidden_size=48))
    with pytest.raises(AdapterError, match="shape"):
        attach(model, other)
    assert tree(model) == before
