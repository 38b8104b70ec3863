"""Calls that may run out of memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def attempt(function: Callable[..., T], *args: Any) -> tuple[T | None, BaseException | None]:
    """A function's result, or the error that it has raised; one of memory does not keep the memory alive."""
    try:
        return function(*args), None
    except BaseException as error:
        return None, error.with_traceback(None) if out_of_memory(error) else error


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the process, has no memory left for what was tried."""
    known = ("CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: ")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(name in str(error) for name in known)
