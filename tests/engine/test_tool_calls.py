"""Tool calls in replies: valid ones, malformed ones, cut ones; nothing is lost, whatever the pieces."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.engine.tool_calls import ReplySplitter, forced_names

GOOD = '<tool_call>\n{"name": "look_up", "arguments": {"item": "rice"}}\n</tool_call>'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def split(text, size=None):
    splitter = ReplySplitter()
    pieces = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
    said = "".join(splitter.feed(piece) for piece in pieces) + splitter.finish()
    return said, splitter.calls, splitter.invalid


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.dictionaries(st.text() | st.just("</tool_call>"), VALUES | st.just("</tool_call><tool_call>"), max_size=3),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_arguments(name, arguments, size, ascii_only):
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only)
    said, calls, invalid = split(f"See:\n<tool_call>\n{body}\n</tool_call>\n<tool_call>{body}</tool_call> done", size)
    assert said == "See:\ndone" and not invalid
    assert [(c["name"], c["arguments"]) for c in calls] == [(name, arguments)] * 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "a"}', '"', " ", "\n", "x", "<", "{"])))
def test_pieces_do_not_matter(parts):
    text = "".join(parts)
    whole = split(text)
    for size in (1, 2, 5):
        said, calls, invalid = split(text, size)
        assert said == whole[0]
        assert [c["name"] for c in calls] == [c["name"] for c in whole[1]]
        assert [c["arguments"] for c in invalid] == [c["arguments"] for c in whole[2]]


@pytest.mark.parametrize(
    ("body", "reason", "name"),
    [
        ('{"name": "f", "arguments": {', "not valid JSON", "f"),
        ('{"name": "f", "arguments": [1]}', "must be a JSON object", "f"),
        ('{"arguments": {}}', '"name"', None),
        ("[]", '"name"', None),
        ('{"name": "f", "arguments": {"x": NaN}}', "NaN is not JSON", "f"),
        ("[" * 100_000, "nested too deeply", None),
    ],
)
def test_malformed_calls_are_kept_with_the_reason(body, reason, name):
    said, calls, invalid = split(f"A <tool_call>{body}</tool_call> B {GOOD}")
    assert said == "A\nB"
    assert [c["name"] for c in calls] == ["look_up"]
    assert invalid[0]["arguments"] == body and reason in invalid[0]["error"] and invalid[0]["name"] == name


def test_a_reply_that_ends_inside_a_call():
    said, calls, invalid = split('<tool_call>{"name": "f", "arguments": {"a"')
    assert not said and not calls and "ended before" in invalid[0]["error"]
    assert split('<tool_call>{"name": "f"}')[1][0]["arguments"] == {}


def test_arguments_as_text_and_by_another_name():
    assert split('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>')[1][0]["arguments"] == {"a": 1}
    assert split('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>')[1][0]["arguments"] == {"a": 1}


def test_markup_is_held_back_until_it_is_certain():
    splitter = ReplySplitter()
    assert splitter.feed("5 <tool") == "5"
    assert splitter.feed("box") == " <toolbox"
    assert splitter.feed(" <tool_call") == ""
    assert splitter.finish() == " <tool_call"
    assert ReplySplitter(active=False).feed(GOOD) == GOOD


@pytest.mark.parametrize("size", [1, 7, None])
def test_a_single_call_is_the_last_thing_that_is_taken(size):
    for first in (GOOD, "<tool_call>[]</tool_call>"):
        splitter = ReplySplitter(single=True)
        text = f"See: {first} and {GOOD} more"
        pieces = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
        assert "".join(splitter.feed(piece) for piece in pieces) + splitter.finish() == "See:"
        assert splitter.over and len(splitter.calls) + len(splitter.invalid) == 1


def test_forced_names():
    tools = [{"type": "function", "function": {"name": "a"}}, {"name": "b"}]
    assert forced_names(tools, None) == forced_names(tools, "auto") == []
    assert forced_names(tools, "any") == forced_names(tools, "required") == ["a", "b"]
    assert forced_names(tools, "b") == ["b"]
    for choice in ("any", "c"):
        with pytest.raises(ValueError):
            forced_names([], choice)
