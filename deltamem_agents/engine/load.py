"""Loading: an adapter folder to an engine, once for each process."""

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from ..config import DEFAULT_ADAPTER, find_adapter
from ..errors import AdapterError, BackboneError
from ..memory import Adapter, attach, load_adapter
from ..memory.fit import check_fit
from .backbone import Backbone, as_key, is_quantised
from .engine import Engine

_engines: dict[Hashable, Engine] = {}
_lock = Lock()


def load_engine(
    adapter: str | Path = DEFAULT_ADAPTER,
    *,
    backbone: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    revision: str | None = None,
    decode: str | None = None,
    backbone_revision: str | None = None,
    attn_implementation: str | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine for an adapter; the same arguments give the same engine for as long as the process lives.

    Args:
        adapter: name of an adapter that is known here, a folder, or an id on the Hugging Face hub.
        backbone: folder or hub id; default ``backbone/`` beside the adapter, else the one that the adapter names.
        dtype: of the backbone and the adapter ("float32", "bfloat16", …); default float32 on the CPU, else bfloat16.
        device: "cpu", "cuda", "cuda:1", …; default cuda where there is one.
        revision: branch, tag or commit of an adapter on the hub.
        decode: "eager", "graph" (CUDA graphs) or "compile" (torch.compile, then graphs: faster, seconds more at first);
            default graph on CUDA, else eager.
        backbone_revision: branch, tag or commit of a backbone on the hub.
        attn_implementation: "sdpa", "eager", "flash_attention_2", …; default what transformers chooses.
        model_options: what else transformers' ``from_pretrained`` is told: ``quantization_config`` (a dict or one of
            its objects), ``device_map``, ``trust_remote_code``, … A quantised backbone is put on ``device``, unless
            there is a ``device_map``.

    Raises:
        AdapterError: there is no such adapter, or it cannot be read, or does not fit the backbone; the backbone's
            config says so before any weights are loaded.
        BackboneError: the backbone cannot be loaded, or none is known, or an option is not for ``model_options``.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = _dtype(dtype, device)
    folder = find_adapter(adapter)
    name = str(Path(folder).resolve() if folder is not None else adapter)
    options = dict(model_options or {})
    chosen = (str(backbone or ""), precision, device, backbone_revision, attn_implementation, as_key(options))
    key = (name, revision, decode, *chosen)
    with _lock:
        if key not in _engines:
            source, weights = _find(folder, str(adapter), backbone, revision)
            place = Backbone(source, precision, device, backbone_revision, attn_implementation, options)
            _engines[key] = _load(str(adapter), weights, place, decode)
        return _engines[key]


def local_window(adapter: str | Path, backbone: str | Path | None = None) -> int | None:
    """Tokens of the context window as a local backbone's config.json says, without loading anything; None: unknown."""
    folder = find_adapter(adapter)
    source = Path(backbone) if backbone is not None else folder / "backbone" if folder is not None else None
    if source is None or not (source / "config.json").is_file():
        return None
    config = json.loads((source / "config.json").read_text())
    window = (config.get("text_config") or config).get("max_position_embeddings")
    return window if isinstance(window, int) else None


def _find(
    folder: Path | None, name: str, backbone: str | Path | None, revision: str | None
) -> tuple[str | Path, Adapter]:
    """The backbone's folder or hub id, and the adapter."""
    adapter = load_adapter(name, revision)
    if backbone is None and folder is not None and (folder / "backbone").is_dir():
        backbone = folder / "backbone"
    if (source := backbone or adapter.backbone) is None:
        raise AdapterError(f"adapter {name!r} does not name its backbone: give backbone=…, a folder or a hub id")
    return source, adapter


def _load(name: str, adapter: Adapter, backbone: Backbone, decode: str | None) -> Engine:
    skeleton = backbone.skeleton()
    try:
        check_fit(skeleton, adapter)
    except AdapterError as error:
        made_for = f", made for {adapter.backbone!r}," if adapter.backbone else ""
        raise AdapterError(
            f"adapter {name!r}{made_for} does not fit backbone {backbone.where!r}: {error}. Give the backbone that the "
            "adapter was trained on, or train an adapter for this one"
        ) from error
    model, tokenizer = backbone.load(quantised=getattr(skeleton.config, "quantization_config", None) is not None)
    memory = attach(model, adapter, dtype=backbone.dtype if is_quantised(model) else None)
    return Engine(model, tokenizer, memory, decode=decode)


def _dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    if dtype is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BackboneError(f"dtype {dtype!r} is not supported: use float32, bfloat16 or float16")
    return found
