"""Writing: a pure function of state and messages, whatever else is in the batch."""

import pytest
import torch
from tiny import build_adapter_folder

from deltamem_agents.engine import WriteTrace, load_engine
from deltamem_agents.engine import engine as engine_module
from deltamem_agents.errors import FingerprintMismatch, StateError
from deltamem_agents.memory import MemoryState

USER = {"role": "user", "content": "The rice is in room seven."}
REPLY = {"role": "assistant", "content": "I put the report into the tank."}
TOOL = {"role": "tool", "content": "the blue door opens at noon"}


def close(a: MemoryState, b: MemoryState, atol: float = 1e-5) -> bool:
    return all(torch.allclose(a.tensors[name], b.tensors[name], atol=atol, rtol=0) for name in a.tensors)


def same(a: MemoryState, b: MemoryState) -> bool:
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_write_returns_a_new_state_and_is_deterministic(engine):
    before = engine.new_state()
    first = engine.write(before, [USER, REPLY])
    assert same(before, engine.new_state())
    assert not close(first, before)
    engine.generate([[USER]], first, max_new_tokens=3)
    assert same(first, engine.write(before, [USER, REPLY]))


def test_messages_are_written_alone_one_after_the_other(engine):
    at_once = engine.write(engine.new_state(), [USER, REPLY, TOOL])
    state = engine.new_state()
    for message in (USER, REPLY, TOOL):
        state = engine.write(state, [message])
    assert same(at_once, state)


def test_roles_choose_the_sub_state(engine):
    empty = engine.new_state()
    told = engine.write(empty, [USER, TOOL])
    assert same(told.select("task_progress"), empty.select("task_progress"))
    assert not close(told.select("facts"), empty.select("facts"))
    done = engine.write(told, [REPLY])
    assert same(done.select("facts"), told.select("facts"))
    assert not close(done.select("task_progress"), told.select("task_progress"))


def test_routes_override_roles(engine):
    empty = engine.new_state()
    both = engine.write(empty, [USER], [("facts", "task_progress")])
    first = next(iter(both.tensors))  # later layers have seen what the first one read from task_progress
    assert torch.equal(both.tensors[first][:, :2], engine.write(empty, [USER]).tensors[first][:, :2])
    assert not close(both.select("task_progress"), empty.select("task_progress"))
    assert same(engine.write(empty, [USER], [()]), empty)
    with pytest.raises(StateError, match="no sub-state 'mood'"):
        engine.write(empty, [USER], [("mood",)])
    with pytest.raises(StateError, match="2 routes for 1 messages"):
        engine.write(empty, [USER], [("facts",), ("facts",)])


def test_a_batch_equals_its_rows(engine):
    rows = [[USER, REPLY, TOOL], [], [TOOL], [REPLY, USER]]
    start = MemoryState.stack([engine.write(engine.new_state(), [TOOL] * n) for n in range(4)])
    together = engine.write_batch(start, rows)
    for i, row in enumerate(rows):
        assert close(together.rows([i]), engine.write(start.rows([i]), row))
    assert same(together.rows([1]), start.rows([1]))


def test_routes_of_a_batch_are_its_rows_own(engine):
    start = engine.new_state(2)
    routes = [[("task_progress",)], None]
    together = engine.write_batch(start, [[USER], [USER]], routes)
    assert close(together.rows([0]), engine.write(engine.new_state(), [USER], [("task_progress",)]))
    assert close(together.rows([1]), engine.write(engine.new_state(), [USER]))


def test_groups_of_a_large_batch_change_nothing(engine, monkeypatch):
    rows = [[USER] * n for n in (1, 3, 2)]
    whole = engine.write_batch(engine.new_state(3), rows)
    monkeypatch.setattr(engine_module, "BATCH_TOKENS", 1)
    assert close(whole, engine.write_batch(engine.new_state(3), rows))


def test_long_messages_are_cut_in_pieces(engine, monkeypatch):
    ids = engine.text.message(USER)
    monkeypatch.setattr(engine_module, "WRITE_TOKENS", len(ids) - 3)
    [pieces] = engine._pieces([USER], None, engine.memory.config.sub_states)
    assert [len(piece) for piece, _ in pieces] == [len(ids) - 3, 3]
    assert [number for piece, _ in pieces for number in piece] == ids
    assert not close(engine.write(engine.new_state(), [USER]), engine.new_state())


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_mean_writes(tmp_path, granularity):
    config = {"memory_write_granularity": granularity, "num_state_heads": 1, "sub_states": {}}
    engine = load_engine(build_adapter_folder(tmp_path, **config), device="cpu")
    long = {"role": "user", "content": "Otto is late. Mila has 3.5 bags!\nThe door is blue"}
    state = engine.write_batch(engine.new_state(2), [[long, REPLY], [USER]])
    assert close(state.rows([0]), engine.write(engine.new_state(), [long, REPLY]))
    assert close(state.rows([1]), engine.write(engine.new_state(), [USER]))
    assert not close(state, engine.new_state(2))


