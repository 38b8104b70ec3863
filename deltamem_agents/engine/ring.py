"""A KV cache at fixed addresses that many replies share: columns in a ring, one column further at each step.

All rows write the same column; which columns are a row's own, and at which position, stands beside it. So a reply can
begin while others are under way, no step has a shape of its own, and a step can be captured as a CUDA graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import sdpa_mask

from ..errors import BackboneError

RING_ATTENTION = "deltamem_ring"


class RingLayer(CacheLayerMixin):
    """Keys and values (rows, heads, columns, d) of one layer; ``column`` (1,) is where the next token goes."""

    keys: Tensor
    values: Tensor
    is_compileable = True
    is_sliding = False  # a window is in the mask

    def __init__(self, rows: int, columns: int, column: Tensor) -> None:
        super().__init__()
        self.rows, self.columns, self.column = rows, columns, column

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            x.new_zeros(self.rows, x.shape[-3], self.columns, x.shape[-1]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put (rows, heads, 1, d) into the column, and return all of them."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns, 0

    def get_seq_length(self) -> int:
        return 0  # positions are told, not counted

    def get_max_length(self) -> int:
        return self.columns

    get_max_cache_shape = get_max_length


def windows(model: Any) -> dict[str, int | None] | None:
    """Kinds of attention layers of a backbone whose replies can share a ring, with their windows; None: it has others.

    Full and sliding attention can: what a token sees is then a matter of positions alone.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not kinds:
        kinds = {"sliding_attention" if window else "full_attention"}
    shared = getattr(config, "num_kv_shared_layers", None)
    if shared or getattr(model, "_is_stateful", False) or not getattr(model, "_supports_attention_backend", False):
        return None
    if not kinds <= {"full_attention", "sliding_attention"} or ("sliding_attention" in kinds and not window):
        return None
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def rows_of(cache: Cache, lengths: list[int]) -> list[list[tuple[Tensor, Tensor]]]:
    """For each row of a left-padded prefill with ``lengths`` tokens: keys and values (heads, n, d) of each layer.

    n is the row's length, less where a sliding layer keeps its window alone.
    """
    filled: list[list[tuple[Tensor, Tensor]]] = []
    for i, length in enumerate(lengths):
        own = []
        for layer in cache.layers:
            if not isinstance(layer, DynamicLayer) or type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise BackboneError(f"a cache of {type(layer).__name__} cannot be shared by replies")
            assert layer.keys is not None and layer.values is not None
            n = min(length, layer.keys.shape[2])
            own.append((layer.keys[i, :, -n:], layer.values[i, :, -n:]))
        filled.append(own)
    return filled


def ring_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of one token: query (B, H, 1, d), key and value (B, H_kv, S, d), a mask (B, 1, 1, S) -> (B, 1, H, d).

    The heads that share keys and values stand in the place of query tokens, so that those are not repeated.
    """
    if refused := [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]:
        raise BackboneError(f"the backbone's attention has {refused[0]}: load it with attn_implementation='eager'")
    rows, heads, _, width = query.shape
    if query.is_cuda and query.dtype != torch.float32:  # cuDNN knows grouped heads, and is faster by half
        out = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[-1]), None


def attention_configs(model: Any) -> list[Any]:
    """The configurations that say how a model's layers attend, those of "eager" left out: that knows all there is."""
    found = {id(c): c for m in model.modules() if hasattr(m, "layer_idx") and (c := getattr(m, "config", None))}
    return [config for config in found.values() if config._attn_implementation != "eager"]


@contextmanager
def ring_attending(configs: list[Any]) -> Iterator[None]:
    """Calls of their model attend by :func:`ring_attention` inside the ``with``."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = RING_ATTENTION
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


AttentionInterface.register(RING_ATTENTION, ring_attention)
AttentionMaskInterface.register(RING_ATTENTION, sdpa_mask)
