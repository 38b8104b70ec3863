"""Nodes for any graph: what they quote, empty and take out, that they do it once, and where the head is afterwards."""

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy

from deltamem_agents.chat_model.replay import replay
from deltamem_agents.errors import StateError
from deltamem_agents.graph import (
    CompactNode,
    DeltaMemState,
    DeltaMemWriter,
    RecalledState,
    RecallNode,
    ResetNode,
    with_recalled,
)


def config(thread="1", agent="otto", **more):
    return {"configurable": {"agent_id": agent} | ({"thread_id": thread} if thread else {}) | more}


def chain(*nodes, state=DeltaMemState, saver=None, retry=None):
    """A graph of nodes, one after the other."""
    graph = StateGraph(state)
    names = [START, *(f"n{i}" for i in range(len(nodes))), END]
    for name, node in zip(names[1:], nodes, strict=False):
        graph.add_node(name, node, retry_policy=retry)
    for one, other in pairwise(names):
        graph.add_edge(one, other)
    return graph.compile(checkpointer=saver)


def texts(model, version=None):
    return [record.entry.content for record in model.opened_store.journal("otto", version)]


def resets(model, version=None):
    return [v.resets for v in model.opened_store.history("otto", version) if v.resets]


def said(text):
    return {"messages": [HumanMessage(text)]}


def told(model):
    """An agent with something in both sub-states; returns its head."""
    return model.remember([HumanMessage("the rice is in room seven", id="h"), AIMessage("step one", id="a")], "otto")


def test_recall_puts_quotations_into_the_state_and_not_into_memory(model):
    first = told(model)
    model.remember([HumanMessage("the tank is blue")], "otto")
    node = RecallNode(model, 2, max_tokens=200)
    graph = chain(node, state=RecalledState)
    result = graph.invoke(said("where is the rice"), config())
    assert "> the rice is in room seven" in result["recalled"]
    assert result["memory_version"] == model.opened_store.head("otto") and len(texts(model)) == 3
    assert asyncio.run(graph.ainvoke(said("where is the rice"), config()))["recalled"] == result["recalled"]
    prompt = with_recalled([SystemMessage("be brief"), *result["messages"]], result["recalled"])
    assert [m.content for m in prompt] == ["be brief", result["recalled"], "where is the rice"]
    model.remember(prompt[1:2], "otto")
    assert len(texts(model)) == 3
    there = RecalledState(messages=said("which tank is blue now")["messages"], memory_version=first, recalled=None)
    assert "> the tank is blue" in node(there, config())["recalled"]


def test_recall_reads_the_version_of_a_thread_that_went_back(model):
    saver = InMemorySaver()
    graph = chain(RecallNode(model, 2), DeltaMemWriter(model), state=RecalledState, saver=saver)
    assert graph.invoke(said("the rice is in room seven"), config())["recalled"] is None
    graph.invoke(said("the tank is in room nine"), config())
    first = [s for s in graph.get_state_history(config()) if not s.next][-1]
    back = graph.invoke(
        said("where is the tank"), {"configurable": first.config["configurable"] | {"agent_id": "otto"}}
    )
    assert "seven" in back["recalled"] and "nine" not in back["recalled"]
    now = graph.invoke(said("where is the tank"), config("2"))
    assert "> the tank is in room nine" in now["recalled"]


def test_recall_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match="k=0"):
        RecallNode(model, 0)


def test_a_reset_empties_one_sub_state_and_moves_the_head(model):
    before = told(model)
    result = chain(ResetNode(model)).invoke(said("go"), config(None))
    store = model.opened_store
    assert store.head("otto") == result["memory_version"] != before and resets(model) == [("task_progress",)]
    old, new = model.load_state("otto", before), model.load_state("otto")
    assert all(t.equal(new.select("facts").tensors[n]) for n, t in old.select("facts").tensors.items())
    assert set(store.version("otto", result["memory_version"]).parts) == {"facts"}
    empty = model.engine.new_state()
    assert all(
        t.equal(new.select("task_progress").tensors[n]) for n, t in empty.select("task_progress").tensors.items()
    )
    assert list(replay(model.memories, "otto")) == []


