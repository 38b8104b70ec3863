"""Every live field of an adapter's config, against the slow form written from the equations."""

from typing import Any

import numpy as np
import pytest
import torch
from memory_backbones import BACKBONES, attached, build, close, random_adapter, tokens
from memory_reference import SlowMemory
from torch import Tensor

from deltamem_agents.memory import AdapterConfig, DeltaMemory

FIELDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rank": {"rank": 3},
    "alpha": {"alpha": 5.0},
    "num_state_heads": {"num_state_heads": 3},
    "message_mean": {"memory_write_granularity": "message_mean"},
    "sentence_mean": {"memory_write_granularity": "sentence_mean"},
    "message_mean_of_two_heads": {"memory_write_granularity": "message_mean", "num_state_heads": 2},
    "uncoupled": {"couple_lambda": False},
    "lambda_outside": {"state_update_mode": "lambda_outside"},
    "lambda_outside_uncoupled": {"state_update_mode": "lambda_outside", "couple_lambda": False},
    "no_lambda": {"state_update_mode": "no_lambda"},
    "no_lambda_uncoupled": {"state_update_mode": "no_lambda", "couple_lambda": False},
    "not_normalised": {"normalize_qk": False},
    "one_gate_per_head": {"rankwise_gates": False},
    "one_gate_per_head_msw": {"rankwise_gates": False, "num_state_heads": 3, "couple_lambda": False},
    "q": {"delta_heads": ("q",)},
    "k": {"delta_heads": ("k",)},
    "v": {"delta_heads": ("v",)},
    "o": {"delta_heads": ("o",)},
    "qkvo": {"delta_heads": ("q", "k", "v", "o")},
    "first_layer": {"target_layers": (0,)},
    "last_layer": {"target_layers": (1,), "delta_heads": ("k", "o")},
    "o_rmsnorm": {"delta_o_rmsnorm": True},
    "o_rmsnorm_eps": {"delta_o_rmsnorm": True, "delta_o_rmsnorm_eps": 0.3},
    "o_rmsnorm_without_o": {"delta_o_rmsnorm": True, "delta_heads": ("q", "v")},
    "scale_of_the_layer": {"trainable_delta_scale": True},
    "scale_max": {"trainable_delta_scale": True, "delta_scale_max": 0.7},
    "scale_of_each_head": {"trainable_delta_scale": True, "delta_scale_granularity": "head"},
    "scale_of_four_heads": {
        "trainable_delta_scale": True,
        "delta_scale_granularity": "head",
        "delta_heads": ("q", "k", "v", "o"),
    },
    "scale_then_norm": {"trainable_delta_scale": True, "delta_o_rmsnorm": True, "delta_o_rmsnorm_eps": 0.1},
    "all_at_once": {
        "rank": 3,
        "alpha": 7.0,
        "num_state_heads": 2,
        "state_update_mode": "lambda_outside",
        "couple_lambda": False,
        "rankwise_gates": False,
        "delta_heads": ("q", "k", "v", "o"),
        "delta_o_rmsnorm": True,
        "trainable_delta_scale": True,
        "delta_scale_granularity": "head",
    },
}
MASK = torch.tensor([[1] * 12, [0] * 4 + [1] * 8])
SEGMENTS = torch.tensor([[-1, 0, 0, 0, 2, 2, -1, 3, 3, 3, 3, -1], [-1] * 4 + [0, 1, 1, 1, -1, 4, 4, 4]])


def segments_for(config: AdapterConfig) -> Tensor | None:
    return None if config.memory_write_granularity == "token" else SEGMENTS


