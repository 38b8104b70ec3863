"""What a store promises.

A store keeps, for each agent, an append-only tree of **versions** of its memory, one of them the **head**, and the
**journal** of the messages that each version added. It knows bytes and metadata, never tensors.

- A version has a parent (None for the first), a fingerprint (the adapter and backbone that its bytes belong to) and
  **parts**: the bytes of each sub-state, by checksum. A sub-state that a version did not change is its parent's; one
  that was never written, or was reset, has no part.
- A version's id is the hash of what was written after what (:func:`version_id`). Committing the same write again
  returns the version that is there: a repeated task writes once.
- A commit is one transaction: version, parts, journal entries and head are all there afterwards, or none of them.
- The head moves by compare-and-swap: a commit whose parent is no longer the head raises HeadConflict and leaves
  nothing. A commit with ``move_head=False`` makes a branch and leaves the head alone.
- Bytes are checked when they are read; damage raises CorruptState and is never handed out.
- A store may be used by several threads, and several processes may open the same one.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Entry:
    """One message that was written.

    Attributes:
        role, content: of the message.
        sub_states: where it was written.
        message_id: the caller's id of the message, if it has one.
        source: where it came from (a thread, a tool), for people to read.
        payload: JSON that belongs to the message, such as its tool calls.
    """

    role: str
    content: str
    sub_states: tuple[str, ...]
    message_id: str | None = None
    source: str | None = None
    payload: dict[str, Any] | None = None

    @property
    def content_hash(self) -> str:
        """SHA-256 (hexadecimal) of role, content, sub-states and payload."""
        return _digest([self.role, self.content, list(self.sub_states), self.payload])


@dataclass(frozen=True)
class Version:
    """One version of an agent's memory; ``parts`` maps sub-states to the SHA-256 of their bytes."""

    version_id: str
    agent_id: str
    parent: str | None
    fingerprint: str
    created_at: datetime
    parts: dict[str, str]


@dataclass(frozen=True)
class Agent:
    """An agent, its head, and how many versions and journal entries it has (branches included)."""

    agent_id: str
    head: str | None
    created_at: datetime
    versions: int
    entries: int


def version_id(
    agent_id: str, parent: str | None, entries: Sequence[Entry], fingerprint: str, parts_reset: Sequence[str] = ()
) -> str:
    """The id of a write: SHA-256 (hexadecimal) of agent, parent, messages in order, fingerprint and resets."""
    written = [[entry.message_id, entry.content_hash] for entry in entries]
    return _digest([agent_id, parent, written, fingerprint, list(parts_reset)])


def checksum(data: bytes) -> str:
    """SHA-256 (hexadecimal) of the bytes of a part."""
    return hashlib.sha256(data).hexdigest()


def _digest(document: Any) -> str:
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Store(ABC):
    """The contract; see the module's description. Every method may raise StoreError when the database fails."""

    @abstractmethod
    def agents(self) -> list[Agent]:
        """All agents, by id."""

    @abstractmethod
    def agent(self, agent_id: str) -> Agent:
        """One agent. Raises AgentNotFound."""

    @abstractmethod
    def head(self, agent_id: str) -> str | None:
        """The agent's current version; None when it is unknown or nothing was written."""

    @abstractmethod
    def find(self, version_id: str) -> Version | None:
        """The version of that id, if it is there."""

    @abstractmethod
    def version(self, version_id: str) -> Version:
        """The version of that id. Raises VersionNotFound."""

    @abstractmethod
    def load(self, version_id: str) -> dict[str, bytes]:
        """The bytes of each sub-state. Raises VersionNotFound, CorruptState."""

    @abstractmethod
    def commit(
        self,
        agent_id: str,
        *,
        parent: str | None,
        parts: Mapping[str, bytes],
        entries: Sequence[Entry],
        fingerprint: str,
        resets: Sequence[str] = (),
        move_head: bool = True,
    ) -> Version:
        """Add a version after ``parent``.

        Args:
            parts: bytes of the sub-states that changed; the others are the parent's.
            entries: the messages that were written.
            resets: sub-states that are empty in the new version.
            move_head: move the head from ``parent`` to the new version; False makes a branch.

        Raises:
            HeadConflict: the head is not ``parent``.
            VersionNotFound: the parent does not exist, or is another agent's.
            FingerprintMismatch: bytes of the parent would be kept beside those of another adapter or backbone.
        """

    @abstractmethod
    def journal(self, agent_id: str, version: str | None = None) -> list[tuple[str, Entry]]:
        """(version id, entry), oldest first, along the parents of ``version`` (None: the head).

        Raises:
            AgentNotFound, VersionNotFound: no such agent, or it has no such version.
        """

    @abstractmethod
    def history(self, agent_id: str) -> list[Version]:
        """The head and its ancestors, newest first. Raises AgentNotFound."""

    @abstractmethod
    def delete(self, agent_id: str) -> int:
        """Delete everything of an agent; returns the number of versions. Raises AgentNotFound."""

    @abstractmethod
    def close(self) -> None:
        """Give back connections. The store is not used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
