"""Middleware that gives ``langchain.agents.create_agent`` a memory. It needs the extra ``langchain``."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, NotRequired, cast

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langgraph.config import get_config
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime

from ..chat_model import DeltaMemChatModel
from ..chat_model.history import check_earlier, window
from ..chat_model.messages import SUMMARY
from ..chat_model.serving import served
from .lineage import DeltaMemState, unwritten
from .results import Result, awith_result_id, with_result_id
from .tasks import TaskWriter
from .writer import TurnReader, keyed

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import PrivateStateAttr
except ImportError as error:
    raise ImportError(
        "DeltaMemMiddleware needs langchain 1.4 or later: pip install 'deltamem-agents[langchain]'"
    ) from error


class DeltaMemAgentState(AgentState[Any]):
    """What the middleware keeps in a thread's checkpoints; it is no part of the agent's input and output."""

    memory_version: NotRequired[Annotated[str | None, PrivateStateAttr]]
    """The version that the thread reads."""

    memory_pending: NotRequired[Annotated[list[AnyMessage], PrivateStateAttr]]
    """What the turn began with and is not written yet, so that no summary can swallow it."""


class DeltaMemMiddleware(AgentMiddleware[DeltaMemAgentState, Any, Any]):
    """An agent of ``create_agent`` whose past is in its memory, not in its prompt.

    The model sees the current turn alone (the last human message and what followed it); everything before was written
    to the agent's memory: what tools returned before the model is called again, the whole turn at its end, each message
    once, whatever is resumed or replayed. Whose memory it is says ``config["configurable"]["agent_id"]`` (or the
    context's or the model's ``agent_id``), never the thread. List it first: other middleware that changes messages for
    good then comes after the write. Summaries are not written; what they replace was.

    Args:
        model: the agent's chat model, whose store and engine are used.
        history: how many messages from before the current turn stay in the prompt.

    Raises:
        ValueError: ``history`` is negative.

    Example:
        >>> create_agent(model, tools, middleware=[DeltaMemMiddleware(model)])  # doctest: +SKIP
    """

    state_schema = DeltaMemAgentState

    def __init__(self, model: DeltaMemChatModel, history: int = 0) -> None:
        super().__init__()
        check_earlier(history)
        self.model, self.history = model, history
        self._writer = TaskWriter(model)
        self._reader = TurnReader(model, self._writer)

    def before_agent(self, state: DeltaMemAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Find the version that this turn reads. Raises MissingAgentId when nobody said whose memory it is."""
        said = _said(state)
        found = self._reader(DeltaMemState(messages=said, memory_version=state.get("memory_version")), get_config())
        return {**found, "memory_pending": self._unwritten(said, found["memory_version"])}

    async def abefore_agent(self, state: DeltaMemAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.before_agent, state, runtime)

    def before_model(self, state: DeltaMemAgentState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Write what the agent did and what its tools returned since the turn began or was last written.

        Raises:
            FingerprintMismatch: the memory was made by another adapter or backbone.
        """
        said = _said(state)
        pending = {message.id for message in state.get("memory_pending", ())}
        new = {message.id for message in self._unwritten(said, state.get("memory_version"))} - pending
        done = [i for i, m in enumerate(said) if m.id in new and isinstance(m, AIMessage | ToolMessage)]
        return self._write(said[: done[-1] + 1], state) if done else None

    async def abefore_model(self, state: DeltaMemAgentState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.before_model, state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with this turn, and with the memory that the thread reads.

        Raises:
            TypeError: the agent's model has no memory.
        """
        return handler(self._request(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """The same for async calls."""
        return await handler(self._request(request))

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]) -> Result:
        """Run a tool; its result keeps its id when the turn is made again (results.py)."""
        return with_result_id(request, handler)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        """The same for async calls."""
        return await awith_result_id(request, handler)

    def after_agent(self, state: DeltaMemAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Write the rest of the turn. Raises as :meth:`before_model`."""
        return self._write(_said(state), state)

    async def aafter_agent(self, state: DeltaMemAgentState, runtime: Runtime[Any]) -> dict[str, Any]:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.after_agent, state, runtime)

    def _request(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        if not isinstance(request.model, DeltaMemChatModel):
            raise TypeError(
                f"DeltaMemMiddleware got a call of {type(request.model).__name__}, which has no memory: give "
                "create_agent, and other middleware that chooses models, a DeltaMemChatModel"
            )
        settings = {**request.model_settings, "agent_id": self._agent_id(), "history": "all"}  # of what is chosen here
        if (version := request.state.get("memory_version")) is not None:
            settings["memory_version"] = version
        shown = cast(list[AnyMessage], window(request.messages, self.history))
        return request.override(messages=shown, model_settings=settings)

    def _agent_id(self) -> str:
        return served(get_config(), {}, self.model.agent_id, None).agent_id

    def _unwritten(self, messages: Sequence[BaseMessage], version: str | None) -> list[BaseMessage]:
        memory = self.model.memories
        pairs = keyed(messages, memory.engine, self.model.router)
        left = unwritten(memory.store, self._agent_id(), version, [key for key, _ in pairs])
        return [message for key, message in pairs if key in left]

    def _write(self, messages: list[AnyMessage], state: DeltaMemAgentState) -> dict[str, Any]:
        written = DeltaMemState(messages=messages, memory_version=state.get("memory_version"))
        return {**self._writer(written, get_config()), "memory_pending": []}


def _said(state: DeltaMemAgentState) -> list[AnyMessage]:
    """The messages of the state, after what a summary took out of it before it was written.

    What is gone without a summary was deleted by somebody, and stays so.
    """
    messages = list(state["messages"])
    if not any(message.additional_kwargs.get("lc_source") == SUMMARY for message in messages):
        return messages
    ids = {message.id for message in messages}
    return [*(message for message in state.get("memory_pending", ()) if message.id not in ids), *messages]
