"""Nodes for any graph: quote the journal, empty a sub-state, take messages out of the state once they are remembered.

Each reads the thread's version from the state (:class:`DeltaMemState`) and returns the one that the thread reads next.
``graph.add_node("name", Node(model))`` serves ``invoke`` and ``ainvoke``: LangGraph runs a node that is no coroutine in
a thread of its own. ``arun`` is for code that awaits a node by itself.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from langchain_core.messages import BaseMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig

from ..chat_model import DeltaMemChatModel
from ..chat_model.calls import in_thread
from ..chat_model.history import Policy, check_policy, seen
from ..chat_model.memory import AgentMemory, traced
from ..chat_model.messages import from_entry
from ..chat_model.recall import Recalled, recall, with_recall
from ..errors import HeadConflict, StateError
from ..store import Entry, Filter
from .lineage import DeltaMemState, Place, locate, unwritten
from .writer import PATIENCE, DeltaMemWriter, _Node


class RecalledState(DeltaMemState):
    """The state of a graph with a :class:`RecallNode`: ``recalled`` is what it quotes, None when there is nothing."""

    recalled: str | None


class MemoryNode(_Node):
    """What the nodes share; ``model`` is the chat model whose store and engine they use."""

    async def arun(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        """The same as a call, without blocking the event loop."""
        return await in_thread(self, state, config)


class RecallNode(MemoryNode):
    """Node: puts the journal's best matches for the current turn into the state, as ``recalled``.

    They are never written to memory again. :func:`with_recalled` puts them into a prompt; use it with a chat model
    whose own ``recall`` is 0. The graph's state is a :class:`RecalledState`.

    Args:
        k: how many entries at most.
        max_tokens: of the whole block of quotations.

    Raises:
        ValueError: ``k`` is less than 1.
    """

    def __init__(self, model: DeltaMemChatModel, k: int, max_tokens: int = 512) -> None:
        if k < 1:
            raise ValueError(f"RecallNode looks up 1 or more entries, got k={k}: leave the node out to quote nothing")
        super().__init__(model)
        self.k, self.max_tokens = k, max_tokens

    # LangGraph takes the channels from this annotation
    def __call__(self, state: RecalledState, config: RunnableConfig) -> dict[str, Any]:  # type: ignore[override]
        """Returns "recalled" and "memory_version". Raises MissingAgentId, JournalNotKept."""
        agent_id, _ = self._who(config)
        model, store = self.model, self.model.opened_store
        place = self._place(state, config)
        if place.version is None:
            return {"recalled": None, "memory_version": place.pin}
        policy: Policy = "turn" if model.history is None else model.history
        shown = seen(state["messages"], policy, model.get_num_tokens_from_messages)
        found = recall(store, agent_id, shown, self.k, self.max_tokens, model.get_num_tokens, version_id=place.version)
        return {"recalled": None if found is None else found.text, "memory_version": place.pin}


def with_recalled(messages: Sequence[BaseMessage], recalled: str | None) -> list[BaseMessage]:
    """A prompt of ``messages`` with what a :class:`RecallNode` found, as a system message that is not remembered."""
    return with_recall(messages, None if recalled is None else Recalled(recalled, (), 0))


class ResetNode(MemoryNode):
    """Node: empties a sub-state, as a new version after the thread's.

    It does so once in each super-step, whatever is retried or resumed, and not at all when the sub-state is empty. The
    journal gets a note of it, which no sub-state reads. A thread that was sent back to an older checkpoint makes a
    branch.

    Args:
        sub_state: which one.
    """

    def __init__(self, model: DeltaMemChatModel, sub_state: str = "task_progress") -> None:
        super().__init__(model)
        self.sub_state = sub_state

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        """Returns {"memory_version": the version in which the sub-state is empty}.

        Raises:
            StateError: the memory has no such sub-state.
            MissingAgentId, FingerprintMismatch.
        """
        agent_id, thread = self._who(config)
        memory, pinned = self.model.memories, state.get("memory_version")
        check_sub_state(memory, self.sub_state)
        note = Entry(
            role="system",
            content=f"The sub-state {self.sub_state} was emptied.",
            sub_states=(),
            message_id=_super_step(state, config, thread, self.sub_state),
            thread_id=thread,
        )
        key = (note.message_id, note.content_hash)
        until = time.monotonic() + PATIENCE
        with memory.writing(agent_id):
            while True:
                place = locate(memory.store, agent_id, pinned, thread, [key])
                if not unwritten(memory.store, agent_id, place.version, [key]):
                    return {"memory_version": self._made(agent_id, place, thread, note)}
                if self._is_empty(agent_id, place):
                    return {"memory_version": place.pin}
                try:
                    return {"memory_version": commit_reset(memory, agent_id, place, self.sub_state, [note])}
                except HeadConflict:  # another process was first
                    if time.monotonic() > until:
                        raise

    def _made(self, agent_id: str, place: Place, thread: str | None, note: Entry) -> str | None:
        """Where the thread stands after the reset that was made before: there, or further on with the head."""
        store = self.model.opened_store
        for record in store.records(agent_id, Filter(ids=[str(note.message_id)], hashes=[note.content_hash])):
            if place.version is not None and store.is_ancestor(agent_id, record.version_id, place.version):
                return locate(store, agent_id, record.version_id, thread).version
        return place.version  # it was rolled back

    def _is_empty(self, agent_id: str, place: Place) -> bool:
        """Whether nothing was written to the sub-state since its last reset."""
        if place.version is None:
            return True
        return self.sub_state not in self.model.opened_store.version(agent_id, place.version).parts


class CompactNode(MemoryNode):
    """Node: writes the messages that leave the window to memory, then takes them out of the state.

    Args:
        keep: what stays, as the ``history`` of a chat model: "turn", a number of messages, {"tokens": n} or "all".
        writer: what writes; default: a DeltaMemWriter. A graph with tasks gives its TaskWriter.

    Raises:
        ValueError: ``keep`` is no such policy.
    """

    def __init__(self, model: DeltaMemChatModel, keep: Policy = "turn", writer: DeltaMemWriter | None = None) -> None:
        super().__init__(model)
        self.keep, self.writer = check_policy(keep), writer or DeltaMemWriter(model)

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        """Returns "memory_version", and as "messages" what removes those that left.

        Raises:
            ValueError: a message has no id, by which it could be removed.
            MissingAgentId, FingerprintMismatch.
        """
        messages = state["messages"]
        kept = {id(message) for message in seen(messages, self.keep, self.model.get_num_tokens_from_messages)}
        gone = [message for message in messages if id(message) not in kept]
        if unnamed := [message for message in gone if message.id is None]:
            raise ValueError(
                f"{len(unnamed)} of {len(gone)} messages that leave the window have no id, so they cannot be removed: "
                "use the reducer add_messages (MessagesState, DeltaMemState), which gives ids"
            )
        if not gone:
            return {"memory_version": state.get("memory_version")}
        written = self.writer(DeltaMemState(messages=gone, memory_version=state.get("memory_version")), config)
        return {**written, "messages": [RemoveMessage(id=str(message.id)) for message in gone]}


def check_sub_state(memory: AgentMemory, sub_state: str) -> None:
    """Raise StateError unless the memory has a sub-state of that name."""
    if sub_state not in memory.engine.sub_states:
        raise StateError(f"no sub-state {sub_state!r} to empty; this memory has {sorted(memory.engine.sub_states)}")


def commit_reset(
    memory: AgentMemory, agent_id: str, place: Place, sub_state: str, entries: Sequence[Entry]
) -> str | None:
    """Empty a sub-state and then write entries, as one version. The same after the same version is there once.

    Raises:
        HeadConflict: the head is not ``place`` any more.
        StateError: no such sub-state.
        FingerprintMismatch: the memory was made by another adapter or backbone.
    """
    check_sub_state(memory, sub_state)
    engine = memory.engine
    state, before = memory.at(agent_id, place.version)
    routes = [entry.sub_states for entry in entries]
    written, traces = engine.write_traced(state.reset(sub_state), [from_entry(entry) for entry in entries], routes)
    changed = {name for route in routes for name in route}
    if before is not None and before.pruned:  # then nothing can be taken over from it
        changed |= set(before.parts) - {sub_state}
    return memory.store.commit(
        agent_id,
        parent=place.version,
        parts=memory.parts(written, [name for name in engine.sub_states if name in changed]),
        entries=[traced(entry, trace) for entry, trace in zip(entries, traces, strict=True)],
        fingerprint=engine.fingerprint,
        resets=[sub_state],
        move_head=place.moves_head,
    ).version_id


def _super_step(state: DeltaMemState, config: RunnableConfig, thread: str | None, sub_state: str) -> str:
    """An id for what one super-step does, the same when it is retried, resumed or replayed.

    Steps are counted anew in subgraphs and on in replays, so the last message stands for the step, if it has an id. A
    call outside of a graph and of a thread is always a new one.
    """
    about = config.get("metadata") or {}
    where = thread or about.get("langgraph_checkpoint_ns") or str(uuid4())
    messages = state.get("messages") or []
    step = (messages[-1].id if messages else None) or about.get("langgraph_step") or str(uuid4())
    named = json.dumps([where, step, about.get("langgraph_node"), state.get("memory_version"), sub_state])
    return f"reset-{hashlib.sha256(named.encode()).hexdigest()[:32]}"
