"""States are the fold of the journal: rebuilding, verifying, repairing, forgetting, moving to another adapter."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from tiny import SENTENCES, build_adapter_folder

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.chat_model.replay import forget, migrate, repair, replay
from deltamem_agents.engine import load_engine
from deltamem_agents.errors import CorruptState, FingerprintMismatch, JournalNotKept, StateError, StoreError
from deltamem_agents.store import Filter, open_store


def said(number: int) -> HumanMessage:
    return HumanMessage(SENTENCES[number % len(SENTENCES)], id=f"m{number}", name="mila" if number % 3 else None)


def same(a, b) -> bool:
    return all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())


def tell(model, numbers, agent="otto"):
    for number in numbers:
        model.remember([said(number), AIMessage(f"step {number}", id=f"a{number}")], agent)


@pytest.fixture(scope="module")
def other_adapter(tmp_path_factory) -> Path:
    """Another adapter, of three sub-states' worth of other heads, on the same backbone as the tiny one."""
    return build_adapter_folder(
        tmp_path_factory.mktemp("other"), rank=4, num_state_heads=2, sub_states={"shared": (0, 1)}
    )


def test_entries_say_what_their_writing_did(model):
    model.remember([said(1)], "otto", thread_id="t", run_id="r")
    (record,) = model.opened_store.journal("otto")
    entry = record.entry
    state = model.load_state("otto")
    distance = sum(float(t.double().square().sum()) for t in state.select("facts").tensors.values()) ** 0.5
    assert entry.tokens > 5 and (entry.thread_id, entry.run_id) == ("t", "r")
    assert entry.moved == {"facts": pytest.approx(distance, rel=1e-5)} and 0 < entry.gate["facts"] < 1


def test_a_pruned_version_is_computed_again(model):
    tell(model, range(6))
    store, memory = model.opened_store, model.memories
    versions = [v.version_id for v in reversed(store.history("otto"))]
    states = [memory.load("otto", v) for v in versions]
    assert store.prune(keep_every=4) == 3
    assert all(same(memory.load("otto", v), state) for v, state in zip(versions, states, strict=True))
    branch = model.remember([said(9)], "otto", parent=versions[2], move_head=False)
    expected = model.engine.write(states[2], [{"role": "user", "content": said(9).content}])
    assert same(memory.load("otto", branch), expected)
    assert list(replay(memory, "otto")) == []
    store.move_head("otto", versions[2], expected=versions[5])
    model.reset("otto", "task_progress")
    assert same(model.load_state("otto"), states[2].reset("task_progress"))


def test_replay_finds_a_state_that_is_not_the_journals(model, tmp_path):
    tell(model, range(3))
    with sqlite3.connect(tmp_path / "memory.db") as database:
        database.execute("UPDATE versions SET resets = '[\"facts\"]' WHERE depth = 1")
    problems = list(replay(model.memories, "otto"))
    assert any("'facts'" in problem.what for problem in problems)
    assert {p.version_id for p in model.opened_store.verify()}  # its id is not the hash of that, either


def test_damaged_states_are_repaired_from_the_journal(model, tmp_path):
    tell(model, range(4))
    tell(model, [5], "mila")
    states = {v.version_id: model.load_state("otto", v.version_id) for v in model.opened_store.history("otto")}
    with sqlite3.connect(tmp_path / "memory.db") as database:
        rows = database.execute("SELECT rowid, data FROM blobs WHERE agent_pk = 1").fetchall()
        for rowid, data in rows[3:]:
            flipped = data[:300] + bytes([data[300] ^ 1]) + data[301:]
            database.execute("UPDATE blobs SET data = ? WHERE rowid = ?", (flipped, rowid))
    with pytest.raises(CorruptState, match=r"otto.*repair"):
        model.load_state("otto")
    assert model.load_state("mila") is not None
    problems = list(model.opened_store.verify())
    assert {p.agent_id for p in problems} == {"otto"}
    assert repair(model.memories, "otto", problems)
    assert list(model.opened_store.verify()) == []
    assert all(same(model.load_state("otto", v), state) for v, state in states.items())


