"""What a store promises.

A store keeps, for each agent of a tenant, an append-only tree of **versions** of its memory, one of them the **head**,
and the **journal** of the messages that each version added. It knows bytes and metadata, never tensors.

Ownership
- A store object serves one tenant. Agents are named within it: any Unicode text of 1 to 200 characters,
  never part of a path. No method reads or changes anything of another tenant, and a version belongs to one agent.

Versions
- A version has a parent (None for the first), a fingerprint (the adapter and backbone that its bytes belong to) and
  **parts**: the bytes of each sub-state, by checksum. A sub-state that a version did not change is its parent's; one
  that was never written, or was reset, has no part.
- A version's id is the hash of what was written after what (:func:`version_id`). Committing the same write again
  returns the version that is there: a repeated task writes once.
- A commit is one transaction: version, parts, journal entries and head are all there afterwards, or none of them. When
  the call returns they are on the disk.
- The head moves by compare-and-swap: a commit whose parent is no longer the head raises HeadConflict and leaves
  nothing; its caller writes again after the new head (:meth:`Store.append` does). ``move_head=False`` makes a branch.
- A version may be **pruned**: its bytes are dropped, its journal stays, and the bytes can be computed again from the
  nearest ancestor that has them. It may be **pinned**: never pruned or collected. It is **retired** when a rollback or
  a migration to another adapter left it behind: threads that stand there follow the head.

The journal
- Entries are messages with their provenance. The policy of a store (:class:`Policy`) says whether their text is kept,
  and whether text and states are encrypted at rest.
- What was forgotten is gone from the file, not only from the tables; its message ids are remembered, so that a thread
  that still has the message does not write it again, and ids of versions that were rewritten lead to their successors.

Threads, processes, failure
- A store may be used by several threads, and several processes may open the same one. Writers wait for each other.
- Bytes are checked when they are read; damage raises CorruptState and is never handed out, and zeros never stand in for
  what cannot be read. Every method may raise a StoreError that names the store and the remedy.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from .records import EVERYTHING, Agent, Diff, Entry, Filter, Hit, Policy, Problem, Record, Snapshot, Version, Write

Dumped = tuple[Version, list[Record], dict[str, bytes]]
"""A version, its own records, and the bytes of its parts that no version before it had."""


class Store(ABC):
    """The contract; see the module's description.

    Attributes:
        location: what errors call it (a path or a URL without its password).
        tenant: whose agents these are.
        policy: what is kept of the journal.
    """

    location: str
    tenant: str
    policy: Policy

    # Reading

    @abstractmethod
    def agents(self) -> list[Agent]:
        """All agents of the tenant, by id."""

    @abstractmethod
    def agent(self, agent_id: str) -> Agent:
        """One agent. Raises AgentNotFound."""

    @abstractmethod
    def head(self, agent_id: str) -> str | None:
        """The agent's current version; None when it is unknown or nothing was written."""

    @abstractmethod
    def resolve(self, agent_id: str, version_id: str) -> str | None:
        """The id itself, or that of the version in its place since entries were forgotten (None: the empty memory).

        Every other method resolves the ids that it is given. Raises VersionNotFound.
        """

    @abstractmethod
    def find(self, agent_id: str, version_id: str) -> Version | None:
        """The agent's version of that id, if it is there."""

    @abstractmethod
    def version(self, agent_id: str, version_id: str) -> Version:
        """The same; raises VersionNotFound."""

    @abstractmethod
    def load(self, agent_id: str, version_id: str | None = None) -> Snapshot:
        """The bytes of each sub-state at a version (None: the head; an empty snapshot when there is none).

        Raises:
            VersionNotFound, CorruptState.
            StatePruned: the bytes were dropped; they can be computed again from an ancestor.
        """

    @abstractmethod
    def history(
        self, agent_id: str, version_id: str | None = None, *, after: str | None = None, limit: int | None = None
    ) -> list[Version]:
        """A version (None: the head) and its ancestors, newest first, down to ``after`` (itself left out).

        Raises:
            AgentNotFound, VersionNotFound.
        """

    @abstractmethod
    def tree(self, agent_id: str) -> list[Version]:
        """All versions of an agent, branches included, parents before children. Raises AgentNotFound."""

    @abstractmethod
    def journal(
        self, agent_id: str, version_id: str | None = None, *, after: str | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records on the way to a version (None: the head), oldest first; those beyond ``after``; the newest ``limit``.

        Raises:
            AgentNotFound, VersionNotFound.
        """

    @abstractmethod
    def records(self, agent_id: str, where: Filter) -> list[Record]:
        """Records of an agent on any branch, oldest first. Raises AgentNotFound, and JournalNotKept for ``text``."""

    @abstractmethod
    def search(
        self, agent_id: str, query: str, *, k: int = 10, where: Filter = EVERYTHING, version_id: str | None = None
    ) -> list[Hit]:
        """The ``k`` best records for a query, by BM25 over their text, on the way to a version (None: the head).

        Any word of the query may match; there is no query syntax. Nothing for an agent without a memory.

        Raises:
            JournalNotKept: this store keeps hashes alone.
        """

    @abstractmethod
    def is_ancestor(self, agent_id: str, old: str, new: str) -> bool:
        """Whether ``old`` is ``new`` or lies on the way to it. Raises VersionNotFound."""

    @abstractmethod
    def written(self, agent_id: str, version_id: str, message_ids: Collection[str]) -> set[tuple[str, str]]:
        """(message id, content hash) of the messages with these ids that need not be written after a version.

        They were written on the way to it, or on a version that is retired: what was rolled back is not written again.
        """

    @abstractmethod
    def last_written(self, agent_id: str, version_id: str, messages: Collection[tuple[str | None, str]]) -> str | None:
        """The version on the way to ``version_id`` in which the last of these messages was written (None: no one was).

        ``messages``: (message id, content hash). Raises VersionNotFound.
        """

    @abstractmethod
    def wrote_between(self, agent_id: str, thread_id: str, old: str | None, new: str) -> bool:
        """Whether a thread wrote anything beyond ``old`` (None: the empty memory) on the way to ``new``."""

    def diff(self, agent_id: str, old: str, new: str) -> Diff:
        """What lies between two versions. Raises VersionNotFound."""
        mine = self.history(agent_id, old)
        theirs = {version.version_id for version in self.history(agent_id, new)}
        ancestor = next((version.version_id for version in mine if version.version_id in theirs), None)
        return Diff(ancestor, self.journal(agent_id, old, after=ancestor), self.journal(agent_id, new, after=ancestor))

    # Writing

    @abstractmethod
    def commit(
        self,
        agent_id: str,
        *,
        parent: str | None,
        parts: Mapping[str, bytes],
        entries: Sequence[Entry | Record],
        fingerprint: str,
        resets: Sequence[str] = (),
        move_head: bool = True,
        pruned: bool = False,
    ) -> Version:
        """Add a version after ``parent``.

        Args:
            parts: bytes of the sub-states that changed; the others are the parent's. After a pruned version: of all.
            entries: the messages that were written; a record keeps its id and time.
            resets: sub-states that are empty in the new version.
            move_head: move the head from ``parent`` to the new version; False makes a branch.
            pruned: keep the checksums of ``parts`` alone.

        Raises:
            HeadConflict: the head is not ``parent``.
            VersionNotFound: the parent does not exist, or is another agent's.
            StatePruned: parts of the parent would be kept, and they were dropped.
            FingerprintMismatch: bytes of the parent would be kept beside those of another adapter or backbone.
            InvalidName: the agent's name is empty, too long, or no text.
        """

    @abstractmethod
    def append(
        self, agent_id: str, write: Callable[[str | None], Write], *, fingerprint: str, patience: float = 300.0
    ) -> Version:
        """Commit after the head, whatever it is.

        ``write(head)`` is called again after the new head when another writer was first, for ``patience`` seconds
        at most; then HeadConflict.
        """

    @abstractmethod
    def move_head(self, agent_id: str, version_id: str, *, expected: str | None) -> None:
        """Roll back: make an earlier version (or one on a branch) the head.

        What led to the old head alone is retired; what leads to the new one is not retired any more.

        Raises:
            HeadConflict: the head is not ``expected``.
            AgentNotFound, VersionNotFound.
        """

    @abstractmethod
    def fork(self, agent_id: str, new_agent: str, version_id: str | None = None) -> Version:
        """A new agent with all that leads to a version (None: the head): its own copies, under ids of its own.

        Raises:
            AgentExists: ``new_agent`` is there.
            AgentNotFound, VersionNotFound: nothing to fork.
            StatePruned: the bytes of that version were dropped.
        """

    @abstractmethod
    def pin(self, agent_id: str, version_id: str, label: str | None) -> None:
        """Pin a version under a label, or (None) unpin it. Raises VersionNotFound."""

    @abstractmethod
    def delete(self, agent_id: str, *, scrub: bool = True) -> int:
        """Delete everything of an agent, also from the file's free pages; returns the number of versions.

        ``scrub=False`` leaves the files for a later :meth:`scrub`: for many deletions one after the other.

        Raises:
            AgentNotFound.
        """

    # Upkeep

    @abstractmethod
    def rewrite(
        self,
        agent_id: str,
        successors: Mapping[str, str | None],
        forgotten: Collection[str],
        *,
        scrub: bool = True,
    ) -> None:
        """The end of forgetting: put versions in the place of others, and erase those, in one transaction.

        The successors were committed before, as branches, without the forgotten entries.

        Args:
            successors: each version that holds a forgotten entry, and each of its descendants -> the version that
                takes its place (None: the empty memory). Head, pins and later reads by the old id go there.
            forgotten: entry ids. Rows, index and states that held them are erased, in the file as well.

        Raises:
            HeadConflict: versions that hold or descend from them are missing in ``successors``: somebody wrote
                meanwhile. Nothing is changed; make their successors and call again.
        """

    @abstractmethod
    def prune(self, agent_id: str | None = None, *, keep_every: int = 50, keep_last: int = 1) -> int:
        """Drop the bytes of versions (None: of all agents), which replay can bring back; returns how many.

        Kept are heads, pinned versions, the ``keep_last`` newest on each line and every ``keep_every``-th.

        Raises:
            JournalNotKept: this store keeps hashes alone, so nothing could be brought back.
        """

    @abstractmethod
    def collect(self, agent_id: str | None = None, *, older_than: timedelta, scrub: bool = True) -> int:
        """Delete versions that lead to no head and no pin and are older than that, with what only they hold.

        Returns their number. Their ids lead to the nearest ancestor that is left.
        """

    @abstractmethod
    def verify(self, agent_id: str | None = None) -> Iterator[Problem]:
        """Check the file, all checksums and the chain of ids (None: of all agents of the tenant)."""

    @abstractmethod
    def drop_damaged(self, agent_id: str, version_id: str) -> None:
        """Prune the versions that share the damaged bytes of one, so that replay can bring them back.

        Raises:
            JournalNotKept: this store keeps hashes alone.
        """

    @abstractmethod
    def fill(self, agent_id: str, version_id: str, parts: Mapping[str, bytes]) -> None:
        """Put the bytes of a pruned version back. Raises CorruptState unless they are what its checksums say."""

    @abstractmethod
    def rotate(self, keys: Sequence[bytes]) -> int:
        """Encrypt everything again under the first of ``keys`` (none: store it in clear); returns the rows changed."""

    @abstractmethod
    def dump(self, agent_id: str) -> Iterator[Dumped]:
        """Everything of an agent, parents first: versions, their own records, and the bytes that are new in each."""

    @abstractmethod
    def restore(
        self,
        agent_id: str,
        versions: Iterable[Dumped],
        head: str | None,
        *,
        tombstones: Collection[str] = (),
    ) -> Agent:
        """The reverse of :meth:`dump`, in one transaction; for another agent or tenant, ids are made anew.

        ``versions`` must be good for more than one iteration: the transaction may be tried again.

        Raises:
            AgentExists: an agent of this name is there.
            StoreError: ids and contents do not agree.
        """

    @abstractmethod
    def scrub(self) -> None:
        """Make what was deleted unreadable in the files. :meth:`delete`, :meth:`rewrite` and :meth:`collect` end so.

        Raises:
            StoreUnavailable: another process reads an older state of the file; what was deleted is still in its
                write-ahead log. Call again later.
        """

    @abstractmethod
    def tombstones(self, agent_id: str, among: Collection[str] | None = None) -> set[str]:
        """Message ids that were forgotten (``among``: of these). Raises AgentNotFound."""

    @abstractmethod
    def close(self) -> None:
        """Give back connections. The store is not used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
