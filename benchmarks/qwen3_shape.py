"""The shape of Qwen3-4B with random weights, made on the device, and random adapters for it: times do not ask for wits.

Adapters: "tsw" one state head of 8x8; "msw4" four, two for each of the sub-states facts and task_progress, every token
written to both; "msw8" eight, four for each, and each token written to one of the two.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from deltamem_agents.memory import Adapter, AdapterConfig, DeltaMemory, MemoryState, attach, new_adapter

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
MODES = {
    "tsw": AdapterConfig(num_state_heads=1),
    "msw4": AdapterConfig(num_state_heads=4, sub_states={"facts": (0, 1), "task_progress": (2, 3)}),
    "msw8": AdapterConfig(num_state_heads=8, sub_states={"facts": (0, 1, 2, 3), "task_progress": (4, 5, 6, 7)}),
}
ROUTED = ("msw8",)
MESSAGE = 16  # tokens that are routed to the same sub-state, one after the other


def build_model(device: torch.device, tiny: bool = False, seed: int = 0) -> Any:
    """The frozen model in bfloat16 (float32 on CPU), with sdpa attention."""
    config = Qwen3Config(
        **(TINY if tiny else SHAPE),
        max_position_embeddings=262144,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6},
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def twin(model: Any) -> Any:
    """The same model over the same weights, with modules of its own: what is hooked to it does not reach ``model``."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def model_bytes(model: Any) -> int:
    """Of all weights; those that are tied count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def mode_adapter(model: Any, mode: str) -> Adapter:
    return new_adapter(model, MODES[mode], output_std=0.01, beta_bias=-1.5)


def with_memory(model: Any, mode: str, **options: Any) -> tuple[Any, DeltaMemory]:
    """A twin of ``model`` with a random adapter attached to it."""
    own = twin(model)
    return own, attach(own, mode_adapter(model, mode), **options)


def random_ids(model: Any, rows: int, tokens: int, seed: int = 0) -> Tensor:
    """(rows, tokens) token ids on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, model.config.vocab_size, (rows, tokens), generator=generator).to(model.device)


def random_states(memory: DeltaMemory, rows: int, device: torch.device) -> MemoryState:
    """A different state for each row."""
    generator = torch.Generator().manual_seed(rows)
    empty = memory.new_state(rows, device=device)
    return replace(
        empty,
        tensors={
            name: 0.1 * torch.randn(tensor.shape, generator=generator).to(device)
            for name, tensor in empty.tensors.items()
        },
    )


def routes(mode: str, rows: int, tokens: int, device: torch.device) -> Mapping[str, Tensor] | None:
    """Which tokens go to which sub-state, in turn message by message; None: all of them to all."""
    if mode not in ROUTED:
        return None
    turn = torch.arange(tokens, device=device) // MESSAGE % len(MODES[mode].sub_states)
    return {name: (turn == i).expand(rows, tokens) for i, name in enumerate(MODES[mode].sub_states)}
