"""Reads that are switched off or scaled, timeouts, other adapters per call, serialisation, traces."""

import asyncio
import logging
import threading
import time
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage
from tiny import build_adapter_folder
from transformers import BitsAndBytesConfig
from transformers.quantizers import AutoQuantizationConfig

from deltamem_agents.chat_model import DeltaMemChatModel, settings
from deltamem_agents.errors import FingerprintMismatch

TOLD = HumanMessage("The rice is in room seven.")


class Listener(BaseCallbackHandler):
    """Keeps what callbacks are told."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.ended: list[Any] = []

    def on_chat_model_start(self, serialized, messages, *, metadata=None, **kwargs):
        self.started.append({"metadata": metadata, "messages": messages, **kwargs})

    def on_chain_end(self, outputs, **kwargs):
        self.ended.append(outputs)


def test_reads_can_be_switched_off_and_scaled(make_model):
    model = make_model(agent_id="otto", remember=False, max_tokens=12)
    model.remember([TOLD] * 4, "otto")
    bare = make_model(use_memory=False, max_tokens=12).invoke("Where is it?").content
    with_memory = model.invoke("Where is it?").content
    assert with_memory != bare
    off = model.invoke("Where is it?", use_memory=False)
    assert off.content == bare and "memory_version" not in off.response_metadata
    assert model.invoke("Where is it?", memory_scale=0.0).content == bare
    assert model.invoke("Where is it?", memory_scale=1.0).content == with_memory
    with pytest.raises(ValueError, match="memory_scale"):
        model.invoke("Where is it?", memory_scale=-1.0)


def test_a_call_compared_without_memory_writes_nothing(make_model):
    model = make_model(agent_id="otto")
    model.invoke([TOLD], use_memory=False)
    assert model.opened_store.head("otto") is None


@pytest.mark.parametrize(
    ("argument", "hint"),
    [("temprature", "did you mean 'temperature'"), ("remember", "known are agent_id, "), ("memory", "did you mean")],
)
def test_an_unknown_argument_of_a_call_is_an_error(make_model, argument, hint):
    model = make_model(agent_id="otto")
    with pytest.raises(TypeError, match=f"no argument '{argument}': {hint}"):
        model.invoke([TOLD], **{argument: 1})
    with pytest.raises(TypeError, match=argument):
        list(model.bind(**{argument: 1}).stream([TOLD]))
    with pytest.raises(TypeError, match=argument):
        asyncio.run(model.ainvoke([TOLD], **{argument: 1}))
    assert model.opened_store.head("otto") is None


@pytest.mark.parametrize("streamed", [False, True])
def test_timeouts(make_model, streamed):
    model = make_model(agent_id="otto", max_tokens=400, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
        list(model.stream([TOLD])) if streamed else model.invoke([TOLD])
    assert model.opened_store.head("otto") is None
    assert len(model.invoke([TOLD], timeout=60, max_tokens=3).content) > 0


@pytest.mark.asyncio
async def test_async_streams_do_not_hold_up_the_loop(make_model):
    model = make_model(agent_id="otto", remember=False, max_tokens=100)
    await model.ainvoke([TOLD], max_tokens=1)
    late = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - before)

    watcher = asyncio.create_task(watch())
    chunks = [chunk async for chunk in model.astream([TOLD])]
    watcher.cancel()
    assert len(chunks) > 5 and len(late) > 5
    assert sorted(late)[len(late) // 2] < 0.1


def test_another_adapter_for_one_call(make_model, tmp_path):
    model = make_model(agent_id="otto", remember=False, max_tokens=6)
    other = str(build_adapter_folder(tmp_path / "other", seed=3))
    reply = model.invoke([TOLD], model=other)
    assert reply.response_metadata["model_name"] == other
    assert reply.content == make_model(adapter=other, use_memory=False, max_tokens=6).invoke([TOLD]).content
    assert list(model.stream([TOLD], model=other))[-1].response_metadata["model_name"] == other
    model.remember([TOLD], "otto")
    with pytest.raises(FingerprintMismatch):
        model.invoke([TOLD], model=other)


def test_serialised_without_weights(make_model, monkeypatch):
    model = make_model(agent_id="otto", stop=["."], recall=2, history={"tokens": 100})
    monkeypatch.setattr(settings, "load_engine", lambda *a, **k: pytest.fail("loaded"))
    text = dumps(model)
    assert len(text) < 5_000
    again = loads(text, allowed_objects=[DeltaMemChatModel], valid_namespaces=["deltamem_agents"])
    assert again == model
    assert (again.agent_id, again.recall, again.history, again.store) == ("otto", 2, {"tokens": 100}, model.store)


def test_a_config_of_transformers_is_kept(make_model):
    plan = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = make_model(model_options={"quantization_config": plan, "device_map": "auto"})
    again = loads(dumps(model), allowed_objects=[DeltaMemChatModel], valid_namespaces=["deltamem_agents"])
    assert again.model_options == model.model_options
    kept = AutoQuantizationConfig.from_dict(again.model_options["quantization_config"])
    assert type(kept) is BitsAndBytesConfig and kept.to_dict() == plan.to_dict()


def test_callbacks_hear_of_versions_and_not_of_memory(make_model):
    model = make_model(agent_id="otto", recall=2, max_tokens=4)
    secret = "The password of the tank is heliotrope."
    first = model.remember([HumanMessage(secret)], "otto")
    listener = Listener()
    reply = model.invoke("What is the password of the tank?", {"callbacks": [listener]})
    (started,) = listener.started
    seen = {key: started["metadata"][key] for key in ("agent_id", "memory_version", "recall")}
    assert seen == {"agent_id": "otto", "memory_version": first, "recall": 2}
    assert reply.response_metadata["recalled"] == 1
    (written,) = [out for out in listener.ended if isinstance(out, dict) and "memory_version_after" in out]
    assert written["memory_version_after"] == model.opened_store.head("otto") != first
    assert written["tokens_written"] > 0
    assert written.items() <= reply.response_metadata.items()
    assert "heliotrope" not in repr(listener.started) + repr(listener.ended)


@pytest.mark.parametrize("of_the_call", [False, True])
def test_traces_and_logs_hold_quotations_when_asked(make_model, caplog, of_the_call):
    given = {"trace_quotes": True}
    model = make_model(agent_id="otto", recall=2, max_tokens=4, **({} if of_the_call else given))
    model.remember([HumanMessage("The password of the tank is heliotrope.")], "otto")
    with caplog.at_level(logging.DEBUG, "deltamem_agents"):
        reply = model.invoke("What is the password of the tank?", **(given if of_the_call else {}))
    assert "heliotrope" in reply.response_metadata["recalled_text"]
    assert "heliotrope" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "deltamem_agents"):
        quiet = model.invoke("What is the password of the tank?", trace_quotes=False)
    assert "recalled_text" not in quiet.response_metadata and "heliotrope" not in caplog.text


def test_logs_hold_no_memory_text(make_model, caplog):
    with caplog.at_level(logging.DEBUG):
        model = make_model(agent_id="otto", recall=2, max_tokens=4)
        model.remember([HumanMessage("The password of the tank is heliotrope.")], "otto")
        model.invoke("What is the password of the tank?")
    assert "heliotrope" not in caplog.text


def test_the_first_use_shows_progress_and_the_next_does_not(make_model, tmp_path, capfd, caplog):
    model = make_model(adapter=str(build_adapter_folder(tmp_path / "new", seed=5)), use_memory=False)
    capfd.readouterr()
    with caplog.at_level(logging.INFO, "deltamem_agents"):
        model.invoke("Where is it?")
    shown = capfd.readouterr()
    assert "Loading weights: 100%" in shown.err and shown.out == ""
    assert "loading backbone" in caplog.text and "loaded backbone" in caplog.text
    model.invoke("Where is it?")
    assert capfd.readouterr() == ("", "")


def test_one_backbone_for_all_models_of_a_process(make_model):
    models = [make_model(agent_id=str(i), temperature=i / 10) for i in range(3)]
    found = []
    threads = [threading.Thread(target=lambda m=m: found.append(m.engine)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(engine) for engine in found}) == 1
