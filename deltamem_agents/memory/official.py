"""Reading the official adapter format: ``delta_mem_config.json`` and ``delta_mem_adapter.pt``.

The weights are a flat dict of tensors, loaded with weights_only=True. Of the config only the live fields still change
the computation; every other field is archived and accepted at its default alone.
"""

import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterError
from .config import HEADS, AdapterConfig

OFFICIAL_CONFIG = "delta_mem_config.json"
OFFICIAL_WEIGHTS = "delta_mem_adapter.pt"

LIVE = frozenset(f.name for f in fields(AdapterConfig)) - {"sub_states"}
INITIAL = frozenset({"beta_bias_init", "lambda_bias_init", "output_init", "delta_scale_init"})  # before training only
ARCHIVED: dict[str, Any] = {
    "base_slice_ref_width": 8,
    "online_gain": 1.0,
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "memory_partition_sigmoid_gate_bias_init": -2.0,
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "global_memory_gate_bias_init": -2.0,
    "global_memory_read_logit_bias": 0.0,
    "memory_reader_layers": [],
    "memory_reader_hidden_size": 1024,
    "memory_reader_residual_scale": 0.1,
    "memory_reader_read_only": True,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
    "latent_memory_hidden_size": 1024,
    "latent_memory_residual_scale": 0.1,
    "latent_memory_slots": 4,
    "latent_memory_init_std": 0.002,
    "latent_gate_init": 0.01,
    "target_modules": ["self_attn"],
    "delta_scale_parameterization": "alpha_over_rank",
}


def load_official(folder: Path) -> tuple[AdapterConfig, dict[str, Tensor], str | None]:
    """Config, tensors and (if the config names it) backbone of an official adapter folder. Raises AdapterError."""
    try:
        document = read_object(folder / OFFICIAL_CONFIG)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / OFFICIAL_CONFIG} cannot be read ({error}): fetch it again") from error
    backbone = document.pop("base_model_name_or_path", None)
    config = _live_config(document, folder / OFFICIAL_CONFIG)
    return config, _weights(folder / OFFICIAL_WEIGHTS, config), backbone


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; ValueError when it is anything else."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return document


def _live_config(document: dict[str, Any], path: Path) -> AdapterConfig:
    live = {name: value for name, value in document.items() if name in LIVE}
    for name in sorted(set(document) - LIVE - INITIAL):
        if name not in ARCHIVED:
            raise AdapterError(f"{path}: unknown field {name!r}; remove it if it does not change the computation")
        if document[name] != ARCHIVED[name]:
            raise AdapterError(
                f"{path}: {name} = {document[name]!r} asks for a variant that the official project has archived; "
                f"only its default {ARCHIVED[name]!r} is supported"
            )
    return AdapterConfig.from_dict(live)


def _weights(path: Path, config: AdapterConfig) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise AdapterError(f"{path} cannot be read as plain tensors ({error}): fetch it again") from error
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise AdapterError(f"{path} is not a flat dict of tensors: it is no official δ-mem adapter")
    unused = {f"delta_{head}_proj" for head in HEADS if head not in config.delta_heads}
    if config.couple_lambda:
        unused |= {"lambda_proj", "lambda_bias"}
    if not (config.delta_o_rmsnorm and "o" in config.delta_heads):
        unused.add("delta_o_rmsnorm_weight")
    if not config.trainable_delta_scale:
        unused.add("delta_scale_raw")
    return {name: tensor.clone() for name, tensor in loaded.items() if name.rpartition(".")[2] not in unused}
