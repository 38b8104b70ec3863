"""The id of a reply: the same when the same call is made again, and new where the reply may be another one."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage

from deltamem_agents.chat_model import DeltaMemChatModel

TOLD = HumanMessage("The rice is in room seven.", id="told")
ASKED = HumanMessage("Where is the rice?", id="asked")
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def model(make_model: Any) -> DeltaMemChatModel:
    """It only reads, from a memory with something in it."""
    made: DeltaMemChatModel = make_model(agent_id="otto", remember=False)
    made.remember([TOLD], "otto")
    return made


def streamed(model: DeltaMemChatModel, messages: list[Any], **options: Any) -> AIMessageChunk:
    chunks = list(model.stream(messages, **options))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert {chunk.id for chunk in chunks} == {whole.id}
    return whole


def test_the_same_call_gives_the_same_reply_and_id(model):
    first, again = model.invoke([ASKED]), model.invoke([ASKED])
    assert (first.id, first.content) == (again.id, again.content) == (streamed(model, [ASKED]).id, first.content)
    seeded = {"temperature": 1.0, "seed": 7}
    assert model.invoke([ASKED], **seeded).id == model.invoke([ASKED], **seeded).id != first.id


def test_whatever_the_reply_depends_on_changes_its_id(model):
    version = model.opened_store.head("otto")
    model.remember([TOLD], "mila")
    calls: list[tuple[list[Any], dict[str, Any]]] = [
        ([ASKED], {}),
        ([ASKED], {"memory_version": "empty"}),
        ([ASKED], {"agent_id": "mila"}),
        ([ASKED], {"memory_scale": 0.5}),
        ([ASKED], {"max_tokens": 3}),
        ([ASKED], {"stop": ["x"]}),
        ([ASKED], {"tools": [TOOL]}),
        ([SystemMessage("Answer."), ASKED], {}),
        ([HumanMessage("Where is the rice?", id="another")], {}),
        ([HumanMessage("Where is the tank?", id="asked")], {}),
    ]
    ids = [model.invoke(messages, **options).id for messages, options in calls]
    assert len(set(ids)) == len(calls) and all(str(one).startswith("deltamem-") for one in ids)
    assert model.invoke([ASKED], memory_version=version).id == ids[0]
    model.remember([ASKED, AIMessage("In room seven.")], "otto")
    assert model.invoke([ASKED]).id not in ids


@pytest.mark.parametrize(
    ("message", "options"), [(ASKED, {"temperature": 1.0}), (HumanMessage("Where is the rice?"), {})]
)
def test_a_reply_that_cannot_be_told_from_another_gets_a_new_id(model, message, options):
    assert model.invoke([message], **options).id != model.invoke([message], **options).id


def test_calls_of_tools_keep_their_ids_with_their_reply(model):
    options: dict[str, Any] = {"tools": [TOOL], "tool_choice": "any", "max_tokens": 60}
    first, again, other = (
        model.invoke([ASKED], **options),
        streamed(model, [ASKED], **options),
        model.invoke([HumanMessage("Where is the tank?", id="tank")], **options),
    )
    assert first.tool_calls and [c["id"] for c in first.tool_calls] == [c["id"] for c in again.tool_calls]
    assert not {c["id"] for c in first.tool_calls} & {c["id"] for c in other.tool_calls}


def test_the_empty_memory_is_a_version(model, make_model):
    bare = make_model(use_memory=False).invoke([ASKED])
    for reads in (model, make_model(agent_id="otto", memory_version="empty")):
        reply = reads.invoke([ASKED], **({"memory_version": "empty"} if reads is model else {}))
        assert reply.content == bare.content and reply.response_metadata["memory_version"] is None
    assert model.invoke([ASKED]).response_metadata["memory_version"] == model.opened_store.head("otto")
