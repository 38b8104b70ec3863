"""Constrained replies of a random model that would babble for ever: they are whole, whatever the schema and budget."""

import json
import sys
from typing import Literal

import pytest
from jsonschema import validate
from pydantic import BaseModel, Field

from deltamem_agents.engine import Request

ASK = [{"role": "user", "content": "Where is the rice?"}]


class Leg(BaseModel):
    room: int = Field(ge=1, le=40)
    note: str | None = None


class Trip(BaseModel):
    who: Literal["Otto", "Mila", "somebody whose name nobody knows"]
    legs: list[Leg]
    cost: float
    back: Leg | None
    tags: dict[str, int] = Field(default_factory=dict)


class Tree(BaseModel):
    name: str = Field(min_length=2, max_length=9)
    left: "Tree | None" = None
    children: list["Tree"] = Field(default_factory=list, max_length=2)


def an_object(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMAS = {
    "json mode": {"type": "object"},
    "trip": Trip.model_json_schema(),
    "tree": Tree.model_json_schema(),
    "nested": an_object(a=an_object(b=an_object(c={"type": "array", "items": {"type": "string"}, "minItems": 1}))),
    "any of": an_object(x={"anyOf": [{"type": "integer"}, an_object(y={"type": "string"}), {"type": "null"}]}),
    "numbers": an_object(n={"type": "number"}, i={"type": "integer", "minimum": 100}, b={"type": "boolean"}),
    "optional": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}},
    "pattern": an_object(
        mail={"type": "string", "pattern": "^[a-z]+@[a-z]+\\.org$"}, day={"type": "string", "format": "date"}
    ),
    "list": {"type": "array", "items": {"enum": ["rice", "a tank that is full", 7, None]}, "minItems": 2},
    "additional": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}},
    "text": {"type": "string", "minLength": 12},
    "dots": {"type": "string", "pattern": "^([a-z]+\\.){3}[A-Z]{2,4}$"},
    "formats": an_object(at={"type": "string", "format": "date-time"}, to={"type": "string", "format": "email"}),
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "string"}], "minItems": 2, "maxItems": 3},
}
TOOLS = [
    {"type": "function", "function": {"name": "plan", "parameters": Trip.model_json_schema()}},
    {"type": "function", "function": {"name": "plant", "parameters": Tree.model_json_schema()}},
    {"name": "pause"},
]
PARAMETERS = {"plan": Trip.model_json_schema(), "plant": Tree.model_json_schema(), "pause": {"type": "object"}}


def shortest(engine, schema):
    """Tokens of the shortest reply, as the error for too small a budget says."""
    with pytest.raises(ValueError, match=r"shortest reply .* has \d+ tokens.* room for 1 ") as raised:
        engine.generate([ASK], schema=schema, max_new_tokens=1)
    return int(str(raised.value).split(" has ")[1].split()[0])


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_reply_conforms_and_is_whole(engine, name):
    schema = SCHEMAS[name]
    least = shortest(engine, schema)
    requests = [
        Request(ASK, max_new_tokens=least + more, temperature=1.5, top_p=top_p, seed=seed, schema=schema)
        for seed in range(4)
        for more in (0, 1, 3, 9, 24)
        for top_p in (None, 0.9)
    ]
    for request, generation in zip(requests, engine.generate_requests(requests), strict=True):
        validate(json.loads(generation.text), schema)
        assert generation.finish_reason == "stop" and generation.completion_tokens <= request.max_new_tokens
    validate(json.loads(engine.generate([ASK], schema=schema, max_new_tokens=least + 9)[0].text), schema)


def test_replies_are_short_when_they_must_be(engine):
    assert shortest(engine, SCHEMAS["json mode"]) <= 3
    assert shortest(engine, an_object(a={"enum": ["the report of the room", "rice"]})) < shortest(
        engine, an_object(a={"enum": ["the report of the room"]})
    )
    few = {"type": "string", "minLength": 3}
    assert shortest(engine, few) < shortest(engine, {"type": "string", "minLength": 40})
    for kind, short in (("integer", '{"n":100}'), ("number", '{"n":100}')):
        assert shortest(engine, an_object(n={"type": kind, "minimum": 100})) <= len(short) + 1


