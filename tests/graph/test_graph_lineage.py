"""Threads of one agent: at once, after a rollback, after forgetting, with colliding ids, with configs of their own."""

from concurrent.futures import ThreadPoolExecutor

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from deltamem_agents import DeltaMemWriter, create_deltamem_agent
from deltamem_agents.graph import DeltaMemState
from deltamem_agents.store import Filter


def config(thread, agent="otto"):
    return {"configurable": {"agent_id": agent, "thread_id": thread}}


def texts(model, version=None):
    return [record.entry.content for record in model.opened_store.journal("otto", version)]


def test_many_threads_at_once_lose_nothing(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())

    def turn(i):
        agent.invoke({"messages": [HumanMessage(f"rice {i}")]}, config(f"t{i}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(turn, range(16)))
    store = model.opened_store
    assert sorted(texts(model)[::2]) == sorted(f"rice {i}" for i in range(16))
    assert len(store.history("otto")) == store.agent("otto").versions == 16
    assert {r.entry.thread_id for r in store.journal("otto")} == {f"t{i}" for i in range(16)}


def test_the_same_id_with_another_text_is_another_message(model):
    writer = DeltaMemWriter(model)
    for thread, text in (("1", "the rice"), ("2", "the tank"), ("1", "the rice"), ("2", "the tank")):
        state = DeltaMemState(messages=[HumanMessage(text, id="1")], memory_version=None)
        writer(state, config(thread))
    assert texts(model) == ["the rice", "the tank"]


def test_messages_without_ids_are_all_written(model):
    messages = [HumanMessage("the rice"), HumanMessage("the rice")]
    DeltaMemWriter(model)(DeltaMemState(messages=messages, memory_version=None), config("1"))
    assert texts(model) == ["the rice", "the rice"]


def test_a_node_that_passes_its_own_config_still_only_reads(model):
    def direct(state):
        return {"messages": [model.invoke(state["messages"], {"configurable": {"agent_id": "otto"}})]}

    def bound(state):
        return {"messages": [model.with_config(configurable={"agent_id": "otto"}).invoke(state["messages"])]}

    for node in (direct, bound):
        graph = StateGraph(DeltaMemState)
        graph.add_node("node", node)
        graph.add_edge(START, "node")
        graph.add_edge("node", END)
        graph.compile().invoke({"messages": [HumanMessage("the rice")]}, config("1"))
    assert model.opened_store.head("otto") is None


def test_a_thread_follows_a_rollback(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    for text in ("one", "two", "three"):
        agent.invoke({"messages": [HumanMessage(text)]}, config("t"))
    store = model.opened_store
    first = store.history("otto")[-1].version_id
    store.move_head("otto", first, expected=store.head("otto"))
    for text in ("four", "five"):
        result = agent.invoke({"messages": [HumanMessage(text)]}, config("t"))
        assert result["memory_version"] == store.head("otto")
    assert texts(model)[::2] == ["one", "four", "five"]


def test_a_thread_goes_on_after_its_message_was_forgotten(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    agent.invoke({"messages": [HumanMessage("a secret", id="s")]}, config("t"))
    agent.invoke({"messages": [HumanMessage("the rice", id="r")]}, config("t"))
    model.forget("otto", Filter(ids=["s"]))
    result = agent.invoke({"messages": [HumanMessage("the tank", id="k")]}, config("t"))
    assert "a secret" in [m.content for m in result["messages"]]  # the checkpoint of LangGraph is not ours
    assert "a secret" not in texts(model) and result["memory_version"] == model.opened_store.head("otto")
    assert [t for t in texts(model) if t.startswith("the ")] == ["the rice", "the tank"]


def test_a_retried_writer_of_a_thread_behind_the_head_writes_once(model):
    writer = DeltaMemWriter(model)
    state = DeltaMemState(messages=[HumanMessage("the rice", id="h"), AIMessage("noted", id="a")], memory_version=None)
    first = writer(state, config("1"))["memory_version"]
    model.remember([HumanMessage("elsewhere", id="e")], "otto")
    again = DeltaMemState(messages=[*state["messages"], HumanMessage("the tank", id="k")], memory_version=first)
    second = writer(again, config("1"))["memory_version"]
    assert writer(again, config("1"))["memory_version"] == second == model.opened_store.head("otto")
    assert texts(model) == ["the rice", "noted", "elsewhere", "the tank"]
