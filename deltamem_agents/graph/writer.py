"""The nodes of memory: one finds the version that a thread reads, one writes what was said and what tools returned."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from ..chat_model import DeltaMemChatModel
from ..chat_model.history import role_of, turn_start
from ..chat_model.messages import to_entries
from ..chat_model.routing import Router
from ..chat_model.serving import EMPTY, served
from ..engine import Engine
from ..errors import HeadConflict
from .lineage import DeltaMemState, Place, Written, begin, locate, unwritten

PATIENCE = 300.0  # seconds for which a write is tried again while other processes are first


class _Node:
    """A node for one chat model."""

    def __init__(self, model: DeltaMemChatModel) -> None:
        self.model = model

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        raise NotImplementedError

    def _who(self, config: RunnableConfig) -> tuple[str, str | None]:
        """The agent, and the thread if there is one (see lineage.py). Raises MissingAgentId."""
        who = served(config, {}, self.model.agent_id, None)
        given = config.get("configurable") or {}
        if (thread := given.get("thread_id")) is None:
            return who.agent_id, None
        # "node:task|node:task": where this node is in the graphs around it; tasks are new in each run
        *around, _ = str(given.get("checkpoint_ns") or "").split("|")
        return who.agent_id, "|".join([str(thread), *(place.partition(":")[0] for place in around)])

    def _place(self, state: DeltaMemState, config: RunnableConfig) -> Place:
        """Where the thread stands at the beginning of a turn. Raises MissingAgentId."""
        agent_id, thread = self._who(config)
        store, pinned = self.model.opened_store, state.get("memory_version")
        messages = state.get("messages") or []
        if pinned is not None or thread is None or not messages or store.head(agent_id) is None:
            return locate(store, agent_id, pinned, thread)
        turn = keyed(messages[_turn_start(messages) :], self.model.engine, self.model.router)
        return begin(store, agent_id, thread, [key for key, _ in turn])


class DeltaMemReader(_Node):
    """Node: puts the memory version that this turn reads into the state (see lineage.py)."""

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        return {"memory_version": self._place(state, config).pin}


class DeltaMemWriter(_Node):
    """Node: writes the messages that are not in the memory yet, and commits before it returns.

    What people say and tools return goes to the sub-state ``facts``, what the agent says to ``task_progress``;
    ``additional_kwargs["sub_state"]`` of a message overrides that. Messages are written exactly once, whatever is
    retried, resumed or replayed (see lineage.py). Put it after the node of the tools and at the end of a turn; never
    give it a CachePolicy, which
    would hand one thread's version to another.

    Args:
        model: the chat model whose store and engine are used.

    Example:
        >>> graph.add_node("remember", DeltaMemWriter(model))  # doctest: +SKIP
    """

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        """Returns {"memory_version": the version after the write ("empty": nothing was ever written)}.

        Raises:
            MissingAgentId: nobody said whose memory it is.
            FingerprintMismatch: the memory was made by another adapter or backbone.
        """
        agent_id, thread = self._who(config)
        memory = self.model.memories
        messages = keyed(state["messages"], memory.engine, self.model.router)
        keys = [key for key, _ in messages]
        until = time.monotonic() + PATIENCE
        with memory.writing(agent_id):
            while True:
                place = locate(memory.store, agent_id, state.get("memory_version"), thread, keys)
                left = unwritten(memory.store, agent_id, place.version, keys)
                todo = [message for key, message in messages if key in left]
                try:
                    return {"memory_version": self._write(agent_id, place, todo, thread, config) or EMPTY}
                except HeadConflict:  # another process was first
                    if time.monotonic() > until:
                        raise

    def _write(
        self, agent_id: str, place: Place, todo: list[BaseMessage], thread: str | None, config: RunnableConfig
    ) -> str | None:
        if not todo:
            return place.version
        run = config.get("run_id") or (config.get("metadata") or {}).get("run_id")
        options = {"thread_id": thread, "run_id": None if run is None else str(run)}
        return self.model.remember(todo, agent_id, parent=place.version, move_head=place.moves_head, **options)

    async def awrite(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self, state, config)


class TurnReader(DeltaMemReader):
    """Node: begins a turn. What the state holds from before it and nobody wrote is written; then as its base."""

    def __init__(self, model: DeltaMemChatModel, writer: DeltaMemWriter) -> None:
        super().__init__(model)
        self.writer = writer

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        found = super().__call__(state, config)
        messages = state.get("messages") or []
        earlier = messages[: _turn_start(messages)]
        keys = [key for key, _ in keyed(earlier, self.model.engine, self.model.router)]
        if unwritten(self.model.opened_store, self._who(config)[0], found["memory_version"], keys):
            return self.writer(DeltaMemState(messages=earlier, memory_version=found["memory_version"]), config)
        return found


def _turn_start(messages: Sequence[BaseMessage]) -> int:
    return turn_start([role_of(message) for message in messages])


def keyed(
    messages: Sequence[BaseMessage], engine: Engine, router: Router | None = None
) -> list[tuple[Written, BaseMessage]]:
    """The messages that are to be remembered, each with its id and content hash in the journal. No system messages."""
    said = (message for message in messages if role_of(message) != "system")
    found = ((message, to_entries([message], engine, None, router)) for message in said)
    return [((message.id, entry.content_hash), message) for message, entries in found for entry in entries]
