"""What happens to the others when memory runs out, and when one request fails."""

import pytest
import torch
from engine.asking import ASK, begin, fail_when, held, same, told, wait_for_the_end, wait_until

from deltamem_agents.engine import Request
from deltamem_agents.engine.scheduler import Scheduler
from deltamem_agents.errors import EngineOutOfMemory

MARK = 77  # a token that some tests let the model fail at


@pytest.fixture
def scheduler(engine, monkeypatch):
    """A scheduler of the test's own, so that what it learns about memory is forgotten."""
    monkeypatch.setattr(engine, "scheduler", Scheduler(engine))
    return engine.scheduler


@pytest.fixture
def prompt(engine):
    return engine.text.prompt(ASK)


# Memory that runs out


@pytest.mark.parametrize("when", ["reading prompts", "going on"])
def test_fewer_rows_when_memory_runs_out(engine, scheduler, monkeypatch, caplog, when):
    requests = [Request(told(f"{i} doors"), max_new_tokens=4 + i, temperature=i % 2, seed=i) for i in range(8)]
    alone = engine.generate_requests(requests)
    joins = when == "reading prompts"
    shapes = fail_when(
        monkeypatch,
        engine,
        lambda ids: ids.shape[0] > 3 and (ids.shape[1] > 1) == joins,
        torch.OutOfMemoryError("CUDA out of memory"),
    )
    assert engine.generate_requests(requests) == alone
    assert 1 <= scheduler.batch.limit <= 3
    assert "out of memory with 8 replies" in caplog.text
    before = len(shapes)
    assert engine.generate_requests(requests) == alone
    assert all(rows <= 3 for rows, _ in shapes[before:])


def test_those_that_were_under_way_come_back_before_those_that_wait(engine, scheduler, monkeypatch):
    scheduler.batch.limit, ended = 4, []
    fail_when(monkeypatch, engine, lambda ids: ids.shape[0] > 2, torch.OutOfMemoryError("CUDA out of memory"))
    with engine.lock:
        replies = scheduler.submit_all([Request(ASK, max_new_tokens=3)] * 8, [None] * 8)
        for reply in replies:
            monkeypatch.setattr(reply, "end", lambda e=None, r=reply, f=reply.end: (ended.append(r), f(e)))
    assert len({reply.result().text for reply in replies}) == 1
    assert ended == replies


def test_a_request_that_never_fits_fails_alone(engine, scheduler, monkeypatch, prompt):
    limit = scheduler.batch.limit
    good = [Request(told(f"{i} doors"), max_new_tokens=6) for i in range(5)]
    alone = engine.generate_requests(good)
    large = Request(ids=prompt * 8, max_new_tokens=6)
    error = torch.OutOfMemoryError("CUDA out of memory")
    fail_when(monkeypatch, engine, lambda ids: ids.shape[1] > 4 * len(prompt), error)
    replies = scheduler.submit_all([*good[:2], large, *good[2:]], [None] * 6)
    with pytest.raises(EngineOutOfMemory, match=rf"{8 * len(prompt)} tokens so far, .*send fewer messages"):
        replies[2].result()
    assert [reply.result() for reply in replies if reply is not replies[2]] == alone
    assert scheduler.batch.limit == limit
    with pytest.raises(EngineOutOfMemory):
        list(scheduler.submit(large))


