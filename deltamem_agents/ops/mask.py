"""Write masks: what a token that must not write into a state head is replaced with."""

import torch
from torch import Tensor


def neutralise(
    k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, write_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """k, v, keep, erase, write (B, T, H, r) with tokens outside ``write_mask`` (B, T, H) made to change nothing.

    Such a token keeps all (1), erases and writes nothing (0). Its key and value go too: what stands in padding may be
    NaN, and 0 * NaN is NaN, in the state or in its gradient.
    """
    if write_mask is None:
        return k, v, keep, erase, write
    mask = write_mask[..., None]
    k, v, erase, write = (torch.where(mask, x, torch.zeros_like(x)) for x in (k, v, erase, write))
    return k, v, torch.where(mask, keep, torch.ones_like(keep)), erase, write


def as_bytes(mask: Tensor | None) -> Tensor | None:
    """A bool mask for a kernel: its own bytes; in a graph that is being compiled, which takes no such view, a copy."""
    if mask is None:
        return None
    return mask.contiguous().to(torch.uint8) if torch.compiler.is_compiling() else mask.contiguous().view(torch.uint8)
