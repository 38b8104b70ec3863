"""Calls: who is served, what is read and written, and the ways in: invoke, stream, and their async twins."""

import json

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool

from deltamem_agents.chat_model import model as model_module
from deltamem_agents.chat_model import settings
from deltamem_agents.engine.reply import Row
from deltamem_agents.errors import MissingAgentId

TOLD = HumanMessage("The rice is in room seven.")


@tool
def look_up(item: str) -> str:
    """Where something is."""
    return item


def script(monkeypatch, model, text):
    """Let the model say ``text``, whatever it is asked."""
    tokenizer = model.engine.tokenizer
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    monkeypatch.setattr(Row, "greedy", property(lambda self: False))
    monkeypatch.setattr(Row, "forced", property(lambda self: True))
    monkeypatch.setattr(Row, "choose", lambda self, _: ids[len(self.tokens) % len(ids)])


def served(agent):
    return {"configurable": {"agent_id": agent}}


def test_constructing_loads_nothing(monkeypatch):
    monkeypatch.setattr(settings, "load_engine", lambda *a, **k: pytest.fail("loaded"))
    model_module.DeltaMemChatModel(adapter="no/such", agent_id="otto").bind_tools([look_up])


def test_a_reply(make_model):
    model = make_model(agent_id="otto", remember=False)
    reply = model.invoke("Where is the rice?")
    assert isinstance(reply, AIMessage)
    usage = reply.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] and usage["output_tokens"] == 8
    assert reply.response_metadata == {
        "model_name": model.adapter,
        "model_provider": "deltamem",
        "memory_version": None,
        "finish_reason": "length",
    }
    (plain,) = model.engine.generate([[{"role": "user", "content": "Where is the rice?"}]], max_new_tokens=8)
    assert reply.content == plain.text


def test_the_turn_is_remembered(model):
    first = model.invoke([SystemMessage("Be brief."), TOLD])
    head = model.opened_store.head("otto")
    assert head is not None and first.response_metadata["memory_version"] is None
    expected = model.engine.write(
        model.engine.new_state(),
        [{"role": "user", "content": TOLD.content}, {"role": "assistant", "content": first.content}],
    )
    state = model.load_state("otto")
    assert all((state.tensors[name] == t).all() for name, t in expected.tensors.items())
    second = model.invoke([TOLD, first, HumanMessage("And now?")])
    assert second.response_metadata["memory_version"] == head
    assert model.opened_store.version("otto", model.opened_store.head("otto")).parent == head


def test_remembering_can_be_turned_off_and_memory_left_out(make_model):
    make_model(agent_id="otto", remember=False).invoke([TOLD])
    bare = make_model(use_memory=False)
    bare.invoke([TOLD])
    assert bare.opened_store.head("otto") is None
    make_model(agent_id="otto").remember([TOLD] * 5, "otto")
    assert "memory_version" not in bare.invoke([TOLD], agent_id="otto").response_metadata


def test_who_is_served(make_model):
    model = make_model(agent_id="field")
    for agent in ("kwarg", "configurable", "field"):
        model.remember([HumanMessage(f"I am {agent}.")], agent)
    heads = {agent: model.opened_store.head(agent) for agent in ("kwarg", "configurable", "field")}
    model = make_model(agent_id="field", remember=False)

    def read(*args, **kwargs):
        return model.invoke([TOLD], *args, **kwargs).response_metadata["memory_version"]

    assert read(served("configurable"), agent_id="kwarg") == heads["kwarg"]
    assert read(served("configurable")) == heads["configurable"]
    assert read() == heads["field"]
    with pytest.raises(MissingAgentId, match="configurable"):
        make_model().invoke([TOLD], {"configurable": {"thread_id": "otto"}})


def test_inside_a_graph_calls_only_read(make_model):
    from dataclasses import dataclass

    from langgraph.graph import START, MessagesState, StateGraph

    @dataclass
    class Context:
        agent_id: str

    model = make_model()
    graph = StateGraph(MessagesState, context_schema=Context)
    graph.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_edge(START, "answer")
    app = graph.compile()
    version = model.remember([TOLD], "otto")
    result = app.invoke({"messages": [TOLD]}, context=Context("otto"))
    assert result["messages"][-1].response_metadata["memory_version"] == version
    assert model.opened_store.head("otto") == version
    result = app.invoke({"messages": [TOLD]}, served("mila"), context=Context("otto"))
    assert result["messages"][-1].response_metadata["memory_version"] is None
    with pytest.raises(MissingAgentId):
        app.invoke({"messages": [TOLD]})
    pieces = [chunk for chunk, _ in app.stream({"messages": [TOLD]}, served("otto"), stream_mode="messages")]
    assert len(pieces) > 1