@pytest.mark.parametrize(
    ("where", "gone"),
    [
        (Filter(ids=["m2"]), ["m2"]),
        (Filter(ids=["m0", "a3"]), ["m0", "a3"]),
        (Filter(source="mila"), ["m1", "m2", "m4"]),
        (Filter(sub_state="task_progress"), [f"a{i}" for i in range(5)]),
        (Filter(text=SENTENCES[3]), ["m3"]),
    ],
)
def test_what_is_forgotten_was_never_seen(model, where, gone):
    tell(model, range(5))
    model.opened_store.prune("otto", keep_every=2)
    old = model.opened_store.head("otto")
    done = model.forget("otto", where)
    assert done.entries == len(gone) and done.versions > 0
    for number in range(5):
        turn = [said(number), AIMessage(f"step {number}", id=f"a{number}")]
        model.remember([m for m in turn if m.id not in gone], "innocent")
    assert same(model.load_state("otto"), model.load_state("innocent"))
    store = model.opened_store
    assert [r.entry for r in store.journal("otto")] == [r.entry for r in store.journal("innocent")]
    assert store.resolve("otto", old) == store.head("otto") and same(
        model.load_state("otto", old), model.load_state("otto")
    )
    assert store.tombstones("otto") == set(gone) and list(store.verify()) == [] == list(replay(model.memories, "otto"))
    before = store.head("otto")
    model.remember([HumanMessage("again", id=gone[0])], "otto")
    assert store.head("otto") == before


def test_forgetting_reaches_every_branch(model):
    tell(model, range(3))
    store = model.opened_store
    second = store.history("otto")[1].version_id
    branch = model.remember([said(7)], "otto", parent=second, move_head=False)
    model.forget("otto", Filter(ids=["m1"]))
    clean = model.remember([said(0), AIMessage("step 0", id="a0")], "innocent")
    clean = model.remember([AIMessage("step 1", id="a1"), said(7)], "innocent", parent=clean)
    assert same(model.load_state("otto", branch), model.load_state("innocent", clean))
    assert model.forget("otto", Filter(ids=["m1"])).entries == 0
    with pytest.raises(StoreError, match="delete takes them all"):
        model.forget("otto", Filter())


def test_forgetting_all_that_was_said_leaves_nothing(model):
    model.remember([said(1)], "otto")
    old = model.opened_store.head("otto")
    model.forget("otto", Filter(ids=["m1"]))
    assert model.opened_store.head("otto") is None and same(model.load_state("otto"), model.engine.new_state())
    assert same(model.load_state("otto", old), model.engine.new_state())
    tell(model, [2])
    assert len(model.opened_store.journal("otto")) == 2


def test_a_write_in_the_middle_of_forgetting_is_not_lost(model, monkeypatch):
    tell(model, range(3))
    store, rewrite = model.opened_store, model.opened_store.rewrite

    def late(*arguments, **options):
        monkeypatch.setattr(store, "rewrite", rewrite)
        tell(model, [8])
        return rewrite(*arguments, **options)

    monkeypatch.setattr(store, "rewrite", late)
    model.forget("otto", Filter(ids=["m0"]))
    assert [r.entry.message_id for r in store.journal("otto")] == ["a0", "m1", "a1", "m2", "a2", "m8", "a8"]
    assert list(replay(model.memories, "otto")) == []