@pytest.mark.parametrize("choice", ["any", "plan", "plant", "pause"])
@pytest.mark.parametrize("parallel", [False, True])
def test_forced_calls_conform(engine, choice, parallel):
    ids = engine.text.prompt(ASK)  # the schemas themselves would not fit into the window
    requests = [
        Request(
            ids=ids,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            max_new_tokens=96,
            temperature=1.5,
            seed=seed,
        )
        for seed in range(8)
    ]
    for generation in engine.generate_requests(requests):
        call = generation.tool_calls[0]
        assert call["name"] in (PARAMETERS if choice == "any" else (choice,))
        validate(call["arguments"], PARAMETERS[call["name"]])
        if not parallel:
            assert (generation.text, generation.finish_reason, len(generation.tool_calls)) == ("", "tool_calls", 1)
            assert not generation.invalid_tool_calls
    with pytest.raises(ValueError, match=r"shortest reply .* has \d+ tokens.* room for 2 "):
        engine.generate_requests([Request(ids=ids, tools=TOOLS, tool_choice=choice, max_new_tokens=2)])


def test_json_or_calls(engine):
    ids = engine.text.prompt(ASK)
    options = {"ids": ids, "tools": TOOLS, "schema": {"type": "object"}, "max_new_tokens": 90, "temperature": 1.5}
    kinds = set()
    for parallel in (True, False):
        requests = [Request(seed=seed, parallel_tool_calls=parallel, **options) for seed in range(12)]
        for generation in engine.generate_requests(requests):
            kinds.add(bool(generation.tool_calls))
            assert not generation.invalid_tool_calls and generation.finish_reason in ("stop", "tool_calls")
            for call in generation.tool_calls:
                validate(call["arguments"], PARAMETERS[call["name"]])
            assert bool(generation.text) != bool(generation.tool_calls)
            assert parallel or len(generation.tool_calls) <= 1
            if generation.text:
                assert isinstance(json.loads(generation.text), dict)
    assert kinds == {True, False}
    (free,) = engine.generate_requests([Request(tool_choice="none", seed=1, **options)])
    assert isinstance(json.loads(free.text), dict)
    with pytest.raises(ValueError, match="one of them"):
        engine.generate_requests([Request(tool_choice="any", **options)])


def test_samples_depend_on_the_seed_not_on_the_batch(engine):
    requests = [
        Request(ASK, max_new_tokens=40, temperature=1.5, seed=i % 3, schema=schema)
        for i, schema in enumerate([SCHEMAS["trip"], None, SCHEMAS["list"], SCHEMAS["trip"], {"type": "object"}])
    ]
    together = engine.generate_requests(requests)
    assert together == [engine.generate_requests([request])[0] for request in requests]
    chunks = list(engine.stream_request(requests[0]))
    assert "".join(chunk.text for chunk in chunks) == together[0].text and chunks[-1].generation == together[0]
    assert len({g.text for g in engine.generate([ASK] * 4, schema={"type": "string"}, temperature=1.0)}) > 1


def test_a_schema_and_the_end_of_the_window(engine):
    nearly = [{"role": "user", "content": "7 " * 242}]
    room = engine.max_length - len(engine.text.prompt(nearly))
    (generation,) = engine.generate([nearly], schema={"type": "object"}, temperature=1.5, max_new_tokens=256)
    assert isinstance(json.loads(generation.text), dict) and generation.completion_tokens <= room
    with pytest.raises(ValueError, match=f"room for {room} .*window of {engine.max_length}"):
        engine.generate([nearly], schema={"type": "string", "minLength": 400}, max_new_tokens=256)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"$ref": "#/$defs/gone"}, "gone"),
        ({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}, "refers to itself"),
        ({"default": {1, 2}}, "no JSON"),
    ],
)
def test_schemas_that_cannot_be_followed(engine, schema, reason):
    with pytest.raises(ValueError, match=reason):
        engine.generate([ASK], schema=schema)
    with pytest.raises(ValueError, match=reason):
        engine.generate([ASK], tools=[{"name": "f", "parameters": an_object(x=schema)}], tool_choice="f")


def test_without_llguidance(engine, monkeypatch):
    from deltamem_agents.engine.grammar import Grammars

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match="pip install llguidance"):
        Grammars(engine.text, engine.ends)