def test_a_pinned_version_is_read_and_nothing_written(make_model):
    model = make_model(agent_id="otto", max_tokens=16)
    first = model.remember([TOLD], "otto")
    then = make_model(agent_id="otto", remember=False, max_tokens=16).invoke("Where?").content
    head = model.remember([HumanMessage("The door opens at noon.")] * 6, "otto")
    for config, kwargs, pinned in (
        (None, {"memory_version": first}, model),
        ({"configurable": {"memory_version": first}}, {}, model),
        (None, {}, make_model(agent_id="otto", memory_version=first, max_tokens=16)),
    ):
        reply = pinned.invoke("Where?", config, **kwargs)
        assert (reply.content, reply.response_metadata["memory_version"]) == (then, first)
    assert model.opened_store.head("otto") == head


@pytest.mark.parametrize("text", ["The tank is blue.", "Grüße 🙂", "a\n\nb "])
def test_streams_say_what_invoke_says(make_model, monkeypatch, text):
    model = make_model(agent_id="otto", remember=False, max_tokens=99)
    script(monkeypatch, model, text)
    chunks = list(model.stream([TOLD]))
    whole = sum(chunks[1:], chunks[0])
    reply = model.invoke([TOLD])
    assert whole.content == reply.content == text
    assert whole.usage_metadata == reply.usage_metadata
    assert whole.response_metadata == reply.response_metadata
    assert [c for c in chunks if c.usage_metadata] == [chunks[-1]]
    assert chunks[-1].chunk_position == "last" and len(chunks) > 2


@pytest.mark.asyncio
async def test_async_calls_say_the_same(make_model):
    model = make_model(agent_id="otto", remember=False)
    reply = model.invoke([TOLD])
    assert (await model.ainvoke([TOLD])).content == reply.content
    chunks = [chunk async for chunk in model.astream([TOLD])]
    assert "".join(chunk.content for chunk in chunks) == reply.content
    assert [r.content for r in await model.abatch([[TOLD]] * 3)] == [reply.content] * 3


@pytest.mark.asyncio
async def test_streams_remember_the_turn_once_whole(model):
    list(model.stream("The rice is in room seven."))
    first = model.opened_store.head("otto")
    assert first is not None
    async for _ in model.astream("The rice is in room seven."):
        pass
    second = model.opened_store.head("otto")
    assert model.opened_store.version("otto", second).parent == first
    stream = model.stream("The rice is in room seven.")
    next(stream)
    stream.close()
    assert model.opened_store.head("otto") == second


def test_a_chain(model):
    chain = (
        ChatPromptTemplate.from_messages([("system", "You are Otto."), ("human", "{ask}")]) | model | StrOutputParser()
    )
    whole = chain.invoke({"ask": "Where?"}, served("chain"))
    assert isinstance(whole, str)
    assert model.opened_store.head("chain") is not None
    assert len(list(chain.stream({"ask": "Where?"}, served("chain")))) >= 1
    assert len(chain.batch([{"ask": "Where?"}] * 2, served("chain"))) == 2


def test_stop_per_call_and_in_the_constructor(make_model, monkeypatch):
    model = make_model(agent_id="otto", remember=False, stop=["blue"], max_tokens=99)
    script(monkeypatch, model, "The tank is blue.")
    assert model.invoke([TOLD]).content == "The tank is "
    assert model.invoke([TOLD], stop=["tank"]).content == "The "
    assert "".join(c.content for c in model.stream([TOLD], stop=["tank"])) == "The "


def test_settings_per_call(make_model):
    model = make_model(agent_id="otto", remember=False)
    assert model.invoke([TOLD], max_tokens=3).usage_metadata["output_tokens"] == 3
    assert model.invoke([TOLD], max_completion_tokens=2).usage_metadata["output_tokens"] == 2
    for wrong in ({"max_tokens": 0}, {"temperature": -0.5}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong)).removeprefix("max_")):
            model.invoke([TOLD], **wrong)
    sampled = {model.invoke([TOLD], temperature=1.0, seed=seed).content for seed in (1, 2, 3)}
    assert len(sampled) > 1
    hot = model.configurable_fields(temperature=ConfigurableField(id="temperature"))
    assert hot.invoke([TOLD], {"configurable": {"temperature": 1.0, "agent_id": "otto"}}).content


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls(make_model, monkeypatch, streamed):
    model = make_model(agent_id="otto", remember=False, max_tokens=200)
    good = '<tool_call>\n{"name": "look_up", "arguments": {"item": "rice"}}\n</tool_call>'
    bad = '<tool_call>\n{"name": "look_up", "arguments": {"item": \n</tool_call>'
    script(monkeypatch, model, f"Let me see.\n{good}\n{bad}")
    bound = model.bind_tools([look_up])
    chunks = list(bound.stream([TOLD])) if streamed else [bound.invoke([TOLD])]
    reply = sum(chunks[1:], chunks[0])
    assert reply.content == "Let me see."
    assert [(c["name"], c["args"]) for c in reply.tool_calls] == [("look_up", {"item": "rice"})]
    (invalid,) = reply.invalid_tool_calls
    assert invalid["name"] == "look_up" and '{"item":' in invalid["args"]
    assert "not valid JSON" in reply.response_metadata["tool_call_errors"][0]
    assert reply.response_metadata["finish_reason"] == "tool_calls"


