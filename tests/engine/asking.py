"""What the tests of the scheduler share: waiting, threads, models that fail."""

import time
from contextlib import contextmanager
from threading import Thread

import torch

ASK = [{"role": "user", "content": "Where is the rice?"}]
PATIENCE = 20.0


def told(thing):
    return [{"role": "user", "content": f"The {thing} is in the tank."}]


def same(a, b):
    return all(torch.equal(a.tensors[name], t) for name, t in b.tensors.items())


def wait_until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def wait_for_the_end(scheduler):
    wait_until(lambda: scheduler._worker is None)


def watch(monkeypatch, scheduler):
    """Numbers of rows that the batch had before each step."""
    sizes = []
    step = scheduler.batch.step
    monkeypatch.setattr(scheduler.batch, "step", lambda: (sizes.append(len(scheduler.batch.rows)), step())[1])
    return sizes


def fail_when(monkeypatch, engine, fails, error):
    """Let the model raise ``error`` when ``fails(input_ids)``; returns all of the calls' shapes."""
    forward, shapes = engine.model.forward, []

    def patched(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        if fails(kwargs["input_ids"]):
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", patched)
    return shapes


@contextmanager
def held(engine, ready):
    """No call of the model ends inside, until ``ready()``; a thread lets them go then."""
    engine.lock.acquire()

    def release():
        try:
            wait_until(ready)
        finally:
            engine.lock.release()

    thread = Thread(target=release)
    thread.start()
    yield
    thread.join()


def in_threads(calls):
    """The results of all calls, or the errors that they raised."""
    results = [None] * len(calls)

    def run(i):
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


def begin(calls):
    """Begin :func:`in_threads`; the results are given when asked for."""
    found = []
    thread = Thread(target=lambda: found.append(in_threads(calls)))
    thread.start()

    def results():
        thread.join(PATIENCE)
        return found[0]

    return results