def test_an_empty_sub_state_is_not_reset_again(model):
    told(model)
    graph = chain(ResetNode(model), ResetNode(model))
    one, two = graph.invoke(said("go"), config()), graph.invoke(said("go"), config("2"))
    assert one["memory_version"] == two["memory_version"] and len(resets(model)) == 1
    assert chain(ResetNode(model)).invoke(said("go"), config(agent="new"))["memory_version"] == "empty"
    assert model.opened_store.head("new") is None


class Failing:
    """A node that does its work and then fails, the first time."""

    def __init__(self, node, between=lambda: None):
        self.node, self.between, self.returned = node, between, []

    def __call__(self, state: DeltaMemState, config):
        self.returned.append(self.node(state, config)["memory_version"])
        if len(self.returned) == 1:
            self.between()
            raise ConnectionError("lost")
        return {"memory_version": self.returned[-1]}

    def __getattr__(self, name):
        return getattr(self.node, name)


@pytest.mark.parametrize("thread", ["1", None])
def test_a_retried_reset_is_one_reset(model, thread):
    told(model)
    node = Failing(ResetNode(model))

    def run(state: DeltaMemState, config):
        return node(state, config)

    graph = chain(run, saver=InMemorySaver() if thread else None, retry=RetryPolicy(initial_interval=0.01))
    result = graph.invoke(said("go"), config(thread))
    assert node.returned == [result["memory_version"]] * 2 and len(resets(model)) == 1


def test_a_resumed_reset_leaves_what_others_wrote_meanwhile(model, tmp_path):
    told(model)
    node = Failing(ResetNode(model), lambda: model.remember([AIMessage("of another thread", id="x")], "otto"))

    def run(state: DeltaMemState, config):
        return node(state, config)

    with sqlite3.connect(tmp_path / "threads.db", check_same_thread=False) as connection:
        graph = chain(run, saver=SqliteSaver(connection))
        with pytest.raises(ConnectionError):
            graph.invoke(said("go"), config())
        result = graph.invoke(None, config())
    store = model.opened_store
    assert len(resets(model)) == 1 and result["memory_version"] == store.head("otto")
    assert "task_progress" in store.version("otto", store.head("otto")).parts


def test_a_reset_of_an_old_checkpoint_makes_a_branch_and_a_replay_makes_nothing(model):
    graph = chain(DeltaMemWriter(model), ResetNode(model), saver=InMemorySaver())
    graph.invoke({"messages": [HumanMessage("one"), AIMessage("step one")]}, config())
    before = next(s for s in graph.get_state_history(config()) if s.next == ("n1",))
    graph.invoke({"messages": [HumanMessage("two"), AIMessage("step two")]}, config())
    store = model.opened_store
    head, versions = store.head("otto"), store.agent("otto").versions
    again = graph.invoke(None, {"configurable": before.config["configurable"] | {"agent_id": "otto"}})
    assert store.agent("otto").versions == versions and store.head("otto") == head
    assert store.is_ancestor("otto", again["memory_version"], head) and len(resets(model)) == 2
    assert resets(model, again["memory_version"]) == [("task_progress",)]
    fork = graph.update_state(before.config, {"messages": [AIMessage("step three")]}, as_node="n0")
    other = graph.invoke(None, {"configurable": fork["configurable"] | {"agent_id": "otto"}})
    assert store.head("otto") == head and not store.is_ancestor("otto", other["memory_version"], head)
    assert texts(model, other["memory_version"])[:2] == ["one", "step one"]


def test_a_reset_after_a_version_whose_bytes_were_dropped(model):
    told(model)
    first, *_ = [model.remember([AIMessage(f"step {i}")], "otto") for i in range(3)]
    store = model.opened_store
    assert store.prune("otto", keep_every=100) > 0 and store.version("otto", first).pruned
    store.move_head("otto", first, expected=store.head("otto"))
    result = chain(ResetNode(model)).invoke(said("go"), config())
    assert set(store.version("otto", result["memory_version"]).parts) == {"facts"}
    assert list(replay(model.memories, "otto")) == [] and store.head("otto") == result["memory_version"]


