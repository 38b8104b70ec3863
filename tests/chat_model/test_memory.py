"""The memory of agents: written exactly once, never mixed, versioned, refused when it is of another adapter."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from tiny import build_adapter_folder

from deltamem_agents.chat_model.messages import from_entry, to_entries
from deltamem_agents.errors import FingerprintMismatch, HeadConflict, StateError, VersionNotFound

RICE = HumanMessage("The rice is in room seven.", id="m1")
DONE = AIMessage("I put the report into the tank.", id="m2")


def same(a, b):
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def counted_writes(model, monkeypatch):
    engine, calls = model.engine, []
    write = engine.write_traced
    monkeypatch.setattr(engine, "write_traced", lambda *a, **k: (calls.append(1), write(*a, **k))[1])
    return calls


def test_what_is_remembered_is_the_engines_write(model):
    version = model.remember([RICE, DONE], "otto")
    engine = model.engine
    messages = [{"role": "user", "content": RICE.content}, {"role": "assistant", "content": DONE.content}]
    assert same(model.load_state("otto"), engine.write(engine.new_state(), messages))
    assert model.opened_store.head("otto") == version
    assert same(model.load_state("nobody"), engine.new_state())


def test_the_same_messages_after_the_same_parent_are_written_once(model, monkeypatch):
    calls = counted_writes(model, monkeypatch)
    first = model.remember([RICE], "otto", parent=None)
    assert model.remember([RICE], "otto", parent=None) == first
    assert len(calls) == 1
    assert model.remember([RICE], "mila", parent=None) != first
    second = model.remember([RICE], "otto")
    assert second != first
    assert model.opened_store.version("otto", second).parent == first


def test_versions_can_be_read_later(model):
    first = model.remember([RICE], "otto")
    then = model.load_state("otto")
    model.remember([DONE], "otto")
    assert same(model.load_state("otto", first), then)
    assert not same(model.load_state("otto"), then)


def test_a_side_branch_leaves_the_head(model):
    first = model.remember([RICE], "otto")
    branch = model.remember([DONE], "otto", parent=first, move_head=False)
    assert model.opened_store.head("otto") == first
    assert not same(model.load_state("otto", branch), model.load_state("otto", first))


def test_a_given_parent_that_is_no_longer_the_head_is_refused(model):
    first = model.remember([RICE], "otto")
    model.remember([DONE], "otto", parent=first)
    with pytest.raises(HeadConflict):
        model.remember([HumanMessage("The door is blue.")], "otto", parent=first)


def test_a_write_that_lost_the_race_is_repeated_on_the_new_head(model, monkeypatch):
    model.remember([RICE], "otto")
    store, calls = model.opened_store, []
    commit = store.commit

    def late(agent_id, **options):
        calls.append(1)
        if len(calls) == 1:
            monkeypatch.setattr(store, "commit", commit)
            model.remember([HumanMessage("The door is blue.")], agent_id)
        return commit(agent_id, **options)

    monkeypatch.setattr(store, "commit", late)
    model.remember([DONE], "otto")
    expected = model.engine.new_state()
    for text, role in (
        ("The rice is in room seven.", "user"),
        ("The door is blue.", "user"),
        (DONE.content, "assistant"),
    ):
        expected = model.engine.write(expected, [{"role": role, "content": text}])
    assert same(model.load_state("otto"), expected)


def test_threads_write_all_and_mix_nothing(model):
    agents = ["a", "b", "c"]
    with ThreadPoolExecutor(6) as pool:
        told = [HumanMessage(f"The tank {i % 3}", id=str(i)) for i in range(12)]
        list(pool.map(lambda i: model.remember([told[i]], agents[i % 3]), range(12)))
    for n, agent in enumerate(agents):
        message = {"role": "user", "content": f"The tank {n}"}
        assert same(model.load_state(agent), model.engine.write(model.engine.new_state(), [message] * 4))


def test_the_version_of_another_agent_is_not_found(model):
    version = model.remember([RICE], "otto")
    with pytest.raises(VersionNotFound, match="'mila'"):
        model.load_state("mila", version)
    with pytest.raises(VersionNotFound):
        model.remember([DONE], "mila", parent=version, move_head=False)
    with pytest.raises(VersionNotFound):
        model.load_state("otto", "no-such-version")


def test_roles_overrides_and_routes_choose_the_sub_state(model):
    def touched(message, **options):
        version = model.remember([message], "otto", parent=None, move_head=False, **options)
        state, empty = model.load_state("otto", version), model.engine.new_state()
        return [name for name in model.engine.sub_states if not same(state.select(name), empty.select(name))]

    assert touched(RICE) == touched(SystemMessage("x")) == touched(ToolMessage("x", tool_call_id="1")) == ["facts"]
    assert touched(DONE) == ["task_progress"]
    override = HumanMessage("plan", additional_kwargs={"sub_state": "task_progress"})
    assert touched(override) == ["task_progress"]
    assert touched(override, routes=[["facts", "task_progress"]]) == ["facts", "task_progress"]
    with pytest.raises(StateError, match="mood"):
        touched(HumanMessage("plan", additional_kwargs={"sub_state": "mood"}))
    with pytest.raises(ValueError, match="2 routes for 1"):
        touched(RICE, routes=[["facts"], ["facts"]])


def test_summaries_and_empty_messages_are_not_remembered(model):
    first = model.remember([RICE], "otto")
    summary = HumanMessage("Summary.", additional_kwargs={"lc_source": "summarization"})
    assert model.remember([summary, AIMessage("")], "otto") == first
    assert model.remember([], "otto") == first


def test_forgetting(model):
    model.remember([RICE, DONE], "otto")
    before, empty = model.load_state("otto"), model.engine.new_state()
    version = model.reset("otto", "facts")
    after = model.load_state("otto")
    assert model.opened_store.head("otto") == version
    assert same(after.select("facts"), empty.select("facts"))
    assert same(after.select("task_progress"), before.select("task_progress"))
    model.reset("otto")
    assert same(model.load_state("otto"), empty)
    model.remember([RICE], "otto")
    assert not same(model.load_state("otto"), empty)
    with pytest.raises(StateError, match="mood"):
        model.reset("otto", "mood")


def test_memory_of_another_adapter_is_refused(model, make_model, tmp_path):
    version = model.remember([RICE], "otto")
    other = make_model(adapter=str(build_adapter_folder(tmp_path / "other", seed=1)), agent_id="otto")
    for use in (
        lambda: other.load_state("otto"),
        lambda: other.invoke("Where?"),
        lambda: other.remember([DONE], "otto"),
        lambda: other.reset("otto", "facts"),
    ):
        with pytest.raises(FingerprintMismatch, match=r"load the adapter"):
            use()
    assert model.opened_store.head("otto") == version
    other.reset("otto")
    other.remember([DONE], "otto")
    with pytest.raises(FingerprintMismatch):
        model.invoke("Where?")


def test_the_journal_holds_all_that_is_needed_to_write_again(model):
    call = {"name": "look_up", "args": {"item": "rice"}, "id": "c1"}
    messages = [RICE, AIMessage("", tool_calls=[call]), ToolMessage("seven", tool_call_id="c1", name="look_up")]
    version = model.remember(messages, "otto")
    again = [from_entry(entry) for entry in to_entries(messages, model.engine)]
    assert again[1]["tool_calls"] == [{"id": "c1", "name": "look_up", "arguments": {"item": "rice"}}]
    assert again[2] == {"role": "tool", "content": "seven", "tool_call_id": "c1", "name": "look_up"}
    written = model.engine.write(model.engine.new_state(), again)
    assert same(model.load_state("otto", version), written)


@pytest.mark.asyncio
async def test_aremember(model):
    version = await model.aremember([RICE], "otto", parent=None)
    assert version == model.remember([RICE], "otto", parent=None)


def test_a_side_branch_can_become_the_head(model, monkeypatch):
    branch = model.remember([RICE], "otto", parent=None, move_head=False)
    assert model.opened_store.head("otto") is None
    calls = counted_writes(model, monkeypatch)
    assert model.remember([RICE], "otto", parent=None) == branch
    assert model.opened_store.head("otto") == branch and not calls


def test_tenants_share_a_file_and_nothing_else(make_model):
    one, two = make_model(agent_id="otto"), make_model(agent_id="otto", tenant="other")
    one.remember([RICE], "otto")
    assert two.opened_store.agents() == [] and same(two.load_state("otto"), two.engine.new_state())
    version = two.remember([RICE], "otto")
    assert version != one.opened_store.head("otto") and same(one.load_state("otto"), two.load_state("otto"))
    with pytest.raises(VersionNotFound):
        two.load_state("otto", one.opened_store.head("otto"))
