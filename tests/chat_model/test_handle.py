"""One agent's memory in the hand: what it writes, finds, forgets and goes back to, with and without an event loop."""

import asyncio
import threading
from datetime import timedelta

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from deltamem_agents.chat_model.handle import AgentHandle
from deltamem_agents.engine.score import recall_scores
from deltamem_agents.errors import AgentExists, AgentNotFound, StateError, StoreError, VersionNotFound
from deltamem_agents.store import Filter

RICE = "The rice is in room seven."
DOOR = "The door is blue."


def same(a, b):
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.fixture
def alice(make_model):
    return AgentHandle(make_model(), "alice")


def journal(handle):
    return [record.entry for record in handle.model.opened_store.journal(handle.agent_id)]


def test_a_new_agent_has_an_empty_memory(alice):
    assert alice.head is None and alice.history() == [] and alice.search("rice") == []
    assert same(alice.state(), alice.model.engine.new_state())
    assert alice.recall_scores("Where is the rice?", ["seven", "nine"]) == [0.0, 0.0]
    for use in (alice.reset, alice.snapshot):
        with pytest.raises(StateError, match="'alice'"):
            use()
    for use in (lambda: alice.forget(text="rice"), lambda: alice.fork("bob")):
        with pytest.raises((AgentNotFound, VersionNotFound)):
            use()
    assert "alice" in repr(alice)


def test_texts_and_messages_are_written(alice):
    first = alice.write(RICE)
    assert alice.head == first
    told = [DOOR, AIMessage("Done."), ToolMessage("nine", tool_call_id="c")]
    second = alice.write(told)
    assert [version.version_id for version in alice.history()] == [second, first]
    assert [version.version_id for version in alice.history(1)] == [second]
    assert [(entry.role, entry.content) for entry in journal(alice)] == [
        ("user", RICE),
        ("user", DOOR),
        ("assistant", "Done."),
        ("tool", "nine"),
    ]
    assert alice.write(HumanMessage("One alone.")) == alice.head != second
    assert alice.write([]) == alice.write("") == alice.head
    assert same(alice.state(first), alice.model.load_state("alice", first)) and not same(
        alice.state(first), alice.state()
    )


def test_sub_state_and_source_are_said_for_all_of_them(alice):
    message = HumanMessage(DOOR, additional_kwargs={"sub_state": "facts", "source": "anna", "kept": 1})
    alice.write([message, RICE], sub_state="task_progress", source="bert")
    alice.write(message)
    alice.write(RICE, sub_state=["facts", "task_progress"])
    alice.write(RICE, sub_state="nowhere")
    assert [(entry.sub_states, entry.source) for entry in journal(alice)] == [
        (("task_progress",), "bert"),
        (("task_progress",), "bert"),
        (("facts",), "anna"),
        (("facts", "task_progress"), None),
        ((), None),
    ]
    assert message.additional_kwargs == {"sub_state": "facts", "source": "anna", "kept": 1}
    with pytest.raises(StateError, match="mood"):
        alice.write(RICE, sub_state="mood")


def test_scores_are_those_of_the_engine(alice):
    alice.write(RICE)
    answers = ["seven", "nine", "blue"]
    expected = recall_scores(alice.model.engine, "Where is the rice?", answers, alice.state())
    assert alice.recall_scores("Where is the rice?", answers) == expected != [0.0] * 3
    assert alice.recall_scores([HumanMessage("Where is the rice?")], answers) == expected


def test_search_finds_what_was_written(alice):
    alice.write([RICE, DOOR], source="anna")
    AgentHandle(alice.model, "bob").write("Bob's rice is hidden.")
    [found] = alice.search("rice", k=1)
    assert found.page_content == RICE and found.metadata["source"] == "anna"


def test_reset_empties_a_sub_state(alice):
    alice.write([RICE, AIMessage("Done.")])
    before, empty = alice.state(), alice.model.engine.new_state()
    assert alice.reset("facts") == alice.head
    assert same(alice.state().select("facts"), empty.select("facts"))
    assert same(alice.state().select("task_progress"), before.select("task_progress"))
    alice.reset()
    assert same(alice.state(), empty)


