"""A tiny random backbone with a random adapter, as an adapter folder: mechanism without wits, in two seconds."""

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from deltamem_agents.memory import AdapterConfig, new_adapter
from deltamem_agents.training.chat_format import train_tokenizer

SUB_STATES = {"facts": (0, 1), "task_progress": (2, 3)}
TEXT = "the tank rice room report Mila Otto seven blue door opens at noon and closes after the second bell"
WORDS = TEXT.split()
SENTENCES = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(3, 11)) + "." for i in range(1, 60)] + [
    '{"name": "look_up", "arguments": {"item": "rice", "count": 7}}',
    "What is in the tank? Where is Otto? Done: the report is written.",
]


SIZES: dict[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def build_adapter_folder(folder: Path, *, seed: int = 0, window: int = 512, **config: object) -> Path:
    """Write ``backbone/`` and ``adapter/`` into ``folder``; the same ``seed`` gives the same weights."""
    tokenizer = train_tokenizer(SENTENCES, vocab_size=600)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            **SIZES,
            max_position_embeddings=window,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    settings = {"rank": 8, "num_state_heads": 4, "sub_states": SUB_STATES} | config
    adapter = new_adapter(model, AdapterConfig(**settings), output_std=0.05, seed=seed)  # type: ignore[arg-type]
    adapter.save(folder / "adapter")
    return folder
