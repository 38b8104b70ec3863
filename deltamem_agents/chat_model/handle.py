"""AgentHandle: one agent's memory, to be written, asked, searched, reset and gone back in."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, convert_to_messages

from ..engine.score import recall_scores
from ..errors import StateError, StatePruned
from ..memory import MemoryState
from ..store import Filter, Version
from .calls import in_thread
from .messages import to_message
from .replay import Forgotten
from .retriever import to_document

if TYPE_CHECKING:
    from .model import DeltaMemChatModel

Told = BaseMessage | str | Iterable[BaseMessage | str]
"""Messages, or texts that somebody said."""


class AgentHandle:
    """One agent's memory in a chat model's store; ``a…`` methods do the same without blocking the event loop.

    Nothing is loaded or read before a method is called. An agent that is not known has an empty memory.

    Example:
        >>> alice = model.memory("alice")  # doctest: +SKIP
        >>> alice.write("The rice is in room seven.", source="anna")  # doctest: +SKIP
        >>> alice.recall_scores("Where is the rice?", ["room seven", "room nine"])  # doctest: +SKIP
    """

    def __init__(self, model: "DeltaMemChatModel", agent_id: str) -> None:
        self.model, self.agent_id = model, agent_id

    def __repr__(self) -> str:
        return f"AgentHandle({self.agent_id!r})"

    @property
    def head(self) -> str | None:
        """Id of the current version; None: nothing was written."""
        return self.model.opened_store.head(self.agent_id)

    def write(
        self, messages: Told, sub_state: str | Sequence[str] | None = None, source: str | None = None
    ) -> str | None:
        """Write messages, or texts that are taken for somebody's words, after the head.

        Args:
            sub_state: where to, for all of them: a name, several, or "nowhere" (the journal alone). None: what each
                message says, else the model's router, else by role.
            source: who or what they come from, for all of them.

        Returns:
            Id of the new head; the old one when there was nothing to write.

        Raises:
            StateError: ``sub_state`` names none of this memory's.
            FingerprintMismatch: the memory was made by another adapter or backbone.
        """
        given = {"sub_state": sub_state, "source": source}
        added = {name: value for name, value in given.items() if value is not None}
        return self.model.remember([_with(m, added) for m in _messages(messages)], self.agent_id)

    def recall_scores(self, question: str | Sequence[BaseMessage], answers: Sequence[str]) -> list[float]:
        """For each answer, how much likelier the memory makes it, in nats; see :func:`engine.score.recall_scores`."""
        asked = question if isinstance(question, str) else [to_message(message) for message in question]
        return recall_scores(self.model.engine, asked, answers, self.state())

    def search(self, query: str, k: int = 4) -> list[Document]:
        """The journal's best ``k`` matches of the query's words (BM25). Raises JournalNotKept."""
        return [to_document(hit) for hit in self.model.opened_store.search(self.agent_id, query, k=k)]

    def reset(self, sub_state: str | None = None) -> str:
        """Empty one sub-state (None: all of them), as a new version; returns its id. Raises StateError."""
        return self.model.reset(self.agent_id, sub_state)

    def history(self, limit: int | None = None) -> list[Version]:
        """The head and the versions before it, newest first, at most ``limit``."""
        head = self.head
        return [] if head is None else self.model.opened_store.history(self.agent_id, head, limit=limit)

    def forget(self, where: Filter | None = None, **fields: Any) -> Forgotten:
        """Forget single messages: those that fit a filter, or its fields (``source="anna"``); see replay.forget.

        Raises:
            StoreError: nothing says which (an empty filter).
            AgentNotFound, JournalNotKept, HeadConflict.
        """
        if where is not None and fields:
            raise ValueError(f"give a filter or its fields, not both: {sorted(fields)}")
        return self.model.forget(self.agent_id, Filter(**fields) if where is None else where)

    def fork(self, new_agent_id: str, version: str | None = None) -> Self:
        """A new agent that knows what this one knew at a version (None: the head). Raises AgentExists and others."""
        store, wanted = self.model.opened_store, version or self.head
        try:
            store.fork(self.agent_id, new_agent_id, wanted)
        except StatePruned:
            assert wanted is not None
            self.model.memories.bring_back(self.agent_id, wanted)
            store.fork(self.agent_id, new_agent_id, wanted)
        return type(self)(self.model, new_agent_id)

    def snapshot(self, label: str | None = None) -> str:
        """Pin the head, so that it is never pruned or collected, and return its id.

        Args:
            label: why it is kept; None: the time, or the label that it has already.

        Raises:
            StateError: nothing was written.
        """
        store, head = self.model.opened_store, self.head
        if head is None:
            raise StateError(f"agent {self.agent_id!r} has no memory to keep: check the name, or write to it first")
        kept = label or store.version(self.agent_id, head).pin or f"snapshot of {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        store.pin(self.agent_id, head, kept)
        return head

    def rollback(self, version: str) -> None:
        """Make an earlier version, or one on a branch, the head; what came after it stays in the store.

        Raises:
            HeadConflict: another writer moved the head just now.
            AgentNotFound, VersionNotFound.
        """
        self.model.opened_store.move_head(self.agent_id, version, expected=self.head)

    def state(self, version: str | None = None) -> MemoryState:
        """The memory at a version (None: the head). Raises VersionNotFound, FingerprintMismatch."""
        return self.model.load_state(self.agent_id, version)

    async def ahead(self) -> str | None:
        return await in_thread(lambda: self.head)

    async def awrite(
        self, messages: Told, sub_state: str | Sequence[str] | None = None, source: str | None = None
    ) -> str | None:
        return await in_thread(self.write, messages, sub_state, source)

    async def arecall_scores(self, question: str | Sequence[BaseMessage], answers: Sequence[str]) -> list[float]:
        return await in_thread(self.recall_scores, question, answers)

    async def asearch(self, query: str, k: int = 4) -> list[Document]:
        return await in_thread(self.search, query, k)

    async def areset(self, sub_state: str | None = None) -> str:
        return await in_thread(self.reset, sub_state)

    async def ahistory(self, limit: int | None = None) -> list[Version]:
        return await in_thread(self.history, limit)

    async def aforget(self, where: Filter | None = None, **fields: Any) -> Forgotten:
        return await in_thread(partial(self.forget, where, **fields))

    async def afork(self, new_agent_id: str, version: str | None = None) -> Self:
        return await in_thread(self.fork, new_agent_id, version)

    async def asnapshot(self, label: str | None = None) -> str:
        return await in_thread(self.snapshot, label)

    async def arollback(self, version: str) -> None:
        await in_thread(self.rollback, version)

    async def astate(self, version: str | None = None) -> MemoryState:
        return await in_thread(self.state, version)


def _messages(told: Told) -> list[BaseMessage]:
    return convert_to_messages([told] if isinstance(told, str | BaseMessage) else list(told))


def _with(message: BaseMessage, added: dict[str, Any]) -> BaseMessage:
    if not added:
        return message
    return message.model_copy(update={"additional_kwargs": message.additional_kwargs | added})
