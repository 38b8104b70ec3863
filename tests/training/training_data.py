"""A tiny backbone, records and recipes for the tests of training."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from deltamem_agents.memory import AdapterConfig, DeltaMemory, attach, new_adapter
from deltamem_agents.training.attention import PACKED_ATTENTION
from deltamem_agents.training.chat_format import train_tokenizer
from deltamem_agents.training.recipe import Recipe, load_recipe

SUB_STATES = {"facts": [0, 1], "task_progress": [2, 3]}
PORTS = {"atlas": "8443", "beacon": "7001", "cedar": "9090", "delta": "5151"}
RECORDS: list[dict[str, Any]] = [
    {
        "memory": [
            {"role": "user", "content": f"The port of {name} is {port}.", "sub_state": "facts"},
            {"role": "assistant", "content": "Noted. " * (i % 2), "sub_state": "task_progress"},
        ],
        "messages": [
            [{"role": "user", "content": f"Which port has {name}?"}, {"role": "assistant", "content": port}],
            [{"role": "user", "content": "Thanks!"}, {"role": "assistant", "content": "You are welcome."}],
        ],
        "reset": ["task_progress"] if i == 3 else [],
    }
    for i, (name, port) in enumerate(PORTS.items())
]
CONFIG = {"rank": 8, "num_state_heads": 4, "sub_states": SUB_STATES}
TRAIN = {
    "steps": 6, "rows": 2, "memory_tokens": [96], "asked_tokens": 96, "answer_tokens": 32, "lr": 0.01, "warmup": 2,
    "dtype": "fp32", "log_every": 1, "checkpoint_every": 100,
}  # fmt: skip
WORLD_TRAIN = {"rows": 2, "length": 768, "most_facts": 3, "questions": 4}
ARCHITECTURE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def write_records(path: Path, records: list[Any] = RECORDS) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def recipe_file(folder: Path, **changes: Any) -> Path:
    """The recipe of a tiny backbone and adapter that learn in the world; ``changes`` replace top-level fields."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "name": "tiny",
        "tokenizer": {"vocab_size": 512, "sessions": 30},
        "backbone": {"architecture": ARCHITECTURE, "train": TRAIN | WORLD_TRAIN | {"steps": 40, "log_every": 10}},
        "adapter": {
            "config": CONFIG,
            "train": TRAIN | {"memory_tokens": [256, 1536], "asked_tokens": 512, "most_facts": 2, "questions": 4},
        },
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def file_recipe(folder: Path, backbone: Path, **overrides: Any) -> Recipe:
    """An adapter for a saved backbone, out of a JSONL file; ``overrides`` with "__" for dots."""
    path = recipe_file(
        folder, data="records.jsonl", backbone=str(backbone), adapter={"config": CONFIG, "train": dict(TRAIN)}
    )
    if not (folder / "records.jsonl").exists():
        write_records(folder / "records.jsonl")
    return load_recipe(path, {name.replace("__", "."): value for name, value in overrides.items()})


def tiny_model(seed: int = 0) -> tuple[Any, Any]:
    """A random two-layer backbone in float32 with packed attention, and its tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    texts = [m["content"] for record in RECORDS for m in record["memory"]] + ["Which port has it? You are welcome."]
    tokenizer = train_tokenizer(texts, 400)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.2,
        **ARCHITECTURE,
    )
    config._attn_implementation = PACKED_ATTENTION
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config).eval(), tokenizer


def tiny_memory(model: Any, trainable: bool = False, **config: Any) -> DeltaMemory:
    """A random adapter attached to ``model``."""
    adapter = new_adapter(model, AdapterConfig.from_dict(CONFIG | config), output_std=0.05, seed=1)
    return attach(model, adapter, dtype=torch.float32, trainable=trainable)
