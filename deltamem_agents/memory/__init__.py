"""δ-mem beside a frozen model: adapters, their attachment to a backbone, and the states they read and write."""

from .adapter import Adapter, load_adapter, new_adapter
from .attach import DeltaMemory, attach
from .binding import Bound
from .config import AdapterConfig
from .state import Fingerprint, MemoryState

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Bound",
    "DeltaMemory",
    "Fingerprint",
    "MemoryState",
    "attach",
    "load_adapter",
    "new_adapter",
]
