"""Loading: an adapter folder to an engine, once for each process."""

import json
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..config import DEFAULT_ADAPTER, find_adapter
from ..errors import AdapterError, BackboneError
from ..memory import attach, load_adapter
from .engine import Engine

_engines: dict[tuple[str, ...], Engine] = {}
_lock = Lock()


def load_engine(
    adapter: str | Path = DEFAULT_ADAPTER,
    *,
    backbone: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    revision: str | None = None,
    decode: str | None = None,
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

    Raises:
        AdapterError: there is no such adapter, or it cannot be read, or does not fit the backbone.
        BackboneError: the backbone cannot be loaded, or none is known.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = _dtype(dtype, device)
    folder = find_adapter(adapter)
    name = str(Path(folder).resolve() if folder is not None else adapter)
    key = (name, str(backbone or ""), str(precision), device, revision or "", decode or "")
    with _lock:
        if key not in _engines:
            _engines[key] = _load(folder, str(adapter), backbone, precision, device, revision, decode)
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


def _load(
    folder: Path | None,
    name: str,
    backbone: str | Path | None,
    dtype: torch.dtype,
    device: str,
    revision: str | None,
    decode: str | None,
) -> Engine:
    adapter = load_adapter(name, revision)
    if backbone is None and folder is not None and (folder / "backbone").is_dir():
        backbone = folder / "backbone"
    if (source := backbone or adapter.backbone) is None:
        raise AdapterError(f"adapter {name!r} does not name its backbone: give backbone=…, a folder or a hub id")
    model, tokenizer = _backbone(source, dtype, device)
    return Engine(model, tokenizer, attach(model, adapter), decode=decode)


def _backbone(source: str | Path, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """The frozen model, in eval mode, and its tokenizer. A local folder never asks the network for anything."""
    local = Path(source).expanduser()
    options: dict[str, Any] = {"dtype": dtype}
    where = str(source)
    if local.is_dir():
        where = str(local)
        options |= {"local_files_only": True, "adapter_kwargs": {"local_files_only": True}}
    try:
        model = AutoModelForCausalLM.from_pretrained(where, **options)
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local.is_dir())
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise BackboneError(
            f"backbone {where!r} cannot be loaded ({type(error).__name__}: {error}): check the folder or the hub id, "
            "the network and HF_HUB_OFFLINE"
        ) from error
    return model.eval().requires_grad_(False).to(device), tokenizer


def _dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    if dtype is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BackboneError(f"dtype {dtype!r} is not supported: use float32, bfloat16 or float16")
    return found
