"""Which version of an agent's memory a thread reads, and after which one it writes.

A thread keeps the version that it read last in its state, so that a replay or a fork from an older checkpoint reads the
memory of that moment. One agent may serve many threads; its memory has one head:

- A new thread begins at the head.
- When other threads moved the head meanwhile, the thread follows: its next messages are written after the new head.
- When the thread itself has written past its version (it was sent back to an older checkpoint), or its version is on a
  branch, what it writes becomes a branch. The head stays.
- A message is written once on the way to a version: one with an id that the journal has there already is left out. So a
  node that runs again, after a retry, a crash or a resume, finds its messages written.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import BaseMessage
from langgraph.graph import MessagesState

from ..store import Entry, Store


class DeltaMemState(MessagesState):
    """Messages, and the version of the agent's memory that this thread reads (None: the agent's head)."""

    memory_version: str | None


@dataclass(frozen=True)
class Place:
    """Where a thread stands: the version to read and to write after, and whether writing moves the head."""

    version: str | None
    moves_head: bool
    journal: Sequence[tuple[str, Entry]]  # on the way to ``version``

    def unwritten(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The messages that were not written on the way here."""
        written = {entry.message_id for _, entry in self.journal}
        return [m for m in messages if m.id is None or m.id not in written]


def locate(
    store: Store, agent_id: str, pinned: str | None, thread: str | None, messages: Sequence[BaseMessage] = ()
) -> Place:
    """Where a thread that last read ``pinned`` stands now.

    Args:
        thread: the thread's id, as :func:`source` puts it into the journal.
        messages: what the thread is about to write; when the head has all of it already, it is not written again.

    Raises:
        VersionNotFound: ``pinned`` is gone, or belongs to another agent.
    """
    head = store.head(agent_id)
    if head is None:
        return Place(None, True, ())
    journal = store.journal(agent_id)
    if pinned is None or pinned == head:
        return Place(head, True, journal)
    at_head = Place(head, True, journal)
    ancestors = {version.version_id for version in store.history(agent_id)}
    if pinned in ancestors:
        own = [message.id for message in messages]
        if own and not at_head.unwritten(messages) and None not in own:
            return at_head
        before = {v for v, _ in store.journal(agent_id, pinned)}
        if all(entry.source != source(thread) for v, entry in journal if v not in before) or thread is None:
            return at_head
    store.version(pinned)
    return Place(pinned, False, store.journal(agent_id, pinned))


def source(thread: str | None) -> str | None:
    """How the journal names a thread."""
    return None if thread is None else f"thread {thread}"
