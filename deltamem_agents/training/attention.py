"""Attention for packed rows: many short sequences in one row, each seeing itself alone.

Registered with transformers as ``deltamem_packed``. A forward call that passes ``cu_seqlens`` (int32, (N + 1,): the
boundaries of the sequences in the flattened (B * T) batch) gets causal attention inside each sequence: Flash Attention
on CUDA, a block mask elsewhere. Without it the call is ordinary causal attention, on padded rows too. Sliding windows,
capped scores (Gemma 2) and sinks (gpt-oss) are those of the backbone; :func:`check_packable` refuses what is not.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ..errors import RecipeError

PACKED_ATTENTION = "deltamem_packed"
LAYER_TYPES = ("full_attention", "sliding_attention")
REFUSED = ("position_bias", "indices", "block_indices", "sinks")  # of other models' attention; they change the result


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int = 0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Query (B, H, T, d), key and value (B, H_kv, S, d) -> (B, T, H, d).

    Args:
        sliding_window: a token sees itself and this many less one before it.
        softcap: scores become softcap * tanh(scores / softcap).
        s_aux: (H,) sinks: a score beside those of the tokens, that takes its share of the attention.
    """
    if refused := [name for name in REFUSED if more.get(name) is not None]:
        raise RecipeError(f"{type(module).__name__} attends with {refused[0]}: training has no packed form of it")
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    plain = softcap is None and s_aux is None
    if cu_seqlens is not None and plain and _flash_fits(query, value, sliding_window):
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        out = _varlen(q, k, v, cu_seqlens, max_seqlen, scaling, sliding_window)
        return out.unflatten(0, (query.shape[0], query.shape[2])), None
    if cu_seqlens is not None:
        mask = block_causal_mask(cu_seqlens, query.shape[0], query.shape[2], sliding_window)
    elif attention_mask is not None:
        mask = attention_mask
    else:
        mask = _causal(query.shape[2], key.shape[2], sliding_window, query.device)
    if plain:
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:
        out = _attend(query, key, value, mask, scaling, softcap, s_aux)
    return out.transpose(1, 2), None


def block_causal_mask(cu_seqlens: Tensor, rows: int, length: int, window: int | None = None) -> Tensor:
    """(B, 1, T, T) bool: position t sees s <= t of its own sequence, and of those the last ``window``."""
    position = torch.arange(rows * length, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens, position.to(cu_seqlens.dtype), right=True).view(rows, 1, length)
    same = sequence[..., :, None] == sequence[..., None, :]
    return same & _causal(length, length, window, cu_seqlens.device)


def check_packable(model: Any) -> None:
    """Raises RecipeError for a backbone whose packed rows are not what its sequences are alone."""
    kind = model.config.model_type
    types = getattr(model.config, "layer_types", None) or ()
    if unknown := [name for name in types if name not in LAYER_TYPES]:
        raise RecipeError(f"backbones with layers of type {unknown[0]!r} ({kind}) cannot be trained: use another one")
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 6, 7]], device=model.device)
    boundaries = torch.tensor([0, 2, 4, 6, 8], dtype=torch.int32, device=model.device)
    positions = torch.tensor([[0, 1, 0, 1]] * 2, device=model.device)
    try:
        with torch.no_grad():
            seen = model.base_model(
                input_ids=ids, position_ids=positions, cu_seqlens=boundaries, max_seqlen=4, use_cache=False
            ).last_hidden_state[:, 2:]
    except (TypeError, AttributeError, RuntimeError) as error:
        raise RecipeError(f"{kind} backbones cannot be trained: no packed rows in transformers ({error})") from error
    room = seen.abs().max() * (1e-4 if seen.dtype == torch.float32 else 0.05)
    if (seen[0] - seen[1]).abs().max() > room:  # the same sequence, after two different ones
        raise RecipeError(f"{kind} backbones cannot be trained: sequences packed in one row see each other in them")


def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(T, S) bool for the last T of S positions: each sees itself and what came before, at most ``window`` in all."""
    ones = torch.ones(queries, keys, dtype=torch.bool, device=device)
    seen = ones.tril(keys - queries)
    return seen if window is None else seen & ones.triu(keys - queries - window + 1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of (B, H, T, d) with capped scores and sinks, under a bool ``mask`` that is added if it is not bool."""
    scores = (query @ key.transpose(-2, -1)).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    return scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype) @ value


def _flash_fits(query: Tensor, value: Tensor, window: int | None) -> bool:
    half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    width = query.shape[-1]
    return half and width == value.shape[-1] <= 256 and (window is None or "window_size" in _VARLEN_OPTIONS)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    before = -1 if window is None else window - 1  # tokens seen beside the token itself; -1: all
    options: dict[str, Any] = {"window_size": (before, 0)} if "window_size" in _VARLEN_OPTIONS else {"is_causal": True}
    if "scale" in _VARLEN_OPTIONS:
        options["scale"] = scale
    out: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)
    return out


def _padding_mask(*, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **more: Any) -> Tensor | None:
    """The mask of padded rows and of caches, windows included. None for fresh rows: packed_attention knows theirs."""
    if attention_mask is None and q_length == kv_length:
        return None
    mask: Tensor | None = sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **more)
    return mask


_VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)  # they differ between torch 2.11 and 2.13

AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _padding_mask)
