"""The prebuilt agent: what it writes, when, for whom, and that it writes it once."""

import asyncio

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.errors import MissingAgentId
from deltamem_agents.graph import DeltaMemState, DeltaMemWriter, create_deltamem_agent, open_task, report_progress


def look_up(item: str) -> str:
    """Look an item up."""
    return f"{item} is in room seven"


def config(agent="otto", thread=None, **more):
    return {"configurable": {"agent_id": agent} | ({"thread_id": thread} if thread else {}) | more}


def journal(model, agent="otto", version=None):
    return [(r.entry.role, r.entry.sub_states) for r in model.opened_store.journal(agent, version)]


def texts(model, agent="otto", version=None):
    return [r.entry.content for r in model.opened_store.journal(agent, version)]


def test_a_turn_is_written_once_and_routed(model):
    agent = create_deltamem_agent(model)
    result = agent.invoke({"messages": [("user", "the rice is in room seven")]}, config())
    assert journal(model) == [("user", ("facts",)), ("assistant", ("task_progress",))]
    assert result["memory_version"] == model.opened_store.head("otto")
    assert result["messages"][-1].usage_metadata["output_tokens"] > 0


def test_later_turns_write_only_what_is_new(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    for text in ("the rice is in room seven", "Mila opens the tank", "the report is blue"):
        agent.invoke({"messages": [("user", text)]}, config(thread="1"))
    assert texts(model)[::2] == ["the rice is in room seven", "Mila opens the tank", "the report is blue"]
    assert len(texts(model)) == 6


class Calling(DeltaMemChatModel):
    """Asks for two tools first, and answers by itself after that."""

    def _generate(self, messages, *args, **kwargs):
        if isinstance(messages[-1], HumanMessage):
            calls = [{"name": "look_up", "args": {"item": item}, "id": item} for item in ("rice", "tank")]
            return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=calls))])
        return super()._generate(messages, *args, **kwargs)


def test_tool_results_are_committed_together_before_the_next_call(model):
    model = Calling(adapter=model.adapter, device="cpu", store=model.store, max_tokens=6)
    agent = create_deltamem_agent(model, [look_up])
    seen = []
    for step in agent.stream({"messages": [("user", "look rice up")]}, config(), stream_mode="updates"):
        seen += [(name, model.opened_store.head("otto")) for name in step]
    names = [name for name, _ in seen]
    assert names == ["recall", "model", "tools", "remember_results", "model", "remember"]
    assert [head is None for _, head in seen] == [True] * 3 + [False] * 3
    assert [role for role, _ in journal(model)] == ["user", "assistant", "tool", "tool", "assistant"]
    assert dict(journal(model))["tool"] == ("facts",) and texts(model)[2:4] == [look_up(i) for i in ("rice", "tank")]
    assert model.opened_store.agent("otto").versions == 2


def test_the_prompt_holds_this_turn_alone(model, monkeypatch):
    agent = create_deltamem_agent(model, system_prompt="be brief", checkpointer=InMemorySaver())
    prompts = prompts_of(model, monkeypatch)
    for text in ("the rice", "the tank"):
        agent.invoke({"messages": [("user", text)]}, config(thread="1"))
    assert prompts == [["be brief", "the rice"], ["be brief", "the tank"]]
    keeps = create_deltamem_agent(model, history=2, checkpointer=InMemorySaver())
    for text in ("one", "two"):
        reply = keeps.invoke({"messages": [("user", text)]}, config(thread="2"))["messages"][1].content
    assert prompts[-1] == ["one", reply, "two"]


def test_agents_do_not_mix(model):
    agent = create_deltamem_agent(model)
    alone = agent.invoke({"messages": [HumanMessage("the rice", id="a1")]}, config("a"))
    agent.batch(
        [{"messages": [HumanMessage("the tank", id="b1")]}, {"messages": [HumanMessage("the door", id="c1")]}],
        [config("b"), config("c")],
    )
    assert [texts(model, name)[0] for name in "abc"] == ["the rice", "the tank", "the door"]
    assert model.opened_store.head("a") == alone["memory_version"]


