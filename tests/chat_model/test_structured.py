"""Structured output on a random backbone, which by itself would never write JSON."""

import json
from pathlib import Path

import pytest
from jsonschema import validate
from langchain_core.messages import HumanMessage
from pydantic import BaseModel, Field, RootModel
from tiny import build_adapter_folder
from typing_extensions import TypedDict

TOLD = HumanMessage("The rice is in room seven.")


@pytest.fixture(scope="module")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("wide"), window=2048)  # schemas are long in such small tokens


class Place(BaseModel):
    """Where something is."""

    item: str
    room: int = Field(ge=1, le=9)
    doors: list[str] = Field(default_factory=list, max_length=2)


class Door(TypedDict):
    """A door."""

    name: str
    open: bool


def look_up(item: str, count: int = 1) -> str:
    """Look something up."""
    return item * count


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_replies_follow_the_schema(make_model, method):
    model = make_model(agent_id="otto", remember=False, max_tokens=96)
    for seed in range(5):
        place = model.with_structured_output(Place, method=method, temperature=1.5, seed=seed).invoke([TOLD])
        assert isinstance(place, Place) and 1 <= place.room <= 9
        door = model.with_structured_output(Door, method=method, temperature=1.5, seed=seed).invoke([TOLD])
        assert set(door) == {"name", "open"} and isinstance(door["open"], bool)
        schema = Place.model_json_schema()
        validate(model.with_structured_output(schema, method=method, temperature=1.5, seed=seed).invoke([TOLD]), schema)


class Link(BaseModel):
    """A thing that may hold another."""

    number: int
    next: "Link | None" = None


STRING = {"type": "string", "maxLength": 9}
WHOLE = [
    {"title": "Map", "type": "object", "additionalProperties": {"type": "integer", "maximum": 99}, "minProperties": 1},
    {
        "title": "Both",
        "allOf": [
            {"type": "object", "properties": {"a": STRING}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ],
    },
    {
        "title": "Either",
        "type": "object",
        "anyOf": [{"properties": {n: STRING}, "required": [n], "additionalProperties": False} for n in "ab"],
    },
    {
        "title": "Beside",
        "type": "object",
        "properties": {"a": STRING},
        "required": ["a"],
        "anyOf": [{"properties": {n: STRING}, "required": [n]} for n in "bc"],
    },
    {
        "title": "Elsewhere",
        "$ref": "#/$defs/P",
        "$defs": {"P": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    },
]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("schema", WHOLE, ids=lambda schema: schema["title"])
def test_schemas_without_properties_of_their_own(make_model, schema, method):
    model = make_model(agent_id="otto", remember=False, max_tokens=96, temperature=1.5)
    for seed in range(3):
        validate(model.with_structured_output(schema, method=method, seed=seed).invoke([TOLD]), schema)


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_models_that_refer_to_themselves(make_model, method):
    model = make_model(agent_id="otto", remember=False, max_tokens=96, temperature=1.5)
    found = [model.with_structured_output(Link, method=method, seed=seed).invoke([TOLD]) for seed in range(4)]
    assert all(isinstance(link, Link) for link in found)


def test_lists_are_no_arguments(make_model):
    numbers = RootModel[list[int]]
    model = make_model(agent_id="otto", remember=False, max_tokens=48, temperature=1.5)
    assert isinstance(model.with_structured_output(numbers, method="json_schema").invoke([TOLD]), numbers)
    with pytest.raises(ValueError, match="are an object, not 'array'"):
        model.with_structured_output(numbers)


def test_raw_replies_beside_what_was_parsed(make_model):
    model = make_model(agent_id="otto", remember=False, max_tokens=96)
    found = model.with_structured_output(Place, method="json_schema", include_raw=True).invoke([TOLD])
    assert found["parsed"] == Place(**json.loads(found["raw"].content)) and found["parsing_error"] is None
    stopped = model.with_structured_output(Place, method="json_schema", include_raw=True, stop=['"room"'])
    found = stopped.invoke([TOLD])
    assert found["parsed"] is None and found["parsing_error"] is not None


def test_json_mode_without_a_schema(make_model):
    model = make_model(agent_id="otto", remember=False, max_tokens=48, temperature=1.0)
    for seed in range(5):
        assert isinstance(model.with_structured_output(method="json_mode", seed=seed).invoke([TOLD]), dict)
        reply = model.invoke([TOLD], response_format={"type": "json_object"}, seed=seed)
        assert isinstance(json.loads(reply.content), dict)


@pytest.mark.parametrize("streamed", [False, True])
def test_forced_calls_follow_the_tools_schema(make_model, streamed):
    model = make_model(agent_id="otto", remember=False, max_tokens=96, temperature=1.5)
    for choice in ("any", "look_up", {"type": "function", "function": {"name": "look_up"}}):
        bound = model.bind_tools([look_up, Place], tool_choice=choice, parallel_tool_calls=False)
        for seed in range(3):
            chunks = list(bound.stream([TOLD], seed=seed)) if streamed else [bound.invoke([TOLD], seed=seed)]
            reply = sum(chunks[1:], chunks[0])
            (call,) = reply.tool_calls
            assert not reply.invalid_tool_calls and reply.response_metadata["finish_reason"] == "tool_calls"
            assert call["name"] in (("look_up", "Place") if choice == "any" else ("look_up",))
            assert isinstance(call["args"]["item"], str)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", ["none", {"type": "none"}])
def test_no_tool_is_called_when_none_may_be(make_model, monkeypatch, choice, streamed):
    model = make_model(agent_id="otto", remember=False, max_tokens=16)
    plain = model.invoke([TOLD])
    bound = model.bind_tools([look_up], tool_choice=choice)
    chunks = list(bound.stream([TOLD])) if streamed else [bound.invoke([TOLD])]
    reply = sum(chunks[1:], chunks[0])
    assert not reply.tool_calls and not reply.invalid_tool_calls
    assert (reply.content, reply.usage_metadata) == (plain.content, plain.usage_metadata)  # not even told of them


def test_choices_in_other_forms(make_model):
    model = make_model(agent_id="otto", remember=False, max_tokens=96, temperature=1.5, seed=2)
    for choice in ({"type": "any"}, {"type": "tool", "name": "look_up"}, "required", True):
        assert model.bind_tools([look_up], tool_choice=choice).invoke([TOLD]).tool_calls
    for choice in ({"type": "function"}, {}, {"type": "tool", "name": "fly"}, "fly"):
        with pytest.raises(ValueError, match=r"names no tool|none of the tools"):
            model.bind_tools([look_up], tool_choice=choice)


def test_what_cannot_be_followed_is_refused(make_model):
    model = make_model(agent_id="otto", remember=False, max_tokens=96)
    with pytest.raises(ValueError, match='none of "function_calling"'):
        model.with_structured_output(Place, method="xml")
    with pytest.raises(ValueError, match="needs a schema"):
        model.with_structured_output()
    with pytest.raises(ValueError, match="is not known"):
        model.invoke([TOLD], response_format={"type": "yaml"})
    with pytest.raises(ValueError, match="allow more"):
        model.with_structured_output(Place, method="json_schema").invoke([TOLD], max_tokens=3)
