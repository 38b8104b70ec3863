"""A ready-made agent: recall -> model -> tools -> memory, as a LangGraph graph."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.store.base import BaseStore

from ..chat_model import DeltaMemChatModel
from ..chat_model.history import check_earlier, role_of, window
from .lineage import DeltaMemState
from .results import awith_result_id, with_result_id
from .tasks import TaskWriter
from .writer import TurnReader


def create_deltamem_agent(
    model: DeltaMemChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    *,
    system_prompt: str | None = None,
    checkpointer: BaseCheckpointSaver[Any] | None = None,
    tool_choice: str | None = None,
    history: int = 0,
    store: BaseStore | None = None,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An agent whose past is in its memory, not in its prompt.

    The model sees the current turn alone (the last human message and what followed it). Everything is written to the
    agent's memory: what nobody wrote of the messages before the turn, then the turn, after the tools have answered and
    at its end. Whose memory says ``config["configurable"]["agent_id"]`` (or the model's own field), not the thread.

    Args:
        model: the chat model; inside of the graph its calls only read.
        tools: LangChain tools or functions.
        system_prompt: stands before every prompt; it is not remembered.
        checkpointer: of LangGraph, to resume and to go back; without it each call is a thread of its own.
        tool_choice: for ``bind_tools``, in the first call of a turn.
        history: how many messages from before the current turn stay in the prompt; system messages always do.
        store: of LangGraph, for tools that keep something else there; the agent's memory is not in it.

    Raises:
        TypeError: ``model`` has no memory.
        ValueError: ``history`` is negative.

    Example:
        >>> agent = create_deltamem_agent(DeltaMemChatModel())  # doctest: +SKIP
        >>> agent.invoke({"messages": [("user", "The port of atlas is 8443.")]},
        ...              {"configurable": {"agent_id": "ops"}})  # doctest: +SKIP
    """
    if not isinstance(model, DeltaMemChatModel):
        raise TypeError(f"create_deltamem_agent got a {type(model).__name__}, which has no memory: a DeltaMemChatModel")
    check_earlier(history)
    writer = TaskWriter(model)
    remember = RunnableLambda(writer, afunc=writer.awrite, name="remember")
    answer = _Answer(model, tools, system_prompt, tool_choice, history)
    graph = StateGraph(DeltaMemState)
    graph.add_node("recall", TurnReader(model, writer))
    graph.add_node("model", RunnableLambda(answer.run, afunc=answer.arun, name="model"))
    graph.add_node("remember", remember)
    graph.add_edge(START, "recall")
    graph.add_edge("recall", "model")
    graph.add_edge("remember", END)
    if tools:
        node = ToolNode(list(tools), wrap_tool_call=with_result_id, awrap_tool_call=awith_result_id)
        graph.add_node("tools", node)
        graph.add_node("remember_results", remember)
        graph.add_conditional_edges("model", _wants_tools, {True: "tools", False: "remember"})
        graph.add_edge("tools", "remember_results")
        if direct := {tool.name for tool in node.tools_by_name.values() if tool.return_direct}:
            graph.add_conditional_edges("remember_results", partial(_after_results, direct), ["model", END])
        else:
            graph.add_edge("remember_results", "model")
    else:
        graph.add_edge("model", "remember")
    return graph.compile(checkpointer=checkpointer, store=store)


class _Answer:
    """The node of the model."""

    def __init__(
        self,
        model: DeltaMemChatModel,
        tools: Sequence[BaseTool | Callable[..., Any]],
        system_prompt: str | None,
        tool_choice: str | None,
        history: int,
    ) -> None:
        self.first: Runnable[Any, Any] = model.bind_tools(tools, tool_choice=tool_choice) if tools else model
        self.later: Runnable[Any, Any] = model.bind_tools(tools) if tools else model
        self.system_prompt, self.history = system_prompt, history

    def run(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        model, prompt, options = self._call(state)
        return {"messages": [model.invoke(prompt, config, **options)]}

    async def arun(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        model, prompt, options = self._call(state)
        return {"messages": [await model.ainvoke(prompt, config, **options)]}

    def _call(self, state: DeltaMemState) -> tuple[Runnable[Any, Any], list[BaseMessage], dict[str, Any]]:
        messages = state["messages"]
        prompt = window(messages, self.history)
        if self.system_prompt:
            prompt.insert(0, SystemMessage(self.system_prompt))
        version = state.get("memory_version")
        model = self.first if messages and role_of(messages[-1]) == "user" else self.later
        options: dict[str, Any] = {"history": "all"}  # of what is in the prompt: it was chosen here
        return model, prompt, options if version is None else options | {"memory_version": version}


def _after_results(direct: set[str], state: DeltaMemState) -> str:
    """The result of a tool with ``return_direct`` ends the turn, as in LangChain's agents."""
    results = takewhile(lambda message: isinstance(message, ToolMessage), reversed(state["messages"]))
    return END if any(message.name in direct for message in results) else "model"


def _wants_tools(state: DeltaMemState) -> bool:
    return bool(getattr(state["messages"][-1], "tool_calls", None))
