"""Results of tools that keep their ids when a turn is made again, so that they are written once.

    ToolNode(tools, wrap_tool_call=with_result_id, awrap_tool_call=awith_result_id)

LangGraph gives a tool message a new id each time that it is made. A turn whose checkpoints were lost after its results
were written makes them again; named by the call that they answer, they are the same messages.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

Result = ToolMessage | Command[Any]


def with_result_id(request: ToolCallRequest, execute: Callable[[ToolCallRequest], Result]) -> Result:
    """Run a tool; its messages that have no id get one that follows from the call."""
    return _named(request, execute(request))


async def awith_result_id(request: ToolCallRequest, execute: Callable[[ToolCallRequest], Awaitable[Result]]) -> Result:
    """The same for async tools."""
    return _named(request, await execute(request))


def _named(request: ToolCallRequest, result: Result) -> Result:
    call = request.tool_call["id"]
    asked = _reply_with(call, request.state)
    if asked is None:
        return result
    update = result.update if isinstance(result, Command) else {"messages": [result]}
    said = update.get("messages") if isinstance(update, Mapping) else None
    for number, message in enumerate(said if isinstance(said, list) else ()):
        if isinstance(message, ToolMessage) and message.id is None and message.tool_call_id == call:
            message.id = str(uuid5(NAMESPACE_OID, f"{asked}/{call}/{number}"))
    return result


def _reply_with(call: str | None, state: Any) -> str | None:
    """Id of the reply in the state that asked for the call: ids of calls alone may come again in later turns."""
    messages = state if isinstance(state, list) else _get(state, "messages") or ()
    for message in reversed(messages):
        if isinstance(message, AIMessage) and any(one["id"] == call for one in message.tool_calls):
            return message.id
    return None


def _get(state: Any, name: str) -> Any:
    return state.get(name) if isinstance(state, Mapping) else getattr(state, name, None)
