"""Many threads at once: each has what it would have alone."""

from functools import partial
from itertools import islice
from random import Random
from threading import Event

import pytest
import torch
from engine.asking import ASK, begin, held, in_threads, same, told, wait_until, watch

from deltamem_agents.engine import Request, load_engine
from deltamem_agents.engine.pending import write_shape
from deltamem_agents.engine.scheduler import Scheduler
from deltamem_agents.errors import StateError
from deltamem_agents.memory import MemoryState

WORDS = "tank rice room report Mila Otto seven blue door".split()


@pytest.fixture
def scheduler(engine, monkeypatch):
    """A scheduler of the test's own, so that what it learns about memory is forgotten."""
    monkeypatch.setattr(engine, "scheduler", Scheduler(engine))
    return engine.scheduler


# Writes


def test_writes_do_not_depend_on_their_neighbours(engine, scheduler):
    """Bit for bit on a CPU: in one batch, and from as many threads."""
    texts = [" ".join(WORDS[: 1 + i % 9] * (1 + i % 4)) + f" {i}" for i in range(64)]
    messages = [[{"role": role, "content": text} for role in ("user", "assistant")] for text in texts]
    start = [engine.write(engine.new_state(), told("door") * (i % 3)) for i in range(64)]
    alone = [engine.write(state, own) for state, own in zip(start, messages, strict=True)]
    together = engine.write_batch(MemoryState.stack(start), messages)
    calls = [lambda s=s, m=m: engine.write(s, m) for s, m in zip(start, messages, strict=True)]
    for i, written in enumerate(in_threads(calls)):
        assert same(written, alone[i]) and same(together.rows([i]), alone[i])