def test_writes_when_memory_runs_out(engine, scheduler, monkeypatch):
    alone = [engine.write(engine.new_state(), told(f"{i} doors")) for i in range(8)]
    write, sizes = engine._write_pieces, []

    def patched(states, pieces, *more):
        sizes.append(len(pieces))
        if len(pieces) > 3 or any(MARK in ids for ids, _ in pieces):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return write(states, pieces, *more)

    monkeypatch.setattr(engine, "_write_pieces", patched)
    message = engine.text.message
    monkeypatch.setattr(engine.text, "message", lambda m: [MARK] * 40 if m["content"] == "large" else message(m))
    calls = [lambda i=i: engine.write(engine.new_state(), told(f"{i} doors")) for i in range(8)]
    calls.insert(4, lambda: engine.write(engine.new_state(), [{"role": "user", "content": "large"}]))
    with held(engine, lambda: len(scheduler._open) == 10):
        busy = scheduler.submit(Request(ASK, max_new_tokens=1))
        wait_until(lambda: not scheduler._waiting)
        results = begin(calls)
    results = results()
    error = results.pop(4)
    assert isinstance(error, EngineOutOfMemory) and "writing 40 tokens" in str(error)
    assert all(same(*pair) for pair in zip(results, alone, strict=True))
    assert max(sizes) > 3 and busy.result()


# Errors


def test_a_prompt_that_fails_fails_alone(engine, scheduler, monkeypatch, prompt):
    good = [Request(told(f"{i} doors"), max_new_tokens=6) for i in range(4)]
    alone = engine.generate_requests(good)
    fail_when(monkeypatch, engine, lambda ids: bool((ids == MARK).sum() > 9), ValueError("no such prompt"))
    long = scheduler.submit(Request(ASK, max_new_tokens=40))
    replies = scheduler.submit_all([*good[:2], Request(ids=[*prompt, *[MARK] * 10]), *good[2:]], [None] * 5)
    with pytest.raises(ValueError, match="no such prompt"):
        replies[2].result()
    with pytest.raises(ValueError, match="no such prompt"):
        next(iter(replies[2]))
    assert [reply.result() for reply in replies if reply is not replies[2]] == alone
    assert long.result().completion_tokens == 40


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3), KeyboardInterrupt()])
def test_a_step_that_fails_ends_those_under_way_alone(engine, scheduler, monkeypatch, error):
    [alone] = engine.generate([ASK], max_new_tokens=5)
    scheduler.batch.limit = 2
    once = [1, 1]
    shapes = fail_when(monkeypatch, engine, lambda ids: ids.shape[1] == 1 and once and once.pop() and not once, error)
    replies = scheduler.submit_all([Request(ASK, max_new_tokens=5)] * 3, [None] * 3)
    for reply in replies[:2]:
        with pytest.raises(type(error)):
            reply.result()
    assert replies[2].result() == alone
    assert engine.generate([ASK], max_new_tokens=5) == [alone] and shapes


def test_an_error_of_the_scheduler_itself_reaches_everybody(engine, scheduler, monkeypatch, caplog):
    [alone] = engine.generate([ASK], max_new_tokens=5)
    wait_for_the_end(scheduler)
    monkeypatch.setattr(scheduler.batch, "room", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.generate([ASK] * 3)
    assert "the scheduler failed" in caplog.text
    assert engine.generate([ASK], max_new_tokens=5) == [alone]


def test_a_write_that_fails_fails_alone(engine, scheduler, monkeypatch):
    write = engine._write_together

    def patched(states, pieces, *more):
        if any(MARK in ids for ids, _ in pieces):
            raise RuntimeError("no such words")
        return write(states, pieces, *more)

    message = engine.text.message
    monkeypatch.setattr(engine, "_write_together", patched)
    monkeypatch.setattr(engine.text, "message", lambda m: [MARK] * 9 if m["content"] == "bad" else message(m))
    bad = [{"role": "user", "content": "bad"}]
    calls = [lambda i=i: engine.write(engine.new_state(), bad if i == 2 else told(f"{i} doors") * 2) for i in range(5)]
    with held(engine, lambda: len(scheduler._open) == 6):
        scheduler.submit(Request(ASK, max_new_tokens=1))
        results = begin(calls)
    results = results()
    assert str(results.pop(2)) == "no such words"
    for i, written in zip((0, 1, 3, 4), results, strict=True):
        assert same(written, engine.write(engine.new_state(), told(f"{i} doors") * 2))
