"""Projections that add to a correction: the same results, whatever the backbone, and nothing left behind."""

import pytest
import torch
from memory_backbones import BACKBONES, OTHERS, build, random_adapter

from deltamem_agents.errors import StateError
from deltamem_agents.memory import attach

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def told(memory, model):
    with torch.no_grad(), memory.bind(memory.new_state(2)) as bound:
        model(input_ids=IDS)
    return bound.state


@pytest.mark.parametrize("name", [*BACKBONES, *OTHERS])
def test_the_results_are_the_same(name):
    model = build(name)
    row = (BACKBONES | OTHERS)[name]
    memory = attach(model, random_adapter(model, num_state_heads=2, delta_heads=row.heads))
    state = told(memory, model)
    forwards = {module: module.forward for module in model.modules()}
    with torch.no_grad():
        with memory.bind(state, write=False):
            want = model(input_ids=IDS).logits
        with memory.bind(state, write=False, accumulate=True) as bound:
            got = model(input_ids=IDS).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert bool(bound.deltas) == (name not in ("phi3", "gpt2", "gpt_neox"))
    assert all("forward" not in vars(module) for module in forwards)


def test_normed_and_scaled_corrections():
    for config in ({"delta_o_rmsnorm": True}, {"trainable_delta_scale": True, "delta_scale_granularity": "head"}):
        model = build("qwen2")  # whose projections have a bias
        memory = attach(model, random_adapter(model, num_state_heads=2, delta_heads=("q", "v", "o"), **config))
        state = told(memory, model)
        with torch.no_grad():
            with memory.bind(state, write=False):
                want = model(input_ids=IDS).logits
            with memory.bind(state, write=False, accumulate=True):
                got = model(input_ids=IDS).logits
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_it_is_for_reading():
    model = build()
    memory = attach(model, random_adapter(model))
    with pytest.raises(StateError, match="write=False"), memory.bind(memory.new_state(2), accumulate=True):
        pass


def test_weights_stay_fit_for_autograd_after_inference():
    """Joined in inference mode, they still take part in what has gradients."""
    model = build()
    memory = attach(model, random_adapter(model, delta_heads=("q", "o")))
    with torch.inference_mode():
        for options in ({"write": False, "accumulate": True}, {"write": True}):
            with memory.bind(memory.new_state(2), **options):
                model(input_ids=IDS)
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with memory.bind(told(memory, model), write=False):
        model(inputs_embeds=x, attention_mask=torch.ones_like(IDS)).logits.sum().backward()
    assert not any(parameter.is_inference() for parameter in memory.parameters())
    assert x.grad is not None and x.grad.abs().sum() > 0
