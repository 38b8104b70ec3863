"""Which version of an agent's memory a thread reads, and after which one it writes.

A thread keeps the version that it read last in its state, so that a replay or a fork from an older checkpoint reads the
memory of that moment. One agent may serve many threads; its memory has one head:

- A new thread begins at the head. The memory in which nothing was written is kept as the version "empty".
- When other threads moved the head meanwhile, the thread follows: its next messages are written after the new head. So
  it does when the agent was rolled back or moved to another adapter.
- When the thread itself has written past its version (it was sent back to an older checkpoint), or its version is on a
  branch, what it writes becomes a branch. The head stays.
- A message is written once on the way to a version: one whose id and content the journal has there already is left
  out, and so is one that was forgotten or rolled back. So a node that runs again, after a retry, a crash or a resume,
  finds its messages written, and stands where they were written: at the head only if the thread wrote nothing later.
- A turn of a new thread that was written, and lost its checkpoints, reads again what it read before.
- A graph that is a node of another one keeps no version between two runs. There, a turn that holds replies which this
  thread wrote goes on after the last of them. Each such node is a thread of its own, ``THREAD|NODE`` in the journal.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from langgraph.graph import MessagesState

from ..chat_model.serving import EMPTY
from ..errors import VersionNotFound
from ..store import Store

Written = tuple[str | None, str]
"""Id and content hash of a message, as the journal has them."""


class DeltaMemState(MessagesState):
    """Messages, and the version of the agent's memory that this thread reads (None: the head; "empty": none yet)."""

    memory_version: str | None


@dataclass(frozen=True)
class Place:
    """Where a thread stands: the version to read and to write after (None: the empty memory), and whether writing
    moves the head.
    """

    version: str | None
    moves_head: bool

    @property
    def pin(self) -> str:
        """The version as a thread keeps it."""
        return self.version or EMPTY


def locate(
    store: Store, agent_id: str, pinned: str | None, thread: str | None, messages: Collection[Written] = ()
) -> Place:
    """Where a thread that last read ``pinned`` stands now.

    Args:
        thread: the thread's id, as the journal has it.
        messages: what the thread is about to write. What is written already decides where it stands.

    Raises:
        VersionNotFound: ``pinned`` is not a version of this agent.
    """
    head = store.head(agent_id)
    if head is None or pinned is None:
        return Place(head, True)
    version = None if pinned == EMPTY else _resolved(store, agent_id, pinned)
    if version == head or (version is not None and store.version(agent_id, version).retired):
        return Place(head, True)
    if version is None or store.is_ancestor(agent_id, version, head):
        if messages and not unwritten(store, agent_id, head, messages):
            last = store.last_written(agent_id, head, messages)
            if last is not None and (version is None or store.is_ancestor(agent_id, version, last)):
                version = last
        if thread is None or not store.wrote_between(agent_id, thread, version, head):
            return Place(head, True)
    return Place(version, False)


def _resolved(store: Store, agent_id: str, pinned: str) -> str | None:
    try:
        return store.resolve(agent_id, pinned)
    except VersionNotFound as error:
        raise VersionNotFound(
            f"{error}. The thread's memory_version is of another agent or of a memory that was deleted: take another "
            "thread_id; where agents with memories of their own are nodes of one graph, give that graph a state "
            "without memory_version (MessagesState)"
        ) from error


def begin(store: Store, agent_id: str, thread: str | None, turn: Sequence[Written]) -> Place:
    """Where a thread that keeps no version stands in a turn, of which it was given these messages.

    At the head. When this thread has written some of them already: after the last of these; or, given the turn's
    first message alone, where it stood before that.
    """
    head = store.head(agent_id)
    at = None if head is None else store.last_written(agent_id, head, turn)
    if head is None or at is None or thread is None:
        return Place(head, True)
    before = store.version(agent_id, at).parent
    if not store.wrote_between(agent_id, thread, before, at):
        return Place(head, True)
    if len(turn) == 1:
        return Place(before, False)
    return Place(at, False) if store.wrote_between(agent_id, thread, at, head) else Place(head, True)


def unwritten(store: Store, agent_id: str, version: str | None, messages: Collection[Written]) -> set[Written]:
    """Those messages that are not on the way to a version, and were neither forgotten nor rolled back."""
    ids = {identity for identity, _ in messages if identity is not None}
    if not ids or store.head(agent_id) is None:
        return set(messages)
    there = set() if version is None or version == EMPTY else store.written(agent_id, version, ids)
    forgotten = store.tombstones(agent_id, ids)
    return {(i, content) for i, content in messages if (i, content) not in there and i not in forgotten}
