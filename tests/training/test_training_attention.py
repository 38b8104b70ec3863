"""Packed rows against each sequence alone, as transformers' own attention computes it, for every backbone."""

from typing import Any

import pytest
import torch
from memory.memory_backbones import BACKBONES, COMMON, OTHERS, build, tokens
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from deltamem_agents.errors import RecipeError
from deltamem_agents.training.attention import PACKED_ATTENTION, check_packable
from deltamem_agents.training.packing import pack_rows

LENGTHS = (20, 3, 15)  # the windows of the backbones are 8
CHOOSES_ITSELF = {"gptj"}  # attention that transformers does not let one choose
NAMES = sorted({*BACKBONES, *OTHERS} - CHOOSES_ITSELF)
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8}


def other(model_type: str, **extra: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**COMMON, **extra})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def hidden(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        states: Tensor = model.base_model(**{"use_cache": False} | inputs).last_hidden_state
    return states


def alone_and_packed(model: Any, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Hidden states of sequences: one call of eager attention for each, and all in one packed row."""
    model.set_attn_implementation("eager")
    sequences = [tokens(1, length, seed=length)[0] for length in LENGTHS]
    alone = [hidden(model, input_ids=ids[None].to(device))[0] for ids in sequences]
    model.set_attn_implementation(PACKED_ATTENTION)
    rows = pack_rows([[ids.tolist() for ids in sequences]], 48, 8, 0).to(device)
    packed = hidden(
        model, input_ids=rows.input_ids, position_ids=rows.position_ids, cu_seqlens=rows.cu_seqlens, max_seqlen=48
    )
    return torch.cat(alone), packed[0, : sum(LENGTHS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_sequence_is_what_it_is_alone(name: str) -> None:
    model = build(name)
    torch.testing.assert_close(*alone_and_packed(model), atol=5e-5, rtol=1e-4)
    check_packable(model)


def test_attention_sinks_are_those_of_the_backbone() -> None:
    model = other("gpt_oss", **EXPERTS)
    for layer in model.model.layers:
        layer.self_attn.sinks.data.normal_()
    torch.testing.assert_close(*alone_and_packed(model), atol=5e-5, rtol=1e-4)
    check_packable(model)


def test_capped_scores_are_felt() -> None:
    model = build("gemma2", attn_logit_softcapping=0.5)
    alone, packed = alone_and_packed(model)
    torch.testing.assert_close(alone, packed, atol=5e-5, rtol=1e-4)
    uncapped, _ = alone_and_packed(build("gemma2", attn_logit_softcapping=None))
    assert (alone - uncapped).abs().max() > 0.1


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2", "gemma3"])
def test_padded_rows_and_cached_calls_are_ordinary_attention(name: str) -> None:
    model, ids = build(name), tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0  # padding on the left
    found = []
    for attention in ("eager", PACKED_ATTENTION):
        model.set_attn_implementation(attention)
        padded = hidden(model, input_ids=ids, attention_mask=mask)
        with torch.no_grad():
            cache = model(ids[:, :12], use_cache=True).past_key_values
            pieces = [model(ids[:, a:b], past_key_values=cache).logits for a, b in ((12, 16), (16, 17), (17, 20))]
        found.append((padded[0], padded[1, 9:], torch.cat(pieces, dim=1)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)


def test_layers_without_attention_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"'linear_attention' \(qwen3_next\)"):
        check_packable(other("qwen3_next", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16))


def test_a_backbone_whose_packed_sequences_see_each_other_is_refused_by_name() -> None:
    model = other("falcon")
    model.set_attn_implementation(PACKED_ATTENTION)
    with pytest.raises(RecipeError, match=r"falcon backbones cannot be trained.*see each other"):
        check_packable(model)


def test_attention_with_more_than_we_know_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    model.set_attn_implementation(PACKED_ATTENTION)
    attention = type(model.model.layers[0].self_attn)
    forward = attention.forward
    bias = torch.zeros(1)
    monkeypatch.setattr(attention, "forward", lambda self, *a, **kw: forward(self, *a, **kw, position_bias=bias))
    with pytest.raises(RecipeError, match="LlamaAttention attends with position_bias"):
        check_packable(model)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_on_cuda_in_bfloat16(name: str) -> None:
    exact, _ = alone_and_packed(build(name))
    alone, packed = alone_and_packed(build(name).to("cuda", torch.bfloat16), "cuda")
    error, noise = ((x.cpu().float() - exact).norm() / exact.norm() for x in (packed, alone))
    assert error < 2 * noise + 1e-3
