"""DeltaMemMiddleware in create_agent: what create_deltamem_agent does, and what other middleware beside it may do."""

import asyncio
import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, SummarizationMiddleware
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command
from pydantic import Field

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.errors import MissingAgentId
from deltamem_agents.graph import DeltaMemWriter, create_deltamem_agent, middleware
from deltamem_agents.graph.middleware import DeltaMemMiddleware

TURNS = ("look up the rice", "where is Otto?", "look up the tank")
looked_up = []


def look_up(item: str) -> str:
    """Look an item up."""
    looked_up.append(item)
    return f"{item} is in room seven"


class Scripted(DeltaMemChatModel):
    """Calls a tool twice, at once, when it is told to look up, and says what it has seen and read."""

    calls: list = Field(default_factory=list, exclude=True)

    async def _agenerate(self, *args, **kwargs):
        return self._generate(*args, **kwargs)

    def _generate(self, messages, *args, **kwargs):
        self.calls.append(([m.content for m in messages], kwargs.get("memory_version"), kwargs.get("agent_id")))
        last, reply = messages[-1], AIMessage(f"said after {len(messages)} messages")
        if isinstance(last, HumanMessage) and last.content.startswith("look up"):
            item = last.content.split()[-1]
            calls = [{"name": "look_up", "args": {"item": i}, "id": f"call {i}"} for i in (item, "door")]
            reply = AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=reply)])


@pytest.fixture
def scripted(tiny_adapter, tmp_path):
    def make(name="memory"):
        store = str(tmp_path / f"{name}.db")
        return Scripted(adapter=str(tiny_adapter), device="cpu", store=store)

    looked_up.clear()
    return make


def config(thread="t", agent="otto"):
    return {"configurable": {"agent_id": agent, "thread_id": thread}}


def with_memory(model, *beside, checkpointer=None, history=0, first=True):
    memory = DeltaMemMiddleware(model, history=history)
    stack = [memory, *beside] if first else [*beside, memory]
    return create_agent(model, [look_up], middleware=stack, checkpointer=checkpointer or InMemorySaver())


def journal(model, version=None):
    return [(r.entry.role, r.entry.content, r.entry.sub_states) for r in model.opened_store.journal("otto", version)]


def texts(model, role="user"):
    return [content for r, content, _ in journal(model) if r == role]


def assert_same_memory(one, other):
    assert journal(one) == journal(other) and one.opened_store.agent("otto").versions == 5
    assert other.opened_store.agent("otto").versions == 5
    left, right = one.load_state("otto").tensors, other.load_state("otto").tensors
    assert left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)
    assert [seen for seen, *_ in one.calls] == [seen for seen, *_ in other.calls]


def run(agent):
    for text in TURNS:
        result = agent.invoke({"messages": [("user", text)]}, config())
    return result


def test_its_memory_is_that_of_the_prebuilt_agent(scripted):
    one, other = scripted("one"), scripted("other")
    result = run(with_memory(one))
    run(create_deltamem_agent(other, [look_up], checkpointer=InMemorySaver()))
    assert_same_memory(one, other)
    assert set(result) == {"messages"}


def test_each_call_reads_the_version_that_was_just_written(scripted):
    model = scripted()
    agent = with_memory(model)
    run(agent)
    versions = [v.version_id for v in reversed(model.opened_store.history("otto"))]
    assert [version for _, version, _ in model.calls] == [None, *versions[:4]]
    assert {agent_id for *_, agent_id in model.calls} == {"otto"}
    assert agent.get_state(config()).values["memory_version"] == versions[-1]


def test_async_is_the_same(scripted, tmp_path):
    one, other = scripted("one"), scripted("other")
    run(with_memory(one))

    async def turns():
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
            agent = with_memory(other, checkpointer=saver)
            for text in TURNS:
                await agent.ainvoke({"messages": [("user", text)]}, config())

    asyncio.run(turns())
    assert_same_memory(one, other)


def test_a_restart_between_turns_changes_nothing(scripted, tmp_path):
    one, other = scripted("one"), scripted("other")
    run(with_memory(one))
    for text in TURNS:
        with SqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
            agent = with_memory(other.model_copy(), checkpointer=saver)
            agent.invoke({"messages": [("user", text)]}, config())
    assert_same_memory(one, other)


def test_the_history_that_was_asked_for_reaches_the_engine(model, monkeypatch):
    prompts, scheduler = [], type(model.engine.scheduler)
    generate = scheduler.generate

    def spy(self, requests, *args, **kwargs):
        prompts.extend([m["content"] for m in request.conversation] for request in requests)
        return generate(self, requests, *args, **kwargs)

    monkeypatch.setattr(scheduler, "generate", spy)
    agent = create_agent(model, middleware=[DeltaMemMiddleware(model, history=2)], checkpointer=InMemorySaver())
    for text in ("the rice", "the tank"):
        reply = agent.invoke({"messages": [("user", text)]}, config())["messages"][1].text
    assert prompts == [["the rice"], ["the rice", reply, "the tank"]]