def test_a_journal_moves_to_another_adapter(make_model, other_adapter):
    old, new = make_model(agent_id="otto"), make_model(agent_id="otto", adapter=str(other_adapter))
    tell(old, range(3))
    old.reset("otto", "task_progress")
    tell(old, [4])
    store, head = old.opened_store, old.opened_store.head("otto")
    with pytest.raises(FingerprintMismatch, match="store migrate"):
        new.load_state("otto")
    entries = [r.entry_id for r in store.journal("otto")]
    stopped: list[int] = []

    def stop(done, total):
        stopped.append(done)
        if len(stopped) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(new.memories, "otto", stop)
    assert store.head("otto") == head
    done = migrate(new.memories, "otto")
    assert done.old == head and done.new == store.head("otto") and done.versions == 2
    assert [r.entry_id for r in store.journal("otto")] == entries
    assert store.version("otto", head).retired and same(old.load_state("otto", head), old.load_state("otto", head))
    messages = [m for n in (0, 1, 2, 4) for m in (said(n), AIMessage(f"step {n}", id=f"a{n}"))]
    plain = [{"role": "user" if m.type == "human" else "assistant", "content": m.content} for m in messages]
    assert same(new.load_state("otto"), new.engine.write(new.engine.new_state(), plain))
    assert migrate(new.memories, "otto").versions == 0
    assert list(store.verify()) == [] == list(replay(new.memories, "otto")) == list(replay(old.memories, "otto"))
    new.forget("otto", Filter(ids=["m1"]))  # also from the old line, whose adapter is not at hand
    assert "m1" not in {r.entry.message_id for r in store.records("otto", Filter())}
    assert list(store.verify()) == []
    assert store.collect("otto", older_than=timedelta(0)) > 0 and len(store.tree("otto")) == 4


def test_hashes_alone_cannot_be_replayed(tiny_adapter, tmp_path):
    path = tmp_path / "hashes.db"
    with open_store(path, journal="hash") as store:
        assert store.policy.journal == "hash"
    model = DeltaMemChatModel(adapter=str(tiny_adapter), device="cpu", store=str(path), agent_id="otto")
    tell(model, range(2))
    (record, *_) = model.opened_store.journal("otto")
    assert record.entry.content is None and same(model.load_state("otto"), model.load_state("otto"))
    assert SENTENCES[0].encode() not in path.read_bytes() + (tmp_path / "hashes.db-wal").read_bytes()
    for call in (
        lambda: model.forget("otto", Filter(ids=["m1"])),
        lambda: list(replay(model.memories, "otto")),
        lambda: model.opened_store.search("otto", "rice"),
        lambda: model.opened_store.prune(),
    ):
        with pytest.raises(JournalNotKept, match="hashes"):
            call()
    head = model.opened_store.head("otto")
    model.remember([said(0), AIMessage("step 0", id="a0")], "otto", parent=None, move_head=False)
    assert model.opened_store.head("otto") == head and model.opened_store.agent("otto").versions == 2


def test_nothing_is_made_of_nothing(model):
    assert model.remember([], "otto") is None and model.opened_store.agents() == []
    with pytest.raises(StateError, match="nothing to reset"):
        model.reset("otto")


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("tell"), st.integers(0, 20)),
        st.tuples(st.just("branch"), st.integers(0, 20)),
        st.tuples(st.just("reset"), st.sampled_from(["facts", "task_progress"])),
        st.tuples(st.just("forget"), st.integers(0, 20)),
        st.tuples(st.just("prune"), st.integers(1, 4)),
        st.tuples(st.just("back"), st.integers(0, 20)),
        st.tuples(st.just("collect"), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_whatever_happens_states_are_the_fold_of_their_journals(tiny_adapter, operations):
    model = DeltaMemChatModel(adapter=str(tiny_adapter), device="cpu", store="sqlite://", agent_id="otto")
    with open_store("sqlite://") as store:
        memory = type(model.memories)(load_engine(str(tiny_adapter), device="cpu"), store)
        for count, (what, argument) in enumerate(operations):
            tree = store.tree("otto") if store.head("otto") else []
            one = tree[argument % len(tree)].version_id if tree and isinstance(argument, int) else None
            message = HumanMessage(SENTENCES[count], id=f"m{argument}")
            if what == "tell":
                memory.remember([message], "otto")
            elif what == "branch" and one:
                memory.remember([message], "otto", parent=one, move_head=False)
            elif what == "reset" and store.head("otto"):
                memory.reset("otto", argument)
            elif what == "forget" and tree:
                forget(memory, "otto", Filter(ids=[f"m{argument}"]))
            elif what == "prune" and tree:
                store.prune(keep_every=argument)
            elif what == "back" and one:
                store.move_head("otto", one, expected=store.head("otto"))
            elif what == "collect" and tree:
                store.collect(older_than=timedelta(0))
        assert list(store.verify()) == []
        if store.agents():
            assert list(replay(memory, "otto")) == []
            for version in store.tree("otto"):
                memory.load("otto", version.version_id)
