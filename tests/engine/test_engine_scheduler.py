"""The scheduler: who joins, who leaves, who is refused, and that nobody waits for ever."""

import gc
import subprocess
import sys
import threading
from dataclasses import replace
from threading import Event

import pytest
from engine.asking import ASK, fail_when, held, same, told, wait_for_the_end, wait_until, watch

from deltamem_agents.engine import Request
from deltamem_agents.engine.scheduler import Scheduler
from deltamem_agents.errors import ContextOverflow, EngineBusy, FingerprintMismatch, StateError
from deltamem_agents.memory.state import Fingerprint


@pytest.fixture
def scheduler(engine, monkeypatch):
    """A scheduler of the test's own, so that what it learns about memory is forgotten."""
    monkeypatch.setattr(engine, "scheduler", Scheduler(engine))
    return engine.scheduler


# Who is in the batch


def test_a_request_joins_those_under_way_and_is_done_before_them(engine, scheduler, monkeypatch):
    alone = [*engine.generate([ASK], max_new_tokens=200), *engine.generate([told("door")], max_new_tokens=3)]
    sizes = watch(monkeypatch, scheduler)
    long = scheduler.submit(Request(ASK, max_new_tokens=200))
    next(chunks := iter(long))
    short = scheduler.submit(Request(told("door"), max_new_tokens=3))
    assert short.result() == alone[1]
    assert len(long.row.tokens) < 200
    assert long.result() == alone[0]
    assert "".join(chunk.text for chunk in chunks)
    assert sizes[0] == 1 and max(sizes) == 2 and sizes[-1] == 1


def test_all_of_a_list_are_under_way_at_once(engine, scheduler, monkeypatch):
    sizes = watch(monkeypatch, scheduler)
    engine.generate([ASK] * 70, max_new_tokens=3)
    assert max(sizes) == scheduler.batch.limit == 64
    assert sizes == [64, 64, 6, 6]


def test_the_longest_wait_is_the_first_to_join(engine, scheduler, monkeypatch):
    scheduler.batch.limit = 1
    ended = []
    with held(engine, lambda: len(scheduler._open) == 5):
        replies = [scheduler.submit(Request(ASK, max_new_tokens=n)) for n in (5, 4, 3, 2, 1)]
        for reply in replies:
            monkeypatch.setattr(reply, "end", lambda e=None, r=reply, f=reply.end: (ended.append(r), f(e)))
    for reply in replies:
        reply.result()
    assert ended == replies


def test_seeds_give_the_same_among_others(engine, scheduler):
    options = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 10}
    [alone] = engine.generate([ASK], seed=7, **options)
    others = [Request(told(f"{i} doors"), seed=i, **options) for i in range(63)]
    together = engine.generate_requests([*others[:40], Request(ASK, seed=7, **options), *others[40:]])
    assert together[40] == alone
    assert len({generation.text for generation in together}) > 10


def test_memories_are_each_row_s_own(engine, scheduler):
    states = [engine.write(engine.new_state(), told(thing) * 3) for thing in ("rice", "report", "door")]
    rows = [None, *states]
    alone = [engine.generate([ASK], state, max_new_tokens=20)[0] for state in rows]
    replies = scheduler.submit_all([Request(ASK, max_new_tokens=20)] * 4, rows)
    assert [reply.result() for reply in replies] == alone
    assert len({generation.text for generation in alone}) > 1


# Who leaves


def test_closing_a_stream_stops_its_row_within_one_token(engine, scheduler, monkeypatch):
    closed, after = [], []
    fail_when(monkeypatch, engine, lambda ids: closed and after.append(1), None)
    for close in (lambda s: s.close(), lambda s: None):
        closed.clear(), after.clear()
        stream = engine.stream(ASK, max_new_tokens=400)
        next(stream)
        close(stream)
        del stream
        closed.append(1)
        wait_for_the_end(scheduler)
        assert len(after) <= 1
        assert scheduler.batch.rows == []


def test_a_stream_that_nobody_reads_ends(engine, scheduler):
    engine.stream(ASK, max_new_tokens=400)
    gc.collect()
    wait_for_the_end(scheduler)


def test_a_cancelled_reply_gives_what_there_is(engine, scheduler):
    [whole] = engine.generate([ASK], max_new_tokens=100)
    event = Event()
    reply = scheduler.submit(Request(ASK, max_new_tokens=400), None, event)
    other = scheduler.submit(Request(ASK, max_new_tokens=100))
    chunks = iter(reply)
    next(chunks)
    event.set()
    part = reply.result()
    assert 0 < part.completion_tokens < 400
    assert other.result() == whole
    assert scheduler.submit(Request(ASK), None, event).result().completion_tokens == 0