def test_the_prompt_holds_this_turn_and_the_history_that_was_asked_for(scripted):
    model = scripted()
    run(with_memory(model, history=2))
    prompts = [seen for seen, *_ in model.calls]
    assert prompts[0] == ["look up the rice"] and len(prompts[1]) == 4
    assert prompts[2] == ["said after 4 messages", "where is Otto?"]  # no result without the call that it answers
    with pytest.raises(ValueError, match="history=-1"):
        DeltaMemMiddleware(model, history=-1)


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_a_turn_that_waits_for_a_person_is_written_once(scripted, tmp_path, decision):
    model = scripted()
    path = str(tmp_path / "threads.db")
    ask = HumanInTheLoopMiddleware(interrupt_on={"look_up": True})
    with SqliteSaver.from_conn_string(path) as saver:
        result = with_memory(model, ask, checkpointer=saver).invoke({"messages": [("user", TURNS[0])]}, config())
        assert "__interrupt__" in result and model.opened_store.head("otto") is None
    resume = Command(resume={"decisions": [{"type": decision}] * 2})
    with SqliteSaver.from_conn_string(path) as saver:
        with_memory(model, ask, checkpointer=saver).invoke(resume, config())
    assert [role for role, *_ in journal(model)] == ["user", "assistant", "tool", "tool", "assistant"]
    assert len(looked_up) == (2 if decision == "approve" else 0)
    assert model.opened_store.agent("otto").versions == 2


async def test_async_turns_wait_for_a_person_and_are_streamed(scripted, tmp_path):
    model = scripted()
    ask = HumanInTheLoopMiddleware(interrupt_on={"look_up": True})
    resume = Command(resume={"decisions": [{"type": "approve"}] * 2})
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
        agent = with_memory(model, ask, checkpointer=saver)
        await agent.ainvoke({"messages": [("user", TURNS[0])]}, config())
        assert model.opened_store.head("otto") is None
        steps = [name async for step in agent.astream(resume, config(), stream_mode="updates") for name in step]
    assert [name for name in steps if name.startswith("DeltaMem")] == [
        "DeltaMemMiddleware.before_model",
        "DeltaMemMiddleware.after_agent",
    ]
    assert len(journal(model)) == 5 and model.opened_store.agent("otto").versions == 2


@pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
def test_what_a_summary_replaces_is_written_and_the_summary_is_not(scripted, first):
    model, plain = scripted(), scripted("plain")
    summary = SummarizationMiddleware(
        FakeListChatModel(responses=["SUM"]), trigger=("messages", 3), keep=("messages", 1)
    )
    agent = with_memory(model, summary, first=first)
    result = run(agent)
    run(with_memory(plain))
    assert "SUM" in result["messages"][0].content and len(result["messages"]) < 6
    left, right = ([(role, sub) for role, _, sub in journal(one)] for one in (model, plain))
    assert left == right and texts(model) == list(TURNS)
    assert not any("SUM" in content for _, content, _ in journal(model))


def test_the_model_itself_may_write_the_summaries(scripted):
    model = scripted()
    summary = SummarizationMiddleware(model, trigger=("messages", 4), keep=("messages", 1))
    run(with_memory(model, summary))
    assert texts(model) == list(TURNS) and len(journal(model)) == 12


def test_a_message_that_was_deleted_is_not_written(scripted):
    model = scripted()
    agent = with_memory(model, HumanInTheLoopMiddleware(interrupt_on={"look_up": True}))
    agent.invoke({"messages": [HumanMessage("look up the rice", id="h")]}, config())
    agent.update_state(config(), {"messages": [RemoveMessage(id="h")]})
    agent.invoke(Command(resume={"decisions": [{"type": "approve"}] * 2}), config())
    assert [role for role, *_ in journal(model)] == ["assistant", "tool", "tool", "assistant"]


def test_a_model_call_that_fails_is_resumed_and_written_once(scripted):
    class Fails(AgentMiddleware):
        left = 1

        def wrap_model_call(self, request, handler):
            if len(request.messages) > 1 and self.left:
                self.left -= 1
                raise OSError("out of order")
            return handler(request)

    model = scripted()
    agent = with_memory(model, Fails())
    with pytest.raises(OSError, match="out of order"):
        agent.invoke({"messages": [("user", TURNS[0])]}, config())
    assert [role for role, *_ in journal(model)] == ["user", "assistant", "tool", "tool"]
    agent.invoke(None, config())
    assert [role for role, *_ in journal(model)] == ["user", "assistant", "tool", "tool", "assistant"]
    assert len(looked_up) == 2


