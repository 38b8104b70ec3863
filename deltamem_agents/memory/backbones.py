"""Where the attention modules of a decoder are, and which of its linear layers are q, k, v and o.

Most decoders of transformers call them q_proj, k_proj, v_proj and o_proj; the table below holds the others. A new
backbone is one row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError

# q, k, v, o by the child's name; a fused projection is named "child:order".
PROJECTIONS: tuple[dict[str, str], ...] = (
    {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"},  # Llama, Qwen, Mistral, Gemma, SmolLM3 and most
    {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},  # OPT, GPT-J, LFM2
    {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "dense"},  # Phi
    {"q": "qkv_proj:rows", "k": "qkv_proj:rows", "v": "qkv_proj:rows", "o": "o_proj"},  # Phi-3, Phi-4
    {"q": "c_attn:rows", "k": "c_attn:rows", "v": "c_attn:rows", "o": "c_proj"},  # GPT-2
    {
        "q": "query_key_value:heads",
        "k": "query_key_value:heads",
        "v": "query_key_value:heads",
        "o": "dense",
    },  # GPT-NeoX
    {"q": "q_b_proj", "o": "o_proj"},  # DeepSeek (latent attention): no k, v of its own
    {"q": "q_proj", "o": "o_proj"},  # layers that share the k and v of another (Gemma-3n, Gemma-4)
)


@dataclass(frozen=True)
class Projection:
    """One corrected projection: the module whose output is corrected, and which part of that output.

    Attributes:
        module: child of the attention module.
        part: "all"; "rows" (fused, q rows then k then v); "heads" (fused, per head q, k, v).
        start, width: first number and count of numbers of this projection in a fused output ("rows").
    """

    module: nn.Module
    part: str
    start: int
    width: int
    index: int  # 0, 1, 2 for q, k, v in a "heads" layout

    def view(self, output: Tensor) -> Tensor | None:
        """This projection's part of ``output``, as a view (B, T, width); None where it is no such view."""
        if self.part == "heads":
            return None
        return output if self.part == "all" else output[..., self.start : self.start + self.width]

    def add(self, output: Tensor, delta: Tensor) -> Tensor:
        """``output`` of the module with ``delta`` (B, T, width) added to this projection's part."""
        if self.part == "all":
            return output + delta
        if self.part == "rows":
            before, own, after = output.split([self.start, self.width, output.shape[-1] - self.start - self.width], -1)
            return torch.cat([before, own + delta, after], dim=-1)
        heads = output.unflatten(-1, (-1, 3, self.head_dim))
        parts = list(heads.unbind(-2))
        parts[self.index] = parts[self.index] + delta.unflatten(-1, (-1, self.head_dim))
        return torch.stack(parts, dim=-2).flatten(-3)

    head_dim: int = 0


@dataclass(frozen=True)
class Attention:
    """One attention module of a decoder, with its projections by letter."""

    name: str
    module: nn.Module
    layer: int
    hidden_size: int
    projections: dict[str, Projection]

    @property
    def widths(self) -> dict[str, int]:
        return {head: p.width for head, p in self.projections.items()}


def find_attention(model: nn.Module) -> list[Attention]:
    """All attention modules of a decoder, in the order of its layers.

    Raises:
        BackboneError: no attention module with known projections.
    """
    found = []
    for name, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        row = next((row for row in PROJECTIONS if _has(module, row)), None)
        if isinstance(index, int) and row is not None and "cross" not in name.rsplit(".", 1)[-1]:
            found.append(_describe(name, module, index, row))
    if not found:
        raise BackboneError(
            f"{type(model).__name__} has no attention module with projections that δ-mem knows: add a row to "
            "PROJECTIONS in deltamem_agents/memory/backbones.py"
        )
    return sorted(found, key=lambda a: a.layer)


def _has(module: nn.Module, row: dict[str, str]) -> bool:
    return all(isinstance(getattr(module, child.split(":")[0], None), nn.Module) for child in row.values())


def _describe(name: str, module: nn.Module, index: int, row: dict[str, str]) -> Attention:
    hidden = _input_width(getattr(module, row["k" if "k" in row else "q"].split(":")[0]))
    config: Any = getattr(module, "config", None)
    if row["q"] == "q_b_proj":  # its input is the latent, not the hidden states
        hidden = int(config.hidden_size)
    projections = {}
    for i, (head, child) in enumerate(row.items()):
        child_name, _, part = child.partition(":")
        linear = getattr(module, child_name)
        if not part:
            projections[head] = Projection(linear, "all", 0, _output_width(linear), 0)
            continue
        head_dim, sizes = _fused_sizes(module, linear)
        projections[head] = Projection(linear, part, sum(sizes[:i]), sizes[i], i, head_dim)
    return Attention(name, module, index, hidden, projections)


def _fused_sizes(module: Any, linear: nn.Module) -> tuple[int, list[int]]:
    """Head size, and the widths of q, k and v in a fused projection."""
    config = module.config
    heads = config.num_attention_heads
    head_dim = getattr(module, "head_dim", None) or getattr(module, "head_size", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    if sum(sizes) != _output_width(linear):
        raise BackboneError(
            f"fused projection of {_output_width(linear)} numbers does not split into q, k, v = {sizes}"
        )
    return head_dim, sizes


def _output_width(linear: Any) -> int:
    width = getattr(linear, "out_features", None) or getattr(linear, "nf", None)  # nf: Conv1D of GPT-2
    return int(width) if width else int(linear.weight.shape[0])


def _input_width(linear: Any) -> int:
    width = getattr(linear, "in_features", None) or getattr(linear, "nx", None)
    return int(width) if width else int(linear.weight.shape[1])
