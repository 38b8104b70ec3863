"""Where memories are kept: agents, versions of their state, and the journal of what was written."""

from .contract import Store
from .records import (
    DEFAULT_TENANT,
    Agent,
    Diff,
    Entry,
    Filter,
    Hit,
    Policy,
    Problem,
    Record,
    Snapshot,
    Version,
    Write,
    checksum,
    version_id,
)
from .sql import open_store

__all__ = [
    "DEFAULT_TENANT",
    "Agent",
    "Diff",
    "Entry",
    "Filter",
    "Hit",
    "Policy",
    "Problem",
    "Record",
    "Snapshot",
    "Store",
    "Version",
    "Write",
    "checksum",
    "open_store",
    "version_id",
]
