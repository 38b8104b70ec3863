"""Tiny random backbones, one table row each, and random adapters for them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from deltamem_agents.memory import Adapter, AdapterConfig, DeltaMemory, MemoryState, attach, new_adapter

VOCABULARY, HIDDEN, LAYERS = 64, 32, 2
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Backbone:
    """A row: the model type, what its config says otherwise, and the corrections that it can take."""

    model_type: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    heads: tuple[str, ...] = ("q", "k", "v", "o")
    attention: str = "model.layers.{}.self_attn"


BACKBONES = {
    "qwen3": Backbone("qwen3", {"head_dim": 16}),
    "smollm3": Backbone("smollm3", {"no_rope_layers": [1, 0]}),
    "llama": Backbone("llama"),
    "mistral": Backbone("mistral", {"sliding_window": 8}),
    "qwen2": Backbone("qwen2"),
    "gemma2": Backbone("gemma2", {"head_dim": 16, "sliding_window": 8}),
    "gemma3": Backbone("gemma3_text", {"head_dim": 16, "sliding_window": 8}),
    "phi3": Backbone("phi3"),
}
OTHERS = {
    "phi": Backbone("phi"),
    "gpt2": Backbone("gpt2", {"num_key_value_heads": 4}, attention="transformer.h.{}.attn"),
    "gpt_neox": Backbone("gpt_neox", {"num_key_value_heads": 4}, attention="gpt_neox.layers.{}.attention"),
    "gptj": Backbone("gptj", {"rotary_dim": 4}, attention="transformer.h.{}.attn"),
    "deepseek_v3": Backbone(
        "deepseek_v3",
        {
            "q_lora_rank": 12,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 2,
        },
        heads=("q", "o"),
    ),
}


def build(name: str = "qwen3", seed: int = 0, **extra: Any) -> nn.Module:
    row = (BACKBONES | OTHERS)[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(row.model_type, **{**COMMON, **row.extra, **extra})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def random_adapter(model: nn.Module, seed: int = 1, **config: Any) -> Adapter:
    """An adapter whose every parameter is random, biases, norms and scales too, and whose corrections are felt."""
    fresh = new_adapter(model, AdapterConfig(**{"rank": 4, **config}))
    g = torch.Generator().manual_seed(seed)
    spread = {"proj": 0.3, "bias": 1.0, "weight": 1.0, "raw": 1.0}
    tensors = {
        name: torch.randn(t.shape, generator=g) * spread[name.rpartition("_")[2]] for name, t in fresh.tensors.items()
    }
    if not fresh.config.normalize_qk:  # keys of any length would make the state grow without end
        tensors = {name: t * 0.2 if "memory_k_proj" in name else t for name, t in tensors.items()}
    return Adapter(fresh.config, tensors)


def tokens(batch: int = 2, length: int = 12, seed: int = 3) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def random_state(memory: DeltaMemory, batch: int = 2, seed: int = 4) -> MemoryState:
    """A state of ``memory`` that is nowhere zero."""
    empty, g = memory.new_state(batch), torch.Generator().manual_seed(seed)
    filled = {name: torch.randn(t.shape, generator=g) * 0.5 for name, t in empty.tensors.items()}
    return MemoryState(filled, empty.sub_states, empty.fingerprint)


@contextmanager
def attached(model: nn.Module, adapter: Adapter, **options: Any) -> Iterator[DeltaMemory]:
    memory = attach(model, adapter, **options)
    try:
        yield memory
    finally:
        memory.detach()


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def close_states(a: MemoryState, b: MemoryState, atol: float = 1e-5) -> None:
    assert set(a.tensors) == set(b.tensors)
    for name in a.tensors:
        close(a.tensors[name], b.tensors[name], atol)


def same_bits(a: MemoryState, b: MemoryState) -> bool:
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