def test_a_reset_that_was_rolled_back_comes_again_with_the_next_turn_alone(model):
    before = told(model)
    store, node = model.opened_store, ResetNode(model)
    state = DeltaMemState(messages=[HumanMessage("go", id="g")], memory_version=before)
    store.move_head("otto", before, expected=node(state, config())["memory_version"])
    assert node(state, config())["memory_version"] == before
    later = DeltaMemState(messages=[HumanMessage("again", id="n")], memory_version=before)
    assert node(later, config())["memory_version"] == store.head("otto") != before


def test_many_threads_reset_and_write_at_once(model):
    told(model)
    graph = chain(DeltaMemWriter(model), ResetNode(model), saver=InMemorySaver())

    def turn(i):
        graph.invoke({"messages": [HumanMessage(f"rice {i}"), AIMessage(f"tank {i}")]}, config(f"t{i}"))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(turn, range(6)))
    assert sorted(t for t in texts(model) if t.startswith("rice")) == [f"rice {i}" for i in range(6)]
    assert "task_progress" not in model.opened_store.version("otto", model.opened_store.head("otto")).parts
    assert 1 <= len(resets(model)) <= 6 and list(replay(model.memories, "otto")) == []


def test_a_reset_needs_a_sub_state_that_exists(model):
    with pytest.raises(StateError, match="no sub-state 'plans'"):
        chain(ResetNode(model, "plans")).invoke(said("go"), config())


def talk(turns):
    return [m for i in range(turns) for m in (HumanMessage(f"rice {i}"), AIMessage(f"tank {i}"))]


def test_compacting_writes_what_leaves_and_then_removes_it(model, tmp_path):
    async def run():
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
            graph = chain(CompactNode(model, keep=2), saver=saver)
            first = await graph.ainvoke({"messages": talk(3)}, config())
            return first, await graph.ainvoke({"messages": talk(1)}, config())

    first, second = asyncio.run(run())
    assert [m.content for m in first["messages"]] == ["rice 2", "tank 2"]
    assert [m.content for m in second["messages"]] == ["rice 0", "tank 0"]
    assert texts(model) == ["rice 0", "tank 0", "rice 1", "tank 1", "rice 2", "tank 2"]
    assert second["memory_version"] == model.opened_store.head("otto") != first["memory_version"]


def test_compacting_never_parts_a_call_from_its_result(model):
    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "c"}])
    messages = [HumanMessage("rice"), call, ToolMessage("seven", tool_call_id="c"), *talk(1)]
    result = chain(CompactNode(model, keep=3), DeltaMemWriter(model)).invoke({"messages": messages}, config())
    assert [m.content for m in result["messages"]] == ["rice 0", "tank 0"]
    assert texts(model) == ["rice", "", "seven", "rice 0", "tank 0"]


def test_a_compaction_that_runs_again_writes_nothing_more(model):
    messages = [m.model_copy(update={"id": f"m{i}"}) for i, m in enumerate(talk(2))]
    state, node = DeltaMemState(messages=messages, memory_version=None), CompactNode(model)
    first = node(state, config())
    assert asyncio.run(node.arun(state, config())) == first
    assert [m.id for m in first["messages"]] == ["m0", "m1"] and texts(model) == ["rice 0", "tank 0"]
    short = DeltaMemState(messages=messages[2:], memory_version="v")
    assert node(short, config()) == {"memory_version": "v"}


def test_compacting_needs_ids_and_a_policy(model):
    with pytest.raises(ValueError, match="2 of 2 messages that leave the window have no id"):
        CompactNode(model)(DeltaMemState(messages=talk(2), memory_version=None), config())
    assert model.opened_store.head("otto") is None
    with pytest.raises(ValueError, match="no policy"):
        CompactNode(model, keep="some")
