"""torch.compile for the parts of a backbone that no hook watches: norms, MLPs, rotary embeddings and the like.

Attention modules themselves stay as they are, so that the corrections stay hooks. Each class is compiled once for all
layers: seconds, where a whole backbone takes a minute.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from ..memory.backbones import find_attention
from ..memory.replaced import Replaced

ROTARY = "apply_rotary_pos_emb"  # the name of the function in the backbones of transformers
_compiled: dict[Any, Callable[..., Any]] = {}


@contextmanager
def compiled_regions(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Calls of the model inside run compiled where they can. The model is as it was afterwards."""
    with ExitStack() as stack:
        if enabled:
            stack.enter_context(torch._dynamo.config.patch(recompile_limit=64))
            for module in _regions(model):
                forward = MethodType(_once(type(module).forward), module)
                stack.enter_context(Replaced.put(module, "forward", forward))
            for owner in {sys.modules[type(a.module).__module__] for a in find_attention(model)}:
                if (rotate := getattr(owner, ROTARY, None)) is not None:
                    stack.enter_context(Replaced.put(owner, ROTARY, _once(rotate)))
        yield


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    if function not in _compiled:
        _compiled[function] = torch.compile(function, dynamic=False)
    return _compiled[function]


def _regions(model: nn.Module) -> Iterator[nn.Module]:
    """The modules beside an attention module, and those inside it that are no linear layer."""
    attentions = {a.module: model.get_submodule(a.name.rpartition(".")[0]) for a in find_attention(model)}
    for attention, layer in attentions.items():
        yield from (child for child in layer.children() if child is not attention)
        yield from (c for c in attention.children() if not isinstance(c, nn.Linear) and not list(c.children()))