def test_waiting_no_longer_cancels(engine, scheduler):
    reply = scheduler.submit(Request(ASK, max_new_tokens=400))
    with pytest.raises(TimeoutError, match=r"0\.0 seconds"):
        reply.result(timeout=0.0)
    wait_for_the_end(scheduler)
    assert reply.result().completion_tokens < 400


def test_a_reply_is_read_again_without_waiting(engine, scheduler):
    reply = scheduler.submit(Request(ASK, max_new_tokens=9))
    chunks = list(reply)
    assert "".join(chunk.text for chunk in chunks) == reply.result().text
    assert [chunk.generation for chunk in chunks[-1:]] == [chunk.generation for chunk in reply] == [reply.result()]
    assert list(stream := iter(reply)) and list(stream) == []


# What is refused


def test_errors_of_a_request_are_raised_at_once(engine, scheduler):
    with pytest.raises(ContextOverflow):
        scheduler.submit(Request([{"role": "user", "content": "tank " * 600}]))
    with pytest.raises(StateError, match="2 rows of state"):
        scheduler.submit(Request(ASK), engine.new_state(2))
    with pytest.raises(StateError, match="2 rows of state"):
        scheduler.write(engine.new_state(2), ASK)
    stranger = replace(engine.new_state(), fingerprint=Fingerprint("a", "b"))
    for call in (scheduler.write, lambda state, ask: scheduler.submit(Request(ask), state)):
        with pytest.raises(FingerprintMismatch):
            call(stranger, ASK)
    assert scheduler._worker is None


def test_a_full_queue(engine, scheduler):
    scheduler.queue_limit = 2
    with engine.lock:
        first = scheduler.submit(Request(ASK, max_new_tokens=2))
        wait_until(lambda: not scheduler._waiting)
        second = scheduler.submit(Request(ASK, max_new_tokens=2))
        with pytest.raises(EngineBusy, match=r"1 requests wait .* holds 2"):
            scheduler.submit_all([Request(ASK)] * 2, [None] * 2)
        third = scheduler.submit(Request(ASK, max_new_tokens=2))
        with pytest.raises(EngineBusy, match=r"2 requests wait .* holds 2: .*queue_limit"):
            engine.stream(ASK)
    assert first.result() == second.result() == third.result()


def test_lists_longer_than_the_queue_are_answered_in_portions(engine, scheduler, monkeypatch):
    monkeypatch.setattr("deltamem_agents.engine.scheduler.PORTION", 4)
    scheduler.queue_limit = 4
    assert [g.completion_tokens for g in engine.generate([ASK] * 10, max_new_tokens=1)] == [1] * 10
    with pytest.raises(ContextOverflow):
        engine.generate([ASK] * 9 + [[{"role": "user", "content": "tank " * 600}]])


# The worker


def test_the_worker_ends_and_begins_again(engine, scheduler):
    for _ in range(3):
        engine.generate([ASK], max_new_tokens=2)
        engine.write(engine.new_state(), ASK)
        wait_for_the_end(scheduler)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "deltamem-engine"])


def test_a_thread_that_streams_can_ask_and_write(engine, scheduler):
    [whole] = engine.generate([ASK], max_new_tokens=30)
    state = engine.write(engine.new_state(), ASK)
    text, asked = "", 0
    for chunk in engine.stream(ASK, max_new_tokens=30):
        text += chunk.text
        if asked < 4:
            asked += 1
            assert engine.generate([ASK], max_new_tokens=2)[0].completion_tokens == 2
            assert same(engine.write(engine.new_state(), ASK), state)
            assert next(engine.stream(ASK, max_new_tokens=3)).text is not None
    assert text == whole.text


EXITING = """
import sys, threading
from deltamem_agents.engine import load_engine
engine = load_engine(sys.argv[1], device="cpu")
ask = [{"role": "user", "content": "Where is the rice?"}]
stream = engine.stream(ask, max_new_tokens=400)
next(stream)
def go_on():
    while True:
        engine.write(engine.new_state(), ask)
for _ in range(3):
    threading.Thread(target=go_on, daemon=True).start()
    threading.Thread(target=lambda: engine.generate([ask] * 4, max_new_tokens=400), daemon=True).start()
print(engine.generate([ask], max_new_tokens=2)[0].completion_tokens)
"""


def test_a_process_ends_while_replies_are_under_way(tiny_adapter):
    done = subprocess.run(
        [sys.executable, "-c", EXITING, str(tiny_adapter)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert "Traceback" not in done.stderr and "terminate" not in done.stderr