def layer_inputs(engine, state, message, route):
    """Attention module -> its input (T, D) in each forward call that writes ``message``; and the state after."""
    seen = {name: [] for name in state.tensors}
    handles = [
        engine.model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].append(kwargs["hidden_states"][0]), with_kwargs=True
        )
        for name in seen
    ]
    after = engine.write(state, [message], [route])
    for handle in handles:
        handle.remove()
    return seen, after


def mean_gate(engine, name, written):
    """Mean β of a sub-state for ``written``: attention module -> the vectors (N, D) that were written."""
    means = []
    for layer, x in zip(engine.memory.layers, written.values(), strict=True):
        gates = torch.sigmoid(x @ layer.beta_proj.T + layer.beta_bias).unflatten(-1, (-1, 8))
        means.append(gates[:, list(engine.memory.config.sub_states[name])].mean())
    return torch.stack(means).mean().item()


def distance(a: MemoryState, b: MemoryState, heads) -> float:
    return torch.cat([(a.tensors[n] - b.tensors[n])[:, list(heads)].flatten() for n in a.tensors]).norm().item()


def test_traced_writes_are_the_same_writes(engine):
    start = engine.write(engine.new_state(), [TOOL])
    messages, routes = [USER, REPLY, TOOL, USER], [("facts",), ("task_progress", "facts"), (), ("task_progress",)]
    state, traces = engine.write_traced(start, messages, routes)
    assert same(state, engine.write(start, messages, routes))
    assert same(engine.write_traced(start, messages)[0], engine.write(start, messages))
    assert [set(trace.gate) for trace in traces] == [set(trace.moved) for trace in traces] == [set(r) for r in routes]
    assert engine.write_traced(start, [])[1] == []
    with pytest.raises(StateError, match="2 rows of state"):
        engine.write_traced(engine.new_state(2), [USER])
    with pytest.raises(StateError, match="1 routes for 2 messages"):
        engine.write_traced(start, [USER, REPLY], [("facts",)])


@pytest.mark.parametrize("limit", [None, 7])
def test_traces_say_what_each_message_did(engine, monkeypatch, limit):
    """With and without messages that are cut in pieces: then each token still counts the same."""
    if limit is not None:
        monkeypatch.setattr(engine_module, "WRITE_TOKENS", limit)
    state = engine.write(engine.new_state(), [TOOL])
    messages, routes = [USER, REPLY], [("facts",), ("facts", "task_progress")]
    _, traces = engine.write_traced(state, messages, routes)
    for message, route, trace in zip(messages, routes, traces, strict=True):
        seen, after = layer_inputs(engine, state, message, route)
        assert len(next(iter(seen.values()))) == (1 if limit is None else -(-trace.tokens // limit))
        assert trace.tokens == len(engine.text.message(message))
        written = {name: torch.cat(calls) for name, calls in seen.items()}
        assert trace.gate == pytest.approx({name: mean_gate(engine, name, written) for name in route}, abs=1e-6)
        layout = engine.memory.config.sub_states
        assert trace.moved == pytest.approx({name: distance(after, state, layout[name]) for name in route}, rel=1e-5)
        state = after


def test_a_message_routed_nowhere_leaves_no_trace(engine):
    start = engine.write(engine.new_state(), [USER, REPLY])
    state, traces = engine.write_traced(start, [TOOL], [()])
    assert same(state, start)
    assert traces == [WriteTrace(tokens=0, gate={}, moved={})]


def test_traces_of_mean_writes_weigh_pieces_by_their_tokens(tmp_path, monkeypatch):
    config = {"memory_write_granularity": "message_mean", "num_state_heads": 1, "sub_states": {}}
    engine = load_engine(build_adapter_folder(tmp_path, **config), device="cpu")
    size = len(engine.text.message(USER))
    monkeypatch.setattr(engine_module, "WRITE_TOKENS", size - 3)
    state, [trace] = engine.write_traced(engine.new_state(), [USER])
    seen, after = layer_inputs(engine, engine.new_state(), USER, ("shared",))
    gates = [
        mean_gate(engine, "shared", {n: calls[i].mean(0, keepdim=True) for n, calls in seen.items()}) for i in (0, 1)
    ]
    assert trace.tokens == size and same(state, after)
    assert trace.gate == pytest.approx({"shared": ((size - 3) * gates[0] + 3 * gates[1]) / size}, abs=1e-6)
    assert trace.moved == pytest.approx({"shared": distance(after, engine.new_state(), [0])}, rel=1e-5)


def test_sentences(engine):
    ids = engine.text.plain("Otto is late. Mila has 3.5 bags!\nThe door is blue")
    numbers = engine.text.sentences(ids)
    parts = [engine.tokenizer.decode([i for i, n in zip(ids, numbers, strict=True) if n == k]) for k in range(3)]
    assert parts[0] == "Otto is late."
    assert parts[1].startswith(" Mila has 3.5 bags!")
    assert parts[2].endswith("The door is blue")


def test_states_of_others_are_refused(engine, tmp_path):
    other = load_engine(build_adapter_folder(tmp_path, seed=1), device="cpu")
    with pytest.raises(FingerprintMismatch):
        engine.write(other.new_state(), [USER])
    with pytest.raises(FingerprintMismatch):
        engine.generate([[USER]], other.new_state())
    with pytest.raises(StateError, match="2 rows of state"):
        engine.write(engine.new_state(2), [USER])