def test_a_write_that_is_repeated_writes_nothing(scripted, monkeypatch):
    model, original, failed = scripted(), DeltaMemWriter.__call__, []

    def fails_after_the_commit(self, state, config):
        result = original(self, state, config)
        if len(failed) < 2 and result["memory_version"] not in failed:
            failed.append(result["memory_version"])
            raise OSError("lost")
        return result

    monkeypatch.setattr(DeltaMemWriter, "__call__", fails_after_the_commit)
    agent = with_memory(model)
    for start in ({"messages": [("user", TURNS[0])]}, None):
        with pytest.raises(OSError, match="lost"):
            agent.invoke(start, config())
    agent.invoke(None, config())
    assert [role for role, *_ in journal(model)] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [v.version_id for v in reversed(model.opened_store.history("otto"))] == failed


def test_going_back_reads_that_moment_and_leaves_the_head(scripted):
    model = scripted()
    agent = with_memory(model)
    run(agent)
    head = model.opened_store.head("otto")
    done = [s for s in agent.get_state_history(config()) if not s.next]
    earlier = done[-1]
    assert earlier.values["messages"][0].content == TURNS[0] and len(earlier.values["messages"]) == 5
    fork = {"configurable": earlier.config["configurable"] | {"agent_id": "otto"}}
    agent.invoke({"messages": [("user", "another way")]}, fork)
    assert model.calls[-1][1] == earlier.values["memory_version"]
    assert model.opened_store.head("otto") == head
    branch = agent.get_state(config()).values["memory_version"]
    assert [c for r, c, _ in journal(model, branch) if r == "user"] == [TURNS[0], "another way"]


def test_threads_share_a_memory_and_agents_do_not(scripted):
    model = scripted()
    agent = with_memory(model)
    for thread, name, text in (
        ("1", "otto", "one"),
        ("2", "otto", "two"),
        ("3", "mila", "three"),
        ("1", "otto", "four"),
    ):
        agent.invoke({"messages": [("user", text)]}, config(thread, name))
    assert texts(model) == ["one", "two", "four"]
    after_two = [v.version_id for v in model.opened_store.history("otto")][1]
    assert model.calls[-1][1] == after_two  # thread 1 reads what thread 2 wrote
    assert len(list(model.opened_store.journal("mila"))) == 2
    with pytest.raises(MissingAgentId, match="agent_id"):
        agent.invoke({"messages": [("user", "hello")]}, {"configurable": {"thread_id": "4"}})


def test_what_a_turn_begins_with_is_written_at_its_end(scripted):
    class Adds(AgentMiddleware):
        def before_agent(self, state, runtime):
            return {"messages": [HumanMessage("it is noon")]}

    model = scripted()
    agent = with_memory(model, Adds())
    agent.invoke({"messages": [("user", "one"), ("ai", "two"), ("user", "three")]}, config())
    assert [content for _, content, _ in journal(model)][:4] == ["one", "two", "three", "it is noon"]
    first, second = reversed(model.opened_store.history("otto"))
    assert [len(model.opened_store.journal("otto", v.version_id)) for v in (first, second)] == [2, 5]
    assert model.calls == [(["it is noon"], first.version_id, "otto")]  # what came before the turn was written


def test_the_middlewares_model_may_name_the_agent(scripted):
    model = scripted()
    named = model.model_copy(update={"agent_id": "otto"})
    agent = create_agent(model, [look_up], middleware=[DeltaMemMiddleware(named)])
    agent.invoke({"messages": [("user", TURNS[0])]})
    assert len(journal(model)) == 5 and {agent_id for *_, agent_id in model.calls} == {"otto"}


def test_the_context_may_name_the_agent(scripted):
    class Context(TypedDict):
        agent_id: str

    model = scripted()
    agent = create_agent(model, [look_up], middleware=[DeltaMemMiddleware(model)], context_schema=Context)
    asyncio.run(agent.ainvoke({"messages": [("user", TURNS[0])]}, context={"agent_id": "otto"}))
    assert len(journal(model)) == 5 and {agent_id for *_, agent_id in model.calls} == {"otto"}


def test_without_langchain_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain.agents.middleware", None)
    spec = spec_from_file_location("deltamem_agents.graph.without", middleware.__file__)
    with pytest.raises(ImportError, match=r"pip install 'deltamem-agents\[langchain\]'"):
        spec.loader.exec_module(module_from_spec(spec))


def test_a_model_without_memory_is_refused(scripted):
    other = create_agent(FakeListChatModel(responses=["hello"]), middleware=[DeltaMemMiddleware(scripted())])
    with pytest.raises(TypeError, match="FakeListChatModel, which has no memory"):
        other.invoke({"messages": [("user", "hello")]}, config())
