"""Where memories are kept: agents, versions of their state, and the journal of what was written."""

from .contract import Agent, Entry, Store, Version, version_id
from .sqlite import open_store

__all__ = ["Agent", "Entry", "Store", "Version", "open_store", "version_id"]