def test_an_agent_must_be_named(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    with pytest.raises(MissingAgentId, match="agent_id"):
        agent.invoke({"messages": [("user", "hello")]}, {"configurable": {"thread_id": "otto"}})
    assert model.opened_store.agents() == []


def test_async_and_message_streams(model):
    agent = create_deltamem_agent(model, [look_up], tool_choice="look_up")

    async def run():
        await agent.ainvoke({"messages": [("user", "the rice")]}, config("a"))
        asked = {"messages": [("user", "the rice")]}
        return [m async for m, _ in agent.astream(asked, config("b"), stream_mode="messages")]

    streamed = asyncio.run(run())
    assert [r for r, _ in journal(model, "a")] == [r for r, _ in journal(model, "b")]
    assert any(getattr(m, "tool_call_chunks", None) or getattr(m, "tool_calls", None) for m in streamed)


def test_threads_of_one_agent_follow_its_head(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    for thread, text in (("1", "first"), ("2", "second"), ("1", "third")):
        result = agent.invoke({"messages": [("user", text)]}, config(thread=thread))
        assert result["memory_version"] == model.opened_store.head("otto")
    assert texts(model)[::2] == ["first", "second", "third"] and len(texts(model)) == 6


def test_going_back_reads_that_moment_and_leaves_the_head(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    for text in ("first", "second"):
        agent.invoke({"messages": [("user", text)]}, config(thread="1"))
    head = model.opened_store.head("otto")
    states = [s for s in agent.get_state_history(config(thread="1")) if not s.next]
    earlier = states[-1]
    assert earlier.values["messages"][-1].type == "ai" and len(earlier.values["messages"]) == 2
    fork = earlier.config["configurable"] | {"agent_id": "otto"}
    result = agent.invoke({"messages": [("user", "other")]}, {"configurable": fork})
    assert model.opened_store.head("otto") == head and result["memory_version"] != head
    assert texts(model, version=result["memory_version"])[::2] == ["first", "other"]
    again = agent.invoke({"messages": [("user", "more")]}, config(thread="1"))
    assert model.opened_store.head("otto") == head
    assert texts(model, version=again["memory_version"])[::2] == ["first", "other", "more"]


def test_a_writer_that_runs_again_writes_nothing(model):
    writer = DeltaMemWriter(model)
    result = ToolMessage("7", tool_call_id="c", id="t1")
    messages = [HumanMessage("the rice", id="h1"), AIMessage("noted", id="a1"), result]
    state = DeltaMemState(messages=messages, memory_version=None)
    first = writer(state, config(thread="1"))
    assert writer(state, config(thread="1")) == first and len(texts(model)) == 3
    model.remember([HumanMessage("from elsewhere", id="x")], "otto")
    assert writer(state, config(thread="1"))["memory_version"] == model.opened_store.head("otto")
    assert len(texts(model)) == 4


def test_progress_goes_to_its_sub_state(model):
    steps = ["back up the keys", "rotate the keys", "restart the workers"]
    before = model.load_state("otto")
    model.remember([open_task("secure atlas", steps), report_progress("secure atlas", steps, 1)], "otto")
    assert [s for _, s in journal(model)] == [("task_progress",)] * 2
    after = model.load_state("otto")
    for name, tensor in before.select("facts").tensors.items():
        assert tensor.equal(after.select("facts").tensors[name])
    told = "Last done: back up the keys. Current step: rotate the keys. Next step: restart the workers."
    assert told in texts(model)[1]
    with pytest.raises(ValueError, match="4 steps"):
        report_progress("secure atlas", steps, 4)
    with pytest.raises(ValueError, match="no steps"):
        open_task("secure atlas", [])


def prompts_of(model, monkeypatch):
    """The prompts that the engine gets, as contents."""
    found = []
    engine = type(model.engine.scheduler)
    original = engine.generate

    def spy(self, requests, *args, **kwargs):
        found.extend([m["content"] for m in request.conversation] for request in requests)
        return original(self, requests, *args, **kwargs)

    monkeypatch.setattr(engine, "generate", spy)
    return found


def test_what_came_before_the_turn_is_written_before_the_model_is_called(model):
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    said = [("user", "the rice is in room seven"), ("ai", "noted"), ("user", "where is the rice?")]
    reads = []
    for step in agent.stream({"messages": said}, config(thread="1"), stream_mode="updates"):
        reads += [update["memory_version"] for name, update in step.items() if name == "recall"]
    assert texts(model, version=reads[0]) == ["the rice is in room seven", "noted"]
    assert texts(model)[:3] == ["the rice is in room seven", "noted", "where is the rice?"] and len(texts(model)) == 4
    agent.invoke({"messages": [("user", "one")]}, config(thread="1"))
    assert len(texts(model)) == 6 and model.opened_store.agent("otto").versions == 3  # nothing is written twice


def test_a_system_message_in_the_state_is_seen_and_not_remembered(model, monkeypatch):
    prompts = prompts_of(model, monkeypatch)
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver())
    for text in ("one", "two"):
        agent.invoke({"messages": [("system", "be brief")] * (text == "one") + [("user", text)]}, config(thread="1"))
    assert prompts == [["be brief", "one"], ["be brief", "two"]]
    assert [role for role, _ in journal(model)] == ["user", "assistant"] * 2


def test_the_history_holds_no_result_without_its_call(model, monkeypatch):
    prompts = prompts_of(model, monkeypatch)
    model = Calling(adapter=model.adapter, device="cpu", store=model.store, max_tokens=6)
    agent = create_deltamem_agent(model, [look_up], history=2, checkpointer=InMemorySaver())
    agent.invoke({"messages": [("user", "look rice up")]}, config(thread="1"))
    agent.invoke({"messages": [("user", "and the tank?")]}, config(thread="1"))
    reply = prompts[-1][0]
    assert prompts[-1][1] == "and the tank?" and reply in texts(model) and "room seven" not in reply
    with pytest.raises(ValueError, match="history=-1"):
        create_deltamem_agent(model, history=-1)


@pytest.mark.parametrize("direct", [True, False])
def test_a_tool_that_returns_directly_ends_the_turn(model, direct):
    model = Calling(adapter=model.adapter, device="cpu", store=model.store, max_tokens=6)
    agent = create_deltamem_agent(model, [tool(look_up, return_direct=direct)], checkpointer=InMemorySaver())
    said = agent.invoke({"messages": [("user", "look rice up")]}, config(thread="1"))["messages"]
    assert said[-1].type == ("tool" if direct else "ai")
    assert [role for role, _ in journal(model)][:4] == ["user", "assistant", "tool", "tool"]
    assert len(journal(model)) == len(said)


def test_a_model_without_memory_is_refused():
    with pytest.raises(TypeError, match="FakeListChatModel, which has no memory"):
        create_deltamem_agent(FakeListChatModel(responses=["a"]))