def test_forced_tools_and_structured_output(make_model, monkeypatch):
    model = make_model(agent_id="otto", remember=False, max_tokens=99)
    script(monkeypatch, model, ' {"item": "rice"}}\n</tool_call>')
    for choice in ("any", "look_up", True, {"type": "function", "function": {"name": "look_up"}}):
        reply = model.bind_tools([look_up], tool_choice=choice).invoke([TOLD])
        assert reply.tool_calls[0]["args"] == {"item": "rice"}
    schema = {"title": "Place", "description": "", "type": "object", "properties": {"item": {"type": "string"}}}
    assert model.with_structured_output(schema).invoke([TOLD]) == {"item": "rice"}
    with pytest.raises(ValueError, match="none of the tools"):
        model.bind_tools([look_up], tool_choice="fly")


def test_histories_of_all_kinds(make_model):
    model = make_model(agent_id="otto")
    call = {"name": "look_up", "args": {"item": "rice"}, "id": "c1"}
    history = [
        SystemMessage("A"),
        HumanMessage([{"type": "text", "text": "Where "}, "is it?"]),
        HumanMessage("Hm?"),
        AIMessage([{"type": "tool_use", "id": "c1", "name": "look_up", "input": {}}], tool_calls=[call]),
        SystemMessage("B"),
        ToolMessage([{"type": "text", "text": "seven"}], tool_call_id="c1"),
        ToolMessage(json.dumps({"a": 1}), tool_call_id="c2", status="error"),
    ]
    assert model.invoke(history).usage_metadata["output_tokens"]
    assert model.get_num_tokens_from_messages(history) < model.get_num_tokens_from_messages(history, [look_up])
    with pytest.raises(ValueError, match="'image_url' is not supported"):
        model.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])])
    with pytest.raises(ValueError, match="role 'pilot'"):
        model.invoke([ChatMessage("x", role="pilot")])


def test_a_cache_keeps_agents_and_versions_apart(make_model, monkeypatch):
    model = make_model(cache=InMemoryCache(), remember=False)
    seen = []
    answer = model_module.DeltaMemChatModel._answer
    monkeypatch.setattr(model_module.DeltaMemChatModel, "_answer", lambda *a: (seen.append(1), answer(*a))[1])
    for agent in ("a", "b", "a", "b"):
        model.invoke([TOLD], served(agent))
    assert len(seen) == 2
    model.remember([TOLD], "a")
    model.invoke([TOLD], served("a"))
    model.invoke([TOLD], served("b"))
    assert len(seen) == 3


def test_what_langchain_asks_for(make_model, tiny_adapter):
    model = make_model(agent_id="otto")
    assert model.profile["max_input_tokens"] == 512
    assert model._llm_type == "deltamem"
    params = model._get_ls_params()
    assert (params["ls_provider"], params["ls_model_name"]) == ("deltamem", str(tiny_adapter))
    assert model.get_num_tokens("The tank") == len(model.get_token_ids("The tank")) > 0
    assert make_model(adapter=tiny_adapter).adapter == str(tiny_adapter)
    assert isinstance(next(model.stream("x")), AIMessageChunk)


def test_a_stop_of_one_text_is_one_stop(make_model, monkeypatch):
    model = make_model(agent_id="otto", remember=False, max_tokens=99)
    script(monkeypatch, model, "The tank is blue.")
    assert model.invoke([TOLD], stop="tank").content == "The "


def test_a_cache_never_mixes_agents_or_versions(make_model):
    cache = InMemoryCache()
    ask = [HumanMessage("Where is the rice?")]
    models = [make_model(agent_id=agent, cache=cache, remember=False) for agent in "ab"]
    for model, text in zip(models, ("The rice is in the tank.", "The door is blue."), strict=True):
        model.remember([HumanMessage(text)], model.agent_id)
    for model in models:
        model.generate([ask])
        model.invoke(ask)
    keys = list(cache._cache)
    assert len({key for _, key in keys}) == len(keys) == 4
    models[0].remember([TOLD], "a")
    models[0].generate([ask])
    assert len(cache._cache) == 5