def test_forget_takes_a_filter_or_its_fields(alice):
    alice.write(RICE, source="anna")
    alice.write(DOOR, source="bert")
    alone = AgentHandle(alice.model, "bob")
    alone.write(DOOR)
    assert alice.forget(source="anna").entries == 1
    assert same(alice.state(), alone.state())
    assert alice.forget(Filter(text="door")).entries == 1
    assert alice.head is None
    with pytest.raises(StoreError, match="which entries"):
        alice.forget()
    with pytest.raises(ValueError, match="source"):
        alice.forget(Filter(text="door"), source="anna")


def test_forks_go_their_own_ways(alice):
    first = alice.write(RICE)
    alice.write(DOOR)
    then, now = alice.fork("then", first), alice.fork("now")
    assert isinstance(then, AgentHandle) and then.agent_id == "then" and then.model is alice.model
    assert same(then.state(), alice.state(first)) and same(now.state(), alice.state())
    then.write("More.")
    assert len(then.history()) == len(alice.history()) == 2 and not same(then.state(), alice.state())
    with pytest.raises(AgentExists):
        alice.fork("now")


def test_a_pruned_version_can_be_forked(alice):
    versions = [alice.write(f"{RICE} {i}") for i in range(4)]
    expected = alice.state(versions[2])
    assert alice.model.opened_store.prune(keep_every=50) > 0
    assert alice.model.opened_store.version("alice", versions[2]).pruned
    assert same(alice.fork("bob", versions[2]).state(), expected)


def test_snapshots_outlive_what_is_collected(alice):
    alice.write(RICE)
    kept = alice.snapshot("before the move")
    assert kept == alice.head and alice.history()[0].pin == "before the move"
    assert alice.snapshot() == kept and alice.history()[0].pin == "before the move"
    state = alice.state()
    newest = alice.write(DOOR)
    assert alice.snapshot() == newest and alice.history()[0].pin.startswith("snapshot of 20")
    alice.model.opened_store.pin("alice", newest, None)
    alice.rollback(kept)
    assert alice.head == kept and same(alice.state(), state)
    assert alice.model.opened_store.collect("alice", older_than=timedelta(0)) == 1
    assert same(alice.state(kept), state)
    with pytest.raises(VersionNotFound):
        alice.rollback("no-such-version")


@pytest.mark.asyncio
async def test_every_method_has_an_async_twin(alice):
    first = await alice.awrite(RICE, source="anna")
    assert await alice.ahead() == alice.head == first
    second = await alice.awrite([DOOR], sub_state="facts")
    assert await alice.ahistory(1) == alice.history(1)
    assert await alice.asearch("rice", k=1) == alice.search("rice", k=1)
    question, answers = "Where is the rice?", ["seven", "nine"]
    assert await alice.arecall_scores(question, answers) == alice.recall_scores(question, answers)
    assert same(await alice.astate(first), alice.state(first))
    assert await alice.asnapshot("x") == second
    assert (await alice.afork("bob", first)).history()[0].depth == 0
    await alice.areset("facts")
    await alice.arollback(second)
    assert alice.head == second
    assert (await alice.aforget(source="anna")).entries == 1
    public = {name for name in dir(AgentHandle) if not name.startswith("_")}
    plain = {"write", "recall_scores", "search", "reset", "history", "forget", "fork", "snapshot", "rollback", "state"}
    assert public == plain | {"head"} | {f"a{name}" for name in plain | {"head"}}


@pytest.mark.asyncio
async def test_the_loop_goes_on_meanwhile(alice, monkeypatch):
    store, go = alice.model.opened_store, threading.Event()
    monkeypatch.setattr(store, "search", lambda *a, **k: [] if go.wait(10) else pytest.fail("the loop was blocked"))
    search = asyncio.ensure_future(alice.asearch("rice"))
    await asyncio.sleep(0.01)
    go.set()
    assert await search == []
