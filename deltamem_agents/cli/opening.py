"""Opening what is there: stores, which no command but ``import`` makes, and the adapters that states belong to."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import default_store
from ..errors import StoreError
from .options import quiet_libraries

if TYPE_CHECKING:
    from ..chat_model.memory import AgentMemory
    from ..store import Store
    from ..store.backend import Backend
    from ..store.sql import SQLStore

SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?:/(?P<path>[^?]*))?")


def open_there(location: str | None, tenant: str) -> "SQLStore":
    """The store at a path or URL (None: the default). Raises StoreError when there is none: looking makes no store."""
    from ..store.sql import SQLStore

    return SQLStore(backend_there(location), tenant=tenant)


def backend_there(location: str | None) -> "Backend":
    """The same before it is opened: of any schema, whatever its keys."""
    location = location or default_store()
    path = file_of(location)
    if path is not None and not (path.exists() and path.stat().st_size):
        raise _missing(location)

    from ..store.schema import current
    from ..store.sql import open_backend

    backend = open_backend(location)
    if current(backend) is None:
        raise _missing(backend.location)
    return backend


def file_of(location: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    if "://" not in location:
        return Path(location).expanduser()
    url = SQLITE.match(location)
    return None if url is None else Path(url["path"] or ":memory:").expanduser()


def agent_memory(store: "Store", adapter: str) -> "AgentMemory":
    """The memories of a store, with the adapter that writes them. Takes seconds: the backbone is loaded."""
    quiet_libraries()

    from ..chat_model.memory import AgentMemory
    from ..engine import load_engine

    return AgentMemory(load_engine(adapter), store)


def _missing(location: str) -> StoreError:
    return StoreError(f"there is no store at {location}: name one with --store, or begin one with deltamem chat")