def test_writes_on_other_devices_have_the_shape_of_their_lengths(engine, scheduler, monkeypatch):
    """As on CUDA, but on a CPU, where the last bits may differ."""
    alone = {n: engine.write_traced(engine.new_state(), told("door " * n)) for n in (1, 2, 3, 40, 90, 600)}
    scheduler._row_by_row, shapes = False, []

    def together(states, pieces, trace, width):
        shapes.append((len(pieces), width))
        bound = engine._write_together(states, pieces, trace, width)
        return bound.state, bound.gates

    monkeypatch.setattr(engine, "_write_pieces", together)
    with held(engine, lambda: len(scheduler._open) == 7):
        scheduler.submit(Request(ASK, max_new_tokens=1))
        results = begin([partial(engine.write_traced, engine.new_state(), told("door " * n)) for n in alone])
    for n, (state, [trace]) in zip(alone, results(), strict=True):
        assert all(torch.allclose(state.tensors[k], t, atol=1e-5) for k, t in alone[n][0].tensors.items())
        assert trace.gate == pytest.approx(alone[n][1][0].gate, abs=1e-5)
    assert shapes.count((16, 64)) == 1 and (1, 512) in shapes
    assert [write_shape(n) for n in (1, 63, 64, 127, 511, 512, 8192)] == [
        *[(16, 64)] * 2, *[(8, 128)] * 2, (2, 512), (1, 512), (1, 8192)
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_writes_do_not_depend_on_their_neighbours_on_cuda(tiny_adapter, dtype):
    cuda = load_engine(tiny_adapter, device="cuda", dtype=dtype)
    texts = [" ".join(WORDS[: 1 + i % 9] * (1 + i % 5 * 3)) + f" {i}" for i in range(64)]
    calls = [partial(cuda.write, cuda.new_state(), [{"role": "user", "content": text}] * 2) for text in texts]
    alone = [call() for call in calls]
    for _ in range(3):
        assert all(same(*pair) for pair in zip(in_threads(calls), alone, strict=True))


def test_writes_that_wait_are_written_together(engine, scheduler, monkeypatch):
    write, sizes = engine._write_pieces, []
    monkeypatch.setattr(engine, "_write_pieces", lambda s, p, *a: (sizes.append(len(p)), write(s, p, *a))[1])
    things = [f"{i} doors" for i in range(9)]
    calls = [lambda t=t: engine.write(engine.new_state(), told(t)) for t in things]
    calls[3] = lambda: engine.write_traced(engine.new_state(), told(things[3]))
    calls[5] = lambda: engine.write(engine.new_state(), told("rice"), [("mood",)])
    with held(engine, lambda: len(scheduler._open) == 9):
        busy = scheduler.submit(Request(ASK, max_new_tokens=1))
        wait_until(lambda: not scheduler._waiting)
        results = begin(calls)
    results = results()
    assert sizes == [8] and busy.result()
    assert isinstance(results.pop(5), StateError)
    state, [trace] = results[3]
    assert trace == engine.write_traced(engine.new_state(), told(things[3]))[1][0]
    results[3] = state
    for thing, written in zip([t for t in things if t != things[5]], results, strict=True):
        assert same(written, engine.write(engine.new_state(), told(thing)))


def test_writes_and_tokens_take_turns(engine, scheduler, monkeypatch):
    turns = []
    write, step = engine._write_pieces, scheduler.batch.step
    monkeypatch.setattr(engine, "_write_pieces", lambda *a: (turns.append("write"), write(*a))[1])
    monkeypatch.setattr(scheduler.batch, "step", lambda: (turns.append("step"), step())[1])
    reply = scheduler.submit(Request(ASK, max_new_tokens=60))
    chunks = iter(reply)
    next(chunks)
    engine.write(engine.new_state(), told("door") * 9)
    assert reply.result().completion_tokens == 60
    first, last = turns.index("write"), len(turns) - turns[::-1].index("write")
    assert turns[first:last] == ["write", "step"] * 8 + ["write"]


# Everything at once


def work(engine, i):
    """What an agent does in the test below, and what comes of it: always the same, whatever the others do."""
    random = Random(i)
    state, results = engine.new_state(), []
    for turn in range(2):
        words = " ".join(random.choices(WORDS, k=random.randint(1, 12)))
        state = engine.write(state, told(words) * random.randint(1, 2))
        results.append(state)
        options = {"max_new_tokens": random.randint(1, 12), "temperature": random.choice([0.0, 1.0]), "seed": i}
        results += engine.generate([told(words), ASK], MemoryState.stack([state, state]), **options)
        chunks = list(engine.stream(ASK, state if turn else None, **options))
        assert "".join(chunk.text for chunk in chunks) == chunks[-1].generation.text
        results.append(chunks[-1].generation)
        state, traces = engine.write_traced(state, [{"role": "assistant", "content": results[-1].text}])
        results += [state, traces]
        results.append(break_off(engine, state, random))
    return results


def break_off(engine, state, random):
    """Break off a stream or an answer; what came is the beginning of the whole."""
    [whole] = engine.generate([ASK], state, max_new_tokens=25)
    stream = engine.stream(ASK, state, max_new_tokens=25)
    said = "".join(chunk.text for chunk in islice(stream, random.randint(1, 6)))
    stream.close()
    event = Event()
    reply = engine.scheduler.submit(Request(ASK, max_new_tokens=25), state, event)
    if random.random() < 0.5:
        event.set()
    assert whole.text.startswith(said) and whole.text.startswith(reply.result().text)
    return whole


def test_many_threads_and_agents(engine, scheduler, monkeypatch):
    """Each of 32 agents has the answers and the states, bit for bit, that it has alone."""
    alone = [work(engine, i) for i in range(32)]
    sizes = watch(monkeypatch, scheduler)
    for own, together in zip(alone, in_threads([partial(work, engine, i) for i in range(32)]), strict=True):
        assert not isinstance(together, Exception), together
        for one, other in zip(own, together, strict=True):
            assert same(one, other) if isinstance(one, MemoryState) else one == other
    assert scheduler.batch.rows == [] and not scheduler._open
    assert max(sizes) > 8
