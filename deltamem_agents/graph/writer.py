"""The nodes of memory: one finds the version that a thread reads, one writes what was said and what tools returned."""

import asyncio
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from ..chat_model import DeltaMemChatModel
from ..chat_model.serving import served
from ..errors import HeadConflict
from .lineage import DeltaMemState, Place, locate, source

TRIES = 10


class _Node:
    """A node for one chat model."""

    def __init__(self, model: DeltaMemChatModel) -> None:
        self.model = model

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        raise NotImplementedError

    def _who(self, config: RunnableConfig) -> tuple[str, str | None]:
        """The agent, and the thread if there is one. Raises MissingAgentId."""
        who = served(config, {}, self.model.agent_id, None)
        thread = (config.get("configurable") or {}).get("thread_id")
        return who.agent_id, None if thread is None else str(thread)


class DeltaMemReader(_Node):
    """Node: puts the memory version that this turn reads into the state (see lineage.py)."""

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        agent_id, thread = self._who(config)
        place = locate(self.model.opened_store, agent_id, state.get("memory_version"), thread)
        return {"memory_version": place.version}


class DeltaMemWriter(_Node):
    """Node: writes the messages that are not in the memory yet, and commits before it returns.

    What people say and tools return goes to the sub-state ``facts``, what the agent says to ``task_progress``;
    ``additional_kwargs["sub_state"]`` of a message overrides that. Messages are written exactly once, whatever is
    retried, resumed or replayed (see lineage.py). Put it after the node of the tools and at the end of a turn; never
    give it a
    CachePolicy, which would hand one thread's version to another.

    Args:
        model: the chat model whose store and engine are used.

    Example:
        >>> graph.add_node("remember", DeltaMemWriter(model))  # doctest: +SKIP
    """

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        """Returns {"memory_version": the version after the write}.

        Raises:
            MissingAgentId: nobody said whose memory it is.
            FingerprintMismatch: the memory was made by another adapter or backbone.
        """
        agent_id, thread = self._who(config)
        messages = [_marked(m, thread) for m in state["messages"]]
        for attempt in range(TRIES):
            place = locate(self.model.opened_store, agent_id, state.get("memory_version"), thread, messages)
            try:
                return {"memory_version": self._write(agent_id, place, messages)}
            except HeadConflict:
                if attempt == TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _write(self, agent_id: str, place: Place, messages: list[BaseMessage]) -> str | None:
        todo = place.unwritten(messages)
        if not todo:
            return place.version
        return self.model.remember(todo, agent_id, parent=place.version, move_head=place.moves_head)

    async def awrite(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self, state, config)


def _marked(message: BaseMessage, thread: str | None) -> BaseMessage:
    """The message with its thread, for the journal."""
    if thread is None:
        return message
    return message.model_copy(update={"additional_kwargs": {**message.additional_kwargs, "source": source(thread)}})
