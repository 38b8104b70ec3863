"""What a store is asked and what it answers: messages, versions, agents, and how they are hashed."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

DEFAULT_TENANT = "default"
MOST_NAME = 200  # characters of a tenant's or an agent's name
MOST_ID = 1000  # characters of a message, thread or run id, a source, a role, a sub-state
MOST_LABEL = 200  # characters of a pin's label


@dataclass(frozen=True)
class Policy:
    """What a store keeps of the journal; chosen when it is made, and kept in it.

    Attributes:
        journal: "full" keeps text; "hash" keeps hashes alone: no replay, no search, no forgetting of single entries.
        encrypted: whether text and states are encrypted at rest.
    """

    journal: Literal["full", "hash"] = "full"
    encrypted: bool = False


@dataclass(frozen=True)
class Entry:
    """One message that was written.

    Attributes:
        role, content: of the message. content is None when it is read from a store that keeps hashes alone.
        sub_states: where it was written.
        message_id: the caller's id of the message, if it has one.
        source: where it came from (a person, a tool), for people to read and to forget by.
        payload: JSON that belongs to the message, such as its tool calls.
        thread_id, run_id: provenance: the conversation and the run that wrote it.
        tokens: how many tokens were written.
        gate: sub-state -> mean write gate β over the written tokens, in (0, 1).
        moved: sub-state -> how far its state moved (Frobenius norm of the difference, over all layers).
        digest: the content hash, where the content itself is not kept.
    """

    role: str
    content: str | None
    sub_states: tuple[str, ...]
    message_id: str | None = None
    source: str | None = None
    payload: dict[str, Any] | None = None
    thread_id: str | None = None
    run_id: str | None = None
    tokens: int | None = None
    gate: dict[str, float] | None = None
    moved: dict[str, float] | None = None
    digest: str | None = field(default=None, compare=False, repr=False)

    @property
    def content_hash(self) -> str:
        """SHA-256 (hexadecimal) of role, content, sub-states and payload."""
        return self.digest or _digest([self.role, self.content, list(self.sub_states), self.payload])


@dataclass(frozen=True)
class Record:
    """An entry as it stands in the journal. ``entry_id`` stays the same when its version is rewritten."""

    entry_id: str
    version_id: str
    made_at: datetime
    entry: Entry


@dataclass(frozen=True)
class Hit:
    """A record found by a search; higher scores are better, and mean something within one search only."""

    record: Record
    score: float


@dataclass(frozen=True)
class Version:
    """One version of an agent's memory.

    Attributes:
        parts: sub-state -> SHA-256 of its bytes, of those that were dropped (``pruned``) too.
        resets: sub-states that this version emptied.
        depth: number of ancestors.
        pin: label, when it is pinned.
    """

    version_id: str
    agent_id: str
    parent: str | None
    fingerprint: str
    created_at: datetime
    parts: dict[str, str]
    resets: tuple[str, ...] = ()
    depth: int = 0
    pin: str | None = None
    pruned: bool = False
    retired: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A version with its bytes. ``version`` is None for a memory in which nothing was written."""

    version: Version | None
    parts: dict[str, bytes]


@dataclass(frozen=True)
class Agent:
    """An agent, its head, and how many versions and journal entries it has (branches included)."""

    agent_id: str
    head: str | None
    created_at: datetime
    versions: int
    entries: int


@dataclass(frozen=True)
class Diff:
    """What lies between two versions: their nearest common ancestor, and the records that each has beyond it."""

    ancestor: str | None
    removed: list[Record]
    added: list[Record]


@dataclass(frozen=True)
class Problem:
    """Something that :meth:`Store.verify` found. ``agent_id`` is None for damage of the whole file."""

    agent_id: str | None
    version_id: str | None
    what: str


@dataclass(frozen=True)
class Filter:
    """Which records: all conditions that are given must hold. ``text`` is contained in the content, in any case."""

    ids: Collection[str] | None = None  # entry ids or message ids
    source: str | None = None
    thread_id: str | None = None
    sub_state: str | None = None
    text: str | None = None
    since: datetime | None = None  # at this time or later
    until: datetime | None = None  # before this time
    hashes: Collection[str] | None = None  # content hashes


EVERYTHING = Filter()


@dataclass(frozen=True)
class Write:
    """What a commit adds after a parent: see :meth:`Store.commit`."""

    entries: Sequence[Entry]
    parts: Mapping[str, bytes]
    resets: Sequence[str] = ()


def version_id(
    agent_id: str,
    parent: str | None,
    entries: Sequence[Entry],
    fingerprint: str,
    resets: Sequence[str] = (),
    tenant: str = DEFAULT_TENANT,
) -> str:
    """The id of a write: SHA-256 (hexadecimal) of agent, parent, messages in order, fingerprint and resets."""
    written = [[entry.message_id, entry.content_hash] for entry in entries]
    owner = agent_id if tenant == DEFAULT_TENANT else [tenant, agent_id]
    return _digest([owner, parent, written, fingerprint, list(resets)])


def checksum(data: bytes) -> str:
    """SHA-256 (hexadecimal) of the bytes of a part."""
    return hashlib.sha256(data).hexdigest()


def _digest(document: Any) -> str:
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
