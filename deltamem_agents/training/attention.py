"""Attention for packed rows: many short sequences in one row, each seeing itself alone.

Registered with transformers as ``deltamem_packed``. A forward call that passes ``cu_seqlens`` (int32, (N + 1,): the
boundaries of the sequences in the flattened (B * T) batch) gets causal attention inside each sequence: Flash Attention
on CUDA, a block mask elsewhere. Without it the call is ordinary causal attention.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED_ATTENTION = "deltamem_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query (B, H, T, d), key and value (B, H_kv, T, d) -> (B, T, H, d)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if cu_seqlens is None:
        out = scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1, scale=scaling)
        return out.transpose(1, 2), None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        out = _varlen(q, k, v, cu_seqlens, max_seqlen, scaling)
        return out.unflatten(0, (query.shape[0], query.shape[2])), None
    mask = block_causal_mask(cu_seqlens, query.shape[0], query.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2), None


def block_causal_mask(cu_seqlens: Tensor, rows: int, length: int) -> Tensor:
    """(B, 1, T, T) bool: position t sees s <= t of its own sequence."""
    position = torch.arange(rows * length, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens, position.to(cu_seqlens.dtype), right=True).view(rows, 1, length)
    same = sequence[..., :, None] == sequence[..., None, :]
    return same & torch.ones(length, length, dtype=torch.bool, device=cu_seqlens.device).tril()


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, scale: float | None) -> Tensor:
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _VARLEN_OPTIONS else {"is_causal": True}
    if "scale" in _VARLEN_OPTIONS:
        options["scale"] = scale
    out: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)
    return out


_VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)  # they differ between torch 2.11 and 2.13

AttentionInterface.register(PACKED_ATTENTION, packed_attention)