@torch.no_grad()
def compare(model: Any, memory: DeltaMemory, slow: SlowMemory) -> None:
    """A write with left padding, another one on top, and a read with the KV cache."""
    segments, ids, question = segments_for(memory.config), tokens(), tokens(2, 5, seed=9)
    with memory.bind(memory.new_state(2), segment_ids=segments) as bound:
        for seed in (3, 5):
            got = model(tokens(seed=seed), attention_mask=MASK, use_cache=False).logits
            want = slow(tokens(seed=seed), MASK, segment_ids=segments, use_cache=False).logits
            close(got[MASK.bool()], want[MASK.bool()], 1e-4)
    for name, state in bound.state.tensors.items():
        np.testing.assert_allclose(state.numpy(), slow.state[name], atol=1e-4, rtol=1e-4)
        assert state.abs().max() > 1e-3
    with memory.bind(bound.state, write=False):
        got = model(question, use_cache=True)
        again = model(ids[:, :3], past_key_values=got.past_key_values).logits
    want = slow(question, write=False, use_cache=True)
    close(got.logits, want.logits, 1e-4)
    more = slow(ids[:, :3], write=False, past_key_values=want.past_key_values).logits
    close(again, more, 1e-4)
    assert (got.logits - model(question).logits).abs().max() > 1e-3  # the corrections are felt


@pytest.mark.parametrize("case", FIELDS)
def test_every_live_field(case: str) -> None:
    model = build("qwen3")
    adapter = random_adapter(model, **FIELDS[case])
    slow = SlowMemory(build("qwen3"), adapter.tensors, 2, **{"rank": 4, **FIELDS[case]})
    with attached(model, adapter) as memory:
        compare(model, memory, slow)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "qwen3"])
def test_all_four_heads_on_every_backbone(name: str) -> None:
    config = {"num_state_heads": 2, "delta_heads": ("q", "k", "v", "o")}
    model = build(name)
    adapter = random_adapter(model, **config)
    slow = SlowMemory(build(name), adapter.tensors, 2, **{"rank": 4, **config})
    with attached(model, adapter) as memory:
        compare(model, memory, slow)


def test_four_raw_scales_count_from_q_whatever_is_corrected() -> None:
    """Official files hold four numbers even when fewer heads are corrected."""
    config = {"trainable_delta_scale": True, "delta_scale_granularity": "head", "delta_heads": ("k", "o")}
    model = build("qwen3")
    adapter = random_adapter(model, **config)
    for name in [name for name in adapter.tensors if name.endswith("delta_scale_raw")]:
        adapter.tensors[name] = torch.tensor([9.0, -1.0, 9.0, 0.5])  # type: ignore[index]
    slow = SlowMemory(build("qwen3"), adapter.tensors, 2, **{"rank": 4, **config})
    with attached(model, adapter) as memory:
        compare(model, memory, slow)


def test_the_table_names_every_field() -> None:
    """A field without a case fails here: granularity, update mode and heads are named by their values."""
    used = {field for case in FIELDS.values() for field in case}
    assert used == {*AdapterConfig.__dataclass_fields__} - {"sub_states"}


@torch.no_grad()
def test_writes_routed_token_by_token() -> None:
    """Sub-states by name and by token, and a write mask on top."""
    config = {"num_state_heads": 3}
    layout = {"facts": (0, 2), "task": (1,)}
    model = build("qwen3")
    adapter = random_adapter(model, sub_states=layout, **config)
    slow = SlowMemory(build("qwen3"), adapter.tensors, 2, **{"rank": 4, **config})
    g = torch.Generator().manual_seed(0)
    facts, task, write = (torch.rand(2, 12, generator=g) < 0.5 for _ in range(3))
    with (
        attached(model, adapter) as memory,
        memory.bind(memory.new_state(2), write=write, sub_states={"facts": facts, "task": task}) as bound,
    ):
        got = model(tokens(), attention_mask=MASK).logits
    routed = torch.stack([facts, task, facts], dim=-1) & write[..., None]
    want = slow(tokens(), MASK, write=routed).logits
    close(got[MASK.bool()], want[MASK.bool()], 1e-4)
    for name, state in bound.state.tensors.items():
        np.testing.assert_allclose(state.numpy(), slow.state[name], atol=1e-4, rtol=1e-4)
