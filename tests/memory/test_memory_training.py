"""Gradients through states, and gradient checkpointing: nothing is written twice, gradients stay what they are."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_backbones import BACKBONES, build, close, close_states, random_adapter, random_state, tokens
from torch import Tensor, nn

from deltamem_agents.errors import FingerprintMismatch
from deltamem_agents.memory import DeltaMemory, Fingerprint, MemoryState, attach

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
SEGMENTS = torch.tensor([[0] * 5 + [1] * 7, [-1] * 3 + [4] * 9])


def two_calls(model: nn.Module, memory: DeltaMemory, padding: int = 3, **options: Any) -> tuple[MemoryState, Tensor]:
    """Write twice, then ask: a loss whose gradients cross both states."""
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :padding] = 0
    with memory.bind(random_state(memory), **options) as written:
        first = model(tokens(), attention_mask=mask, use_cache=False).logits
        model(tokens(seed=5), attention_mask=mask, use_cache=False)
    with memory.bind(written.state, write=False):
        second = model(tokens(2, 5, seed=9), use_cache=False).logits
    return written.state, first[mask.bool()].square().mean() + second.square().mean()


def gradients(loss: Tensor, memory: DeltaMemory) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(memory.parameters()))
    return dict(zip([name for name, _ in memory.named_parameters()], found, strict=True))


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_checkpointing_gives_the_same_states_and_gradients(name: str, reentrant: bool | None) -> None:
    model = build(name, attention_dropout=0.0).requires_grad_(False).train()
    memory = attach(model, random_adapter(model, num_state_heads=2, delta_heads=("q", "k", "v", "o")), trainable=True)
    state, loss = two_calls(model, memory)
    want = gradients(loss, memory)
    kwargs = None if reentrant is None else {"use_reentrant": reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)  # type: ignore[operator]
    functions = {n: m.__dict__.get("_gradient_checkpointing_func") for n, m in model.named_modules()}
    again, loss = two_calls(model, memory)
    close_states(again, state)
    assert functions == {n: m.__dict__.get("_gradient_checkpointing_func") for n, m in model.named_modules()}
    before = {name: t.detach().clone() for name, t in again.tensors.items()}
    for key, got in gradients(loss, memory).items():
        close(got, want[key], 1e-5 * max(1.0, float(want[key].abs().max())))
    assert all(torch.equal(again.tensors[name], t) for name, t in before.items())


def test_checkpointing_recomputes_the_layers() -> None:
    """The check above would mean nothing if the layers were not run again."""
    model = build("qwen3").requires_grad_(False).train()
    memory = attach(model, random_adapter(model), trainable=True)
    model.gradient_checkpointing_enable()  # type: ignore[operator]
    calls: list[int] = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr, index]
    _, loss = two_calls(model, memory)
    forward = len(calls)
    gradients(loss, memory)
    assert forward == 3 and len(calls) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_checkpointing_with_mean_writes(packed: bool) -> None:
    model = build("qwen3").requires_grad_(False).train()
    adapter = random_adapter(model, memory_write_granularity="message_mean", num_state_heads=2)
    memory = attach(model, adapter, trainable=True)
    state, loss = two_calls(model, memory, segment_ids=SEGMENTS, packed=packed)
    want = gradients(loss, memory)
    model.gradient_checkpointing_enable()  # type: ignore[operator]
    again, loss = two_calls(model, memory, segment_ids=SEGMENTS, packed=packed)
    close_states(again, state)
    for key, got in gradients(loss, memory).items():
        close(got, want[key], 1e-5 * max(1.0, float(want[key].abs().max())))


def test_gradients_equal_finite_differences() -> None:
    model = build("llama", num_hidden_layers=1).double().requires_grad_(False)
    adapter = random_adapter(model, delta_heads=("q", "o"), delta_o_rmsnorm=True, couple_lambda=False)
    memory = attach(model, adapter, dtype=torch.float64, trainable=True)
    _, loss = two_calls(model, memory, padding=0)
    want = gradients(loss, memory)
    for name, parameter in memory.named_parameters():
        g = torch.Generator().manual_seed(0)
        direction = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        direction /= direction.norm()
        values, kept, step = [], parameter.detach().clone(), 2e-3
        with torch.no_grad():
            for sign in (1, -1):
                parameter.copy_(kept + sign * step * direction)
                values.append(two_calls(model, memory, padding=0)[1])
            parameter.copy_(kept)
        slope, got = float((values[0] - values[1]) / (2 * step)), float((want[name] * direction).sum())
        assert abs(slope - got) < 1e-3 + 1e-2 * abs(got), name  # states and reads are float32 inside


def test_the_loss_reaches_the_state_that_was_bound_and_detach_cuts_it() -> None:
    model = build("qwen3").requires_grad_(False)
    memory = attach(model, random_adapter(model), trainable=True)
    with memory.bind(memory.new_state(2)) as bound:
        model(tokens())
    assert all(t.requires_grad for t in bound.state.tensors.values())
    assert not any(t.requires_grad for t in bound.state.detach().tensors.values())


def test_a_compiled_training_step_equals_the_eager_one() -> None:
    """Both bindings inside one graph, tokens routed to sub-states by masks."""
    model = build("qwen3", num_hidden_layers=1).requires_grad_(False)
    layout = {"facts": (0,), "task": (1,)}
    memory = attach(model, random_adapter(model, num_state_heads=2, sub_states=layout), trainable=True)
    facts = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 9:] = False

    def step(ids: Tensor, asked: Tensor, where: Tensor) -> Tensor:
        routed = {"facts": where, "task": ~where}
        with memory.bind(memory.new_state(2), token_mask=mask, sub_states=routed) as bound:
            model(ids, use_cache=False)
        with memory.bind(bound.state, write=False):
            loss: Tensor = model(asked, use_cache=False).logits.square().mean()
        return loss

    torch.compiler.reset()
    fast = torch.compile(step, backend="aot_eager", fullgraph=True)
    for _ in range(3):  # the later steps run what the first compiled, with other weights and another fingerprint
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = fast(tokens(), tokens(2, 5), facts)
        want = step(tokens(), tokens(2, 5), facts)
        close(got, want)
        grads = gradients(want, memory)
        for key, value in gradients(got, memory).items():
            close(value, grads[key], 1e-5 * max(1.0, float(grads[key].abs().max())))
        train(memory)
    torch.compiler.reset()


def train(memory: DeltaMemory) -> None:
    """Move every weight a little."""
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.01)


def test_checkpointing_recomputes_each_call_with_its_own_mask() -> None:
    model = build("qwen3").requires_grad_(False).train()
    memory = attach(model, random_adapter(model), trainable=True)
    masks = torch.ones(2, 2, 12, dtype=torch.long)
    masks[0, 1, :3], masks[1, 0, :7] = 0, 0

    def loss() -> Tensor:
        with memory.bind(random_state(memory)) as bound:
            total = torch.zeros(())
            for mask in masks:
                logits = model(tokens(), attention_mask=mask, use_cache=False).logits
                total = total + logits[mask.bool()].square().mean()
        return total + sum(t.square().mean() for t in bound.state.tensors.values())

    want = gradients(loss(), memory)
    model.gradient_checkpointing_enable()  # type: ignore[operator]
    for key, got in gradients(loss(), memory).items():
        close(got, want[key], 1e-5 * max(1.0, float(want[key].abs().max())))


def test_training_moves_the_saved_adapter() -> None:
    model = build("qwen3").requires_grad_(False)
    adapter = random_adapter(model)
    memory = attach(model, adapter, trainable=True)
    optimiser = torch.optim.SGD(memory.parameters(), lr=0.1)
    _, loss = two_calls(model, memory)
    loss.backward()
    optimiser.step()
    now = memory.adapter()
    assert set(now.tensors) == set(adapter.tensors)
    assert all(not torch.equal(now.tensors[name], adapter.tensors[name]) for name in adapter.tensors)
    assert now.fingerprint != adapter.fingerprint


@torch.no_grad()
def test_the_fingerprint_of_a_trainable_memory_follows_its_weights() -> None:
    model, adapter = build("qwen3"), random_adapter(build("qwen3"))
    memory = attach(model, adapter, trainable=True)
    states = [memory.new_state(2)]
    assert states[0].fingerprint.adapter == adapter.fingerprint
    train(memory)
    states.append(memory.new_state(2))
    assert states[1].fingerprint == memory.fingerprint != states[0].fingerprint
    train(memory)
    for state in states:  # training goes on with what it wrote
        with memory.bind(state) as bound:
            model(tokens())
        assert bound.state.fingerprint == state.fingerprint
    with memory.bind(memory.new_state(2)) as bound:
        model(tokens())
    saved = memory.adapter()
    memory.detach()
    frozen = attach(model, saved)
    assert frozen.fingerprint == bound.state.fingerprint
    with frozen.bind(bound.state, write=False):
        model(tokens())
    for state in states:
        with pytest.raises(FingerprintMismatch, match="adapter"), frozen.bind(state):
            pytest.fail("bound")
    frozen.detach()


@torch.no_grad()
def test_a_trainable_memory_refuses_the_states_of_others() -> None:
    model = build("qwen3")
    memory = attach(model, random_adapter(model), trainable=True)
    state = memory.new_state(2)
    for other in (Fingerprint("x", state.fingerprint.backbone), Fingerprint(state.fingerprint.adapter, "x")):
        with pytest.raises(FingerprintMismatch), memory.bind(replace(state, fingerprint=other)):
            pytest.fail("bound")


def test_a_trainable_memory_in_bfloat16_begins_as_the_adapter_that_was_given() -> None:
    model = build("qwen3").bfloat16()
    adapter = random_adapter(model)
    memory = attach(model, adapter, trainable=True)
    assert memory.fingerprint.adapter == adapter.fingerprint
    train(memory)
    assert memory.fingerprint.adapter == memory.adapter().fingerprint != adapter.fingerprint
