"""Graphs in which a CachePolicy would hand one agent's memory to another are refused; all others are left alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.graph import START, StateGraph
from langgraph.types import CachePolicy

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.graph import CompactNode, DeltaMemReader, DeltaMemState, DeltaMemWriter, create_deltamem_agent
from deltamem_agents.graph.caching import refuse_cache
from deltamem_agents.graph.middleware import DeltaMemMiddleware

Make = Callable[[DeltaMemChatModel], Any]


def plain(state: DeltaMemState) -> dict[str, Any]:
    return {"messages": [AIMessage("noted")]}


def wrapped(model: DeltaMemChatModel) -> Any:
    writer = DeltaMemWriter(model)

    def remember(state: DeltaMemState, config: RunnableConfig) -> Any:
        return writer(state, config)

    return remember


def answering(model: DeltaMemChatModel) -> Any:
    bound = model.bind_tools([plain])
    return lambda state: {"messages": [bound.invoke(state["messages"])]}


def as_async(model: DeltaMemChatModel) -> Any:
    writer = DeltaMemWriter(model)
    return RunnableLambda(writer, afunc=writer.awrite)


def invoking(model: DeltaMemChatModel) -> Any:
    agent = create_deltamem_agent(model)
    return lambda state, config: agent.invoke(state, config)


def with_middleware(model: DeltaMemChatModel) -> Any:
    return create_agent(model, middleware=[DeltaMemMiddleware(model)])


MEMORY: list[Make] = [
    DeltaMemReader,
    DeltaMemWriter,
    CompactNode,
    lambda model: DeltaMemWriter(model).awrite,
    wrapped,
    answering,
    as_async,
    invoking,
    create_deltamem_agent,
    with_middleware,
]
NAMES = ["reader", "writer", "compact", "awrite", "closure", "model", "lambda", "invoked", "subgraph", "middleware"]


def graph(node: Any, policy: CachePolicy | None, default: bool = False) -> Any:
    """A plain node and this one, which has the policy by itself or by default; the plain one is always cached."""
    made = StateGraph(DeltaMemState)
    if default:
        made.set_node_defaults(cache_policy=policy)
    made.add_node("plain", plain, cache_policy=CachePolicy())
    made.add_node("memory", node, cache_policy=None if default else policy)
    made.add_edge(START, "plain")
    made.add_edge("plain", "memory")
    return made.compile(cache=InMemoryCache())


@pytest.mark.parametrize("default", [False, True], ids=["of its own", "by default"])
@pytest.mark.parametrize("make", MEMORY, ids=NAMES)
def test_a_cached_node_with_memory_is_refused(model: DeltaMemChatModel, make: Make, default: bool) -> None:
    with pytest.raises(DeltaMemError, match=r"node 'memory.*without cache_policy"):
        refuse_cache(graph(make(model), CachePolicy(), default))


@pytest.mark.parametrize("make", MEMORY, ids=NAMES)
def test_what_is_not_cached_is_let_through(model: DeltaMemChatModel, make: Make) -> None:
    made = graph(make(model), None)
    assert refuse_cache(made) is made


def test_a_cached_node_inside_of_a_subgraph_is_named(model: DeltaMemChatModel) -> None:
    around = StateGraph(DeltaMemState)
    around.add_node("team", graph(DeltaMemWriter(model), CachePolicy()))
    around.add_edge(START, "team")
    with pytest.raises(DeltaMemError, match=r"'team\.memory'"):
        refuse_cache(around.compile())


def test_cached_nodes_without_memory_are_let_through() -> None:
    made = graph(partial(plain), CachePolicy())
    assert refuse_cache(made).invoke({"messages": [("user", "hello")]})["messages"][-1].content == "noted"
