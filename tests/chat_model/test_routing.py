"""Where messages are written: said by the message, by a router, or by the role; and what goes nowhere."""

from datetime import timedelta

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from tiny import build_adapter_folder

from deltamem_agents.chat_model.messages import to_entries
from deltamem_agents.chat_model.replay import forget, migrate, repair, replay
from deltamem_agents.errors import StateError
from deltamem_agents.store import Filter

SAID = HumanMessage("The rice is in room seven.", id="m1")
DONE = AIMessage("I put the report into the tank.", id="m2")
ASIDE = HumanMessage("The door is blue.", id="m3", additional_kwargs={"sub_state": "nowhere"})


def same(a, b):
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def routed(model, message, router=None, routes=None):
    return to_entries([message], model.engine, routes, router)[0].sub_states


@pytest.fixture
def one_state(make_model, tmp_path):
    """A model whose memory has a single sub-state."""
    folder = build_adapter_folder(tmp_path / "one", num_state_heads=2, rank=4, sub_states={"shared": (0, 1)})
    return make_model(adapter=str(folder), agent_id="otto")


def test_without_a_router_roles_choose(model):
    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "c"}])
    told = [SAID, SystemMessage("Be kind."), ToolMessage("seven", tool_call_id="c")]
    assert [routed(model, m) for m in told] == [("facts",)] * 3
    assert [routed(model, m) for m in (DONE, call)] == [("task_progress",)] * 2


def test_a_router_is_asked_for_each_message(model):
    chosen = {"m1": "task_progress", "m2": ["facts", "task_progress", "facts"], "m4": "nowhere", "m5": ()}
    found = [
        routed(model, HumanMessage("x", id=i), lambda message: chosen.get(message.id)) for i in ("m1", "m2", "m4", "m5")
    ]
    assert found == [("task_progress",), ("facts", "task_progress"), (), ()]
    assert routed(model, HumanMessage("x", id="m9"), lambda message: chosen.get(message.id)) == ("facts",)
    assert routed(model, DONE, lambda message: None) == ("task_progress",)


def test_the_message_overrides_the_router_and_routes_override_both(model):
    def never(message):
        raise AssertionError("the message has said it already")

    planned = HumanMessage("x", additional_kwargs={"sub_state": "task_progress"})
    assert routed(model, planned, never) == ("task_progress",)
    assert routed(model, ASIDE, never) == ()
    assert routed(model, HumanMessage("x", additional_kwargs={"sub_state": []}), never) == ()
    assert routed(model, planned, never, [["facts"]]) == ("facts",)


@pytest.mark.parametrize("named", ["mood", ["facts", "mood"], ["facts", "nowhere"], ""])
def test_unknown_names_are_refused_with_the_known_ones(model, named):
    for message, router in (
        (SAID, lambda message: named),
        (HumanMessage("x", additional_kwargs={"sub_state": named}), None),
    ):
        with pytest.raises(StateError, match=r"\['facts', 'task_progress'\]"):
            model.memories.remember([message], "otto", router=router)
    assert model.opened_store.head("otto") is None


def test_what_a_router_says_is_what_is_written(model):
    version = model.memories.remember([SAID, DONE], "otto", router=lambda message: "task_progress")
    messages = [{"role": "user", "content": SAID.content}, {"role": "assistant", "content": DONE.content}]
    expected = model.engine.write(model.engine.new_state(), messages, [["task_progress"]] * 2)
    assert same(model.load_state("otto", version), expected)
    assert same(expected.select("facts"), model.engine.new_state().select("facts"))


def test_a_single_sub_state_takes_all_but_what_goes_nowhere(one_state):
    assert routed(one_state, SAID, lambda message: "facts") == ("shared",)
    assert routed(one_state, HumanMessage("x", additional_kwargs={"sub_state": "mood"})) == ("shared",)
    assert routed(one_state, ASIDE) == routed(one_state, SAID, lambda message: []) == ()
    empty = one_state.engine.new_state()
    assert same(one_state.load_state("otto", one_state.remember([ASIDE], "otto")), empty)
    assert not same(one_state.load_state("otto", one_state.remember([SAID], "otto")), empty)


def test_what_goes_nowhere_is_in_the_journal_alone(model):
    model.remember([ASIDE], "otto")
    assert same(model.load_state("otto"), model.engine.new_state())
    model.remember([SAID], "otto")
    before = model.load_state("otto")
    model.remember([ASIDE, AIMessage("It is.", additional_kwargs={"sub_state": "nowhere"})], "otto")
    assert same(model.load_state("otto"), before)
    journal = model.opened_store.journal("otto")
    assert [record.entry.sub_states for record in journal] == [(), ("facts",), (), ()]
    assert [(journal[i].entry.tokens, journal[i].entry.gate, journal[i].entry.moved) for i in (0, 2)] == [
        (0, {}, {})
    ] * 2
    assert [hit.record.entry.content for hit in model.opened_store.search("otto", "blue door")] == [ASIDE.content] * 2
    model.remember([DONE], "otto")
    assert not same(model.load_state("otto"), before)


def nowhere_among_others(model):
    for messages in ([ASIDE], [SAID, ASIDE], [DONE], [ASIDE]):
        model.remember(messages, "otto")
    return model.memories, model.opened_store


def test_what_goes_nowhere_is_verified_and_replayed(model):
    memory, store = nowhere_among_others(model)
    assert list(store.verify()) == [] and list(replay(memory, "otto")) == []


def test_pruned_versions_of_what_goes_nowhere_come_back(model):
    memory, store = nowhere_among_others(model)
    versions = [version.version_id for version in store.history("otto")]
    states = [memory.load("otto", version) for version in versions]
    assert store.prune(keep_every=50) > 0
    assert all(same(memory.load("otto", v), state) for v, state in zip(versions, states, strict=True))
    branch = model.remember([ASIDE], "otto", parent=versions[1], move_head=False)  # after a version without bytes
    assert same(memory.load("otto", branch), states[1])
    for version in versions:
        if store.version("otto", version).pruned:
            memory.bring_back("otto", version)
    assert list(store.verify()) == [] and list(replay(memory, "otto")) == []
    assert repair(memory, "otto", []) == []


def test_what_goes_nowhere_is_forgotten_like_the_rest(model):
    memory, store = nowhere_among_others(model)
    state = model.load_state("otto")
    assert forget(memory, "otto", Filter(ids=["m3"])).entries == 3
    assert [record.entry.message_id for record in store.journal("otto")] == ["m1", "m2"]
    assert same(model.load_state("otto"), state)
    assert forget(memory, "otto", Filter(ids=["m1", "m2"])).entries == 2
    assert store.head("otto") is None and store.collect(older_than=timedelta(0)) == 0


def test_what_goes_nowhere_stays_there_with_another_adapter(model, one_state):
    nowhere_among_others(model)
    migrate(one_state.memories, "otto")
    journal = one_state.opened_store.journal("otto")
    assert [r.entry.sub_states for r in journal] == [(), ("shared",), (), ("shared",), ()]
    assert list(replay(one_state.memories, "otto")) == []


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_mean_writes_leave_out_what_goes_nowhere(make_model, tmp_path, granularity):
    folder = build_adapter_folder(tmp_path / granularity, memory_write_granularity=granularity)
    model = make_model(adapter=str(folder), agent_id="otto")
    model.remember([SAID], "otto")
    before = model.load_state("otto")
    model.remember([ASIDE], "otto")
    assert same(model.load_state("otto"), before)
