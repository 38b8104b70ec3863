"""δ-mem for agents: a memory for each agent inside a frozen language model.

The public names load on first use, so that ``import deltamem_agents`` is quick and needs none of the heavy libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chat_model import DeltaMemChatModel, JournalRetriever
    from .engine import load_engine
    from .graph import DeltaMemWriter, create_deltamem_agent
    from .memory import MemoryState, attach, load_adapter
    from .store import open_store

__version__ = "0.1.0"

__all__ = [
    "DeltaMemChatModel",
    "DeltaMemWriter",
    "JournalRetriever",
    "MemoryState",
    "__version__",
    "attach",
    "create_deltamem_agent",
    "load_adapter",
    "load_engine",
    "open_store",
]

_HOMES = {
    "DeltaMemChatModel": "chat_model",
    "DeltaMemWriter": "graph",
    "JournalRetriever": "chat_model",
    "MemoryState": "memory",
    "attach": "memory",
    "create_deltamem_agent": "graph",
    "load_adapter": "memory",
    "load_engine": "engine",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
