"""Calls that end early, and calls that are answered together."""

import asyncio
import re
import time
from contextlib import contextmanager
from threading import Thread

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage

from deltamem_agents.engine.reply import Row
from deltamem_agents.errors import ContextOverflow

TOLD = HumanMessage("The rice is in room seven.")


def soon(true):
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    return true()


def ended(model):
    """Whether nothing is under way any more, soon."""
    return soon(lambda: not model.engine.scheduler._open)


@contextmanager
def meeting(model, monkeypatch, count):
    """The first of ``count`` calls gets no further before all are there; gives the sizes of the batch at each step."""
    scheduler, lock, sizes = model.engine.scheduler, model.engine.lock, []
    step = scheduler.batch.step
    monkeypatch.setattr(scheduler.batch, "step", lambda: (sizes.append(len(scheduler.batch.rows)), step())[1])
    lock.acquire()
    thread = Thread(target=lambda: (soon(lambda: len(scheduler._open) >= count), lock.release()))
    thread.start()
    yield sizes
    thread.join()


def served(agent):
    return {"configurable": {"agent_id": agent}}


@pytest.mark.asyncio
async def test_cancelled_calls_end(make_model):
    model = make_model(agent_id="otto", max_tokens=400)
    task = asyncio.create_task(model.ainvoke([TOLD]))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.opened_store.head("otto") is None
    assert ended(model)


@pytest.mark.asyncio
async def test_breaking_off_a_stream_ends_the_reply(make_model, monkeypatch):
    model = make_model(agent_id="otto", max_tokens=400)
    pushed = []
    monkeypatch.setattr(Row, "push", lambda self, token, push=Row.push: (pushed.append(1), push(self, token))[1])
    for _ in model.stream([TOLD]):
        break
    assert ended(model)
    stream = model.astream([TOLD])
    await anext(stream)
    await stream.aclose()
    assert await asyncio.to_thread(ended, model)  # LangChain leaves it to the loop to close its own iterators
    assert 0 < len(pushed) < 400
    assert model.opened_store.head("otto") is None


@pytest.mark.asyncio
async def test_what_gets_no_answer_writes_no_history_either(make_model):
    model = make_model(agent_id="otto", max_tokens=400)
    history = [HumanMessage("The rice is in room seven."), AIMessage("Noted."), HumanMessage("Where is it?")]
    first = model.invoke("The door is blue.", max_tokens=3).response_metadata["memory_version_after"]
    stream = model.stream(history)
    next(stream)
    stream.close()
    async_stream = model.astream(history)
    await anext(async_stream)
    await async_stream.aclose()
    with pytest.raises(TimeoutError):
        model.invoke(history, timeout=0.01)
    with pytest.raises(ContextOverflowError):
        model.invoke([*history[:2], HumanMessage("tank " * 600)])
    assert model.opened_store.head("otto") == first
    reply = model.invoke(history, max_tokens=3)
    told = [record.entry.content for record in model.opened_store.journal("otto")]
    assert told[2:] == [*(message.content for message in history), reply.content]


@pytest.mark.asyncio
async def test_one_bad_input_spoils_no_async_batch(make_model):
    model = make_model(remember=False, agent_id="otto")
    good, bad, also_good = await model.abatch(["a", "tank " * 600, "b"], return_exceptions=True)
    assert isinstance(bad, ContextOverflowError) and re.search(r"\d{3,}.* 512", str(bad))
    assert good.content == model.invoke("a").content and also_good.content == model.invoke("b").content


def test_batches_are_answered_together(make_model, monkeypatch):
    model = make_model(remember=False)
    for agent in "abc":
        model.remember([HumanMessage(f"The tank of {agent} is blue.")] * 3, agent)
    configs = [served(agent) for agent in "abcab"]
    alone = [model.invoke([TOLD], config).content for config in configs]
    with meeting(model, monkeypatch, 5) as sizes:
        assert [reply.content for reply in model.batch([[TOLD]] * 5, configs)] == alone
    assert max(sizes) == 5


@pytest.mark.asyncio
async def test_async_batches_are_answered_together(make_model, monkeypatch):
    model = make_model(remember=False, agent_id="otto")
    alone = (await model.ainvoke([TOLD])).content
    with meeting(model, monkeypatch, 4) as sizes:
        assert [reply.content for reply in await model.abatch([[TOLD]] * 4)] == [alone] * 4
    assert max(sizes) == 4


def test_one_bad_input_spoils_no_batch(make_model):
    model = make_model(remember=False, agent_id="otto")
    good, bad, also_good = model.batch(["a", "tank " * 600, "b"], return_exceptions=True)
    assert isinstance(bad, ContextOverflow) and isinstance(bad, ContextOverflowError)
    assert good.content == model.invoke("a").content and also_good.content == model.invoke("b").content
    assert model.batch([]) == []


def test_batches_remember_every_turn(model):
    model.batch([[HumanMessage(f"The tank {i}")] for i in range(14)], [served(agent) for agent in "ab" + 12 * "a"])
    versions, version = 0, model.opened_store.head("a")
    while version is not None:
        versions, version = versions + 1, model.opened_store.version("a", version).parent
    assert versions == 13 and model.opened_store.head("b") is not None
