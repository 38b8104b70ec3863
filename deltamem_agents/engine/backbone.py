"""The frozen model and its tokenizer, from a folder or from the hub."""

import logging
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..errors import BackboneError

log = logging.getLogger(__name__)

NAMED = {  # what load_engine has arguments for
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "revision": "backbone_revision",
    "attn_implementation": "attn_implementation",
    "config": "backbone",
    "local_files_only": "backbone, a folder",
}
EVERYWHERE = ("cache_dir", "code_revision", "subfolder", "token", "trust_remote_code")  # not for the weights alone
FAILURES = (OSError, ValueError, ImportError, SafetensorError)


@dataclass(frozen=True)
class Backbone:
    """Where a backbone is, and how it is loaded.

    Attributes:
        source: folder or hub id.
        dtype, device: of the model.
        revision: branch, tag or commit on the hub.
        attention: transformers' name of an attention kernel.
        options: what else ``from_pretrained`` is told.
    """

    source: str | Path
    dtype: torch.dtype
    device: str
    revision: str | None = None
    attention: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taboo := [name for name in self.options if name in NAMED]:
            raise BackboneError(f"model_options has {taboo[0]!r}: give it to load_engine as {NAMED[taboo[0]]}=…")
        if self.revision is not None and self.is_local:
            raise BackboneError(
                f"backbone {self.where!r} is a folder and has no revision {self.revision!r}: leave backbone_revision "
                "out, or give the id of a backbone on the hub"
            )

    @property
    def is_local(self) -> bool:
        return Path(self.source).expanduser().is_dir()

    @property
    def where(self) -> str:
        return str(Path(self.source).expanduser()) if self.is_local else str(self.source)

    @property
    def _place(self) -> dict[str, Any]:
        """A local folder never asks the network for anything."""
        place = {name: self.options[name] for name in EVERYWHERE if name in self.options}
        place |= {"revision": self.revision} if self.revision is not None else {}
        return place | {"local_files_only": self.is_local}

    def skeleton(self) -> Any:
        """The model without weights, on the device "meta": only its config is read.

        Raises BackboneError when there is no such backbone, or its config is not one of a decoder.
        """
        try:
            config = AutoConfig.from_pretrained(self.where, **self._place)
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    config, trust_remote_code=self.options.get("trust_remote_code", False)
                )
        except FAILURES as error:
            raise self._failed(error) from error

    def load(self, *, quantised: bool = False) -> tuple[Any, Any]:
        """The frozen model, in eval mode, and its tokenizer. ``quantised``: whether its weights are so in the files.

        Raises BackboneError when the backbone cannot be loaded.
        """
        options: dict[str, Any] = {"dtype": self.dtype, **self._place, **self.options}
        if self.is_local:
            options["adapter_kwargs"] = {"local_files_only": True}
        else:
            options.pop("local_files_only")
        if self.attention is not None:
            options["attn_implementation"] = self.attention
        if quantised or "quantization_config" in self.options:  # cannot be moved once it is loaded
            options.setdefault("device_map", {"": self.device})
        log.info("loading backbone %s (%s, %s)", self.where, self.dtype, options.get("device_map", self.device))
        started = time.perf_counter()
        try:
            model = AutoModelForCausalLM.from_pretrained(self.where, **options)
            tokenizer = AutoTokenizer.from_pretrained(self.where, **self._place)
        except FAILURES as error:
            raise self._failed(error) from error
        model = model.eval().requires_grad_(False)
        if not is_quantised(model) and "device_map" not in options:
            model = model.to(self.device)
        size = sum(p.nbytes for p in model.parameters())
        log.info("loaded backbone %s: %d bytes in %.1f s", self.where, size, time.perf_counter() - started)
        return model, tokenizer

    def _failed(self, error: Exception) -> BackboneError:
        return BackboneError(
            f"backbone {self.where!r} cannot be loaded ({type(error).__name__}: {error}): check the folder or the hub "
            "id, the network and HF_HUB_OFFLINE"
        )


def is_quantised(model: Any) -> bool:
    """Whether the linear layers of a model are not kept as floating-point numbers."""
    return getattr(model, "hf_quantizer", None) is not None or bool(getattr(model, "is_quantized", False))


def as_key(value: Any) -> Hashable:
    """A hashable form of options; equal for equal options, whatever the order of their names.

    Raises BackboneError for a value that has none.
    """
    if isinstance(value, Mapping):
        return ("mapping", frozenset((as_key(name), as_key(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return ("sequence", tuple(as_key(item) for item in value))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(as_key(item) for item in value))
    if callable(getattr(value, "to_dict", None)):  # the configs of transformers
        return (type(value).__qualname__, as_key(value.to_dict()))
    try:
        hash(value)
    except TypeError as error:
        raise BackboneError(
            f"model_options holds a {type(value).__name__}, by which loaded models cannot be told apart: use numbers, "
            "strings, lists, dicts and configs of transformers"
        ) from error
    return (type(value).__qualname__, value)
