"""Adapter: config and weights of δ-mem for one backbone; reading and writing adapter folders.

Native format: ``deltamem_config.json`` (AdapterConfig) and ``deltamem_adapter.safetensors`` (attention module name +
"." + official parameter name -> tensor). The official format (official.py) is read as well.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import find_adapter
from ..errors import AdapterError
from .backbones import find_attention
from .config import AdapterConfig
from .fingerprint import adapter_fingerprint
from .layer import layer_shapes
from .official import OFFICIAL_CONFIG, OFFICIAL_WEIGHTS, load_official, read_object

CONFIG = "deltamem_config.json"
WEIGHTS = "deltamem_adapter.safetensors"


@dataclass(frozen=True)
class Adapter:
    """δ-mem weights for one backbone.

    Attributes:
        config: the fields that change the computation.
        tensors: "<attention module>.<parameter>" -> tensor, shapes as in :class:`DeltaMemLayer`.
        backbone: id or path of the backbone that it was trained on, if known.
    """

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    backbone: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        return adapter_fingerprint(self.config, self.tensors)

    @cached_property
    def layers(self) -> dict[str, dict[str, Tensor]]:
        """Attention module name -> its parameters by official name."""
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            module, _, name = key.rpartition(".")
            layers.setdefault(module, {})[name] = tensor
        return layers

    def num_parameters(self) -> int:
        return sum(t.numel() for t in self.tensors.values())

    def to(self, dtype: torch.dtype) -> "Adapter":
        """The same weights in another precision; another fingerprint, unless nothing changes."""
        return Adapter(self.config, {name: t.to(dtype) for name, t in self.tensors.items()}, self.backbone)

    def save(self, folder: str | Path) -> None:
        """Write the native format into ``folder``, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        document = {"format": 1, "backbone": self.backbone, **self.config.to_dict()}
        save_file({n: t.detach().cpu().contiguous() for n, t in self.tensors.items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def load_adapter(path_or_hub_id: str | Path, revision: str | None = None) -> Adapter:
    """Load an adapter, native or official: one that is known by its name, from a local folder, or from the hub.

    Args:
        path_or_hub_id: a name such as "worldops-msw", a folder (the files may be in its ``adapter`` sub-folder), or a
            repository of the Hugging Face hub such as "declare-lab/delta-mem_qwen3_4b-instruct".
        revision: branch, tag or commit on the hub.

    Raises:
        AdapterError: nothing there, files missing or damaged, or a field that is not supported (named).
    """
    folder = find_adapter(path_or_hub_id) or _download(str(path_or_hub_id), revision)
    if (folder / "adapter").is_dir():
        folder = folder / "adapter"
    if (folder / CONFIG).is_file():
        return _load_native(folder)
    if (folder / OFFICIAL_CONFIG).is_file():
        config, tensors, backbone = load_official(folder)
        return Adapter(config, tensors, backbone)
    raise AdapterError(
        f"{folder} holds no adapter: expected {CONFIG} and {WEIGHTS}, or {OFFICIAL_CONFIG} and {OFFICIAL_WEIGHTS}"
    )


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    names = [CONFIG, WEIGHTS, OFFICIAL_CONFIG, OFFICIAL_WEIGHTS]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=names))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"adapter {hub_id!r} is neither a folder nor could it be taken from the hub "
            f"({type(error).__name__}: {error}): check the spelling, the network and HF_HUB_OFFLINE, or give a local "
            "folder"
        ) from error


def _load_native(folder: Path) -> Adapter:
    try:
        document = read_object(folder / CONFIG)
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"adapter in {folder} cannot be read ({error}): fetch or train it again") from error
    if (version := document.pop("format", None)) != 1:
        raise AdapterError(f"{folder / CONFIG}: format {version!r} is not known; this version reads format 1")
    backbone = document.pop("backbone", None)
    return Adapter(AdapterConfig.from_dict(document), tensors, backbone)


def new_adapter(
    model: nn.Module,
    config: AdapterConfig,
    *,
    beta_bias: float = -1.5,
    output_std: float = 0.0,
    seed: int = 0,
    backbone: str | None = None,
) -> Adapter:
    """A fresh adapter for ``model``: projections at 1/sqrt(D), gates at σ(beta_bias), corrections A at ``output_std``.

    With ``output_std`` 0 (the paper's choice) the model computes exactly what it computes without the adapter.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for attention in select_attention(model, config):
        for name, shape in layer_shapes(config, attention.hidden_size, attention.widths).items():
            if name in ("beta_bias", "lambda_bias"):
                value = torch.full(shape, beta_bias if name == "beta_bias" else -beta_bias)
            elif name == "delta_o_rmsnorm_weight":
                value = torch.ones(shape) if output_std else torch.zeros(shape)
            elif name == "delta_scale_raw":
                value = torch.zeros(shape)  # σ(0) * max 2 = 1
            else:
                std = output_std if name.startswith("delta_") else shape[1] ** -0.5
                value = torch.randn(shape, generator=generator) * std
            tensors[f"{attention.name}.{name}"] = value
    return Adapter(config, tensors, backbone)


def select_attention(model: nn.Module, config: AdapterConfig) -> list[Any]:
    """The attention modules that ``config`` corrects; AdapterError names layers or heads that the model has not."""
    found = find_attention(model)
    if missing := sorted(set(config.target_layers) - {a.layer for a in found}):
        raise AdapterError(
            f"target_layers {missing} do not exist: the model's attention layers are {[a.layer for a in found]}"
        )
    chosen = [a for a in found if not config.target_layers or a.layer in config.target_layers]
    for attention in chosen:
        if absent := [h for h in config.delta_heads if h not in attention.projections]:
            raise AdapterError(
                f"{attention.name} has no {absent} projection of its own: leave it out of delta_heads or target_layers"
            )
    return chosen
