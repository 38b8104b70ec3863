"""What decides which form of an operation runs: the device, the gradients, and whether Triton is installed."""

import logging
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None  # once: the choice must not break a compiled graph
F = TypeVar("F")
_LOG = logging.getLogger("deltamem_agents.ops")


def needs_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def from_python(launch: F, operation: Any) -> F:
    """``launch`` itself, or the operation of torch made of it where a graph is compiled: that is a slow way to call."""
    chosen: F = operation if torch.compiler.is_compiling() else launch
    return chosen


@cache
def say(operation: str, device: str, form: str, reason: str) -> None:
    """One line in the log for each choice that is new. Not for a graph that is being compiled."""
    _LOG.info("%s: %s (%s, %s)", operation, form, device, reason)
