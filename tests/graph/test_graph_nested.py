"""Agents that share a memory as nodes of one graph, in one thread: all that they write is on one line, in order."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import Field

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.errors import VersionNotFound
from deltamem_agents.graph import DeltaMemState, create_deltamem_agent


def look_up(item: str) -> str:
    """Look an item up."""
    return f"{item} is in room seven"


class Counting(DeltaMemChatModel):
    """Numbers its replies. Asks for a tool first where it has one and the system prompt says so."""

    calls: list[list[str]] = Field(default_factory=list, exclude=True)

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.calls.append([str(message.content) for message in messages])
        reply = AIMessage(f"reply {len(self.calls)}")
        if messages[0].content == "look it up" and isinstance(messages[-1], HumanMessage | AIMessage):
            reply.tool_calls = [{"name": "look_up", "args": {"item": "rice"}, "id": f"call {len(self.calls)}"}]
        return ChatResult(generations=[ChatGeneration(message=reply)])


@pytest.fixture
def counting(model: DeltaMemChatModel) -> Counting:
    return Counting(adapter=model.adapter, device="cpu", store=model.store)


def config(thread: str = "1", agent: str = "otto") -> Any:
    return {"configurable": {"agent_id": agent, "thread_id": thread}}


def texts(model: DeltaMemChatModel, agent: str = "otto") -> list[str | None]:
    return [record.entry.content for record in model.opened_store.journal(agent)]


def two_workers(model: Counting, parallel: bool, keeps: bool | None, state: Any = MessagesState) -> Any:
    graph = StateGraph(state)
    graph.add_node("a", create_deltamem_agent(model, checkpointer=keeps))
    graph.add_node("b", create_deltamem_agent(model, [look_up], system_prompt="look it up", checkpointer=keeps))
    graph.add_edge(START, "a")
    graph.add_edge(START if parallel else "a", "b")
    return graph.compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("keeps", [None, True], ids=["new each time", "threads of their own"])
@pytest.mark.parametrize("parallel", [False, True], ids=["one after the other", "at once"])
def test_what_two_workers_of_a_thread_write_is_on_one_line(counting: Counting, parallel: bool, keeps: bool) -> None:
    graph = two_workers(counting, parallel, keeps)
    for turn in range(3):
        said = graph.invoke({"messages": [("user", f"turn {turn}")]}, config())["messages"]
    assert len(said) == 3 * 5
    assert sorted(filter(None, texts(counting))) == sorted(message.text for message in said if message.text)
    assert len(counting.opened_store.tree("otto")) == len(counting.opened_store.history("otto"))  # no branch
    threads = {record.entry.thread_id for record in counting.opened_store.journal("otto")}
    assert threads <= {"1|a", "1|b"} and "1|a" in threads
    graph.invoke({"messages": [("user", "another thread")]}, config("2"))
    assert len(texts(counting)) == 4 * 5


def test_a_worker_that_is_sent_twice_in_a_turn_goes_on_where_it_was(counting: Counting) -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("worker", create_deltamem_agent(counting))
    graph.add_edge(START, "worker")
    graph.add_conditional_edges("worker", lambda s: END if s["messages"][-1].text == "reply 3" else "worker")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"messages": [("user", "three times")]}, config())
    assert texts(counting) == ["three times", "reply 1", "reply 2", "reply 3"]
    assert counting.calls[2] == ["three times", "reply 1", "reply 2"]
    assert len(counting.opened_store.tree("otto")) == 3


def test_agents_with_a_memory_each_need_a_state_without_a_version(counting: Counting) -> None:
    def both(state: Any, names: tuple[str, str]) -> Any:
        graph = StateGraph(state)
        for name in names:
            graph.add_node(name, create_deltamem_agent(counting.model_copy(update={"agent_id": name})))
        graph.add_edge(START, names[0])
        graph.add_edge(*names)
        return graph.compile(checkpointer=InMemorySaver())

    thread: Any = {"configurable": {"thread_id": "1"}}
    graph = both(MessagesState, ("one", "two"))
    for text in ("hello", "again"):
        said = graph.invoke({"messages": [("user", text)]}, thread)["messages"]
    assert texts(counting, "two")[-2:] == [message.text for message in said[-2:]]
    graph = both(DeltaMemState, ("three", "four"))
    graph.invoke({"messages": [("user", "hello")]}, thread)
    with pytest.raises(VersionNotFound, match=r"of another agent .*MessagesState"):
        graph.invoke({"messages": [("user", "again")]}, thread)
