"""Reasoning: thoughts are taken out of replies, whatever the pieces; a constrained reply has none."""

import json

import pytest
from transformers import AutoTokenizer

from deltamem_agents.engine import Request
from deltamem_agents.engine.reasoning import ReasoningSplitter
from deltamem_agents.engine.reply import Row
from deltamem_agents.engine.text import ChatText

ASK = [{"role": "user", "content": "Where is the rice?"}]
TOOL = {"name": "look_up", "parameters": {"type": "object", "properties": {"item": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"item": "<think>"}}\n</tool_call>'


@pytest.fixture(params=["", "<think>\\n"])
def opened(request, engine, monkeypatch):
    """The template speaks of thoughts, and may begin one itself; gives what a reply has to begin one with."""
    template = engine.tokenizer.chat_template + "{#- <think> #}"
    if request.param:
        template += "{%- if add_generation_prompt %}{{- '" + request.param + "' }}{% endif %}"
    monkeypatch.setattr(engine.tokenizer, "chat_template", template)
    return "" if request.param else "<think>\n"


def script(monkeypatch, engine, text):
    ids = [*engine.tokenizer(text, add_special_tokens=False)["input_ids"], engine.tokenizer.eos_token_id]
    monkeypatch.setattr(Row, "forced", property(lambda self: True))
    monkeypatch.setattr(Row, "choose", lambda self, _: ids[len(self.tokens) % len(ids)])


def split(text, size, **options):
    splitter = ReasoningSplitter(**options)
    pieces = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
    found = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(thought for thought, _ in found), "".join(said for _, said in found)


@pytest.mark.parametrize("size", [None, 1, 2, 5])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nIn room\n 7? \n</think>\n\n In seven. \n", ("In room\n 7?", "In seven. \n")),
        ("A <think>b</think> c <think> d </think>\ne", ("b\nd", "A c e")),
        ("<think></think>x", ("", "x")),
        ("<think>never ends </thin", ("never ends </thin", "")),
        ("no thought </think> <thin", ("", "no thought </think> <thin")),
        (f"<think>{CALL}</think>{CALL}<think>x</think>", (f"{CALL}\nx", CALL)),
    ],
)
def test_thoughts_and_what_is_said(text, expected, size):
    assert split(text, size) == expected
    assert split(text, size, active=False) == ("", text)


def test_a_thought_that_the_prompt_has_begun():
    assert split("Hm. \n</think>\n\nSeven.", 1, inside=True) == ("Hm.", "Seven.")


def test_reasoning_is_no_text(engine, monkeypatch, opened):
    script(monkeypatch, engine, f"{opened}Stop! {CALL} Grüße 🙂\n</think>\n\nIn seven. {CALL}\nStop! More")
    (whole,) = engine.generate([ASK], tools=[TOOL], stop=["Stop!"], max_new_tokens=300)
    assert (whole.text, whole.finish_reason) == ("In seven.", "tool_calls")
    assert whole.reasoning == f"Stop! {CALL} Grüße 🙂"
    assert [call["arguments"] for call in whole.tool_calls] == [{"item": "<think>"}]
    chunks = list(engine.stream(ASK, tools=[TOOL], stop=["Stop!"], max_new_tokens=300))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert "".join(chunk.reasoning for chunk in chunks) == whole.reasoning == chunks[-1].generation.reasoning
    assert sum(bool(chunk.reasoning) for chunk in chunks) > 3


def test_a_thought_without_an_end(engine, monkeypatch, opened):
    script(monkeypatch, engine, f"{opened}I think and think")
    (whole,) = engine.generate([ASK])
    assert (whole.text, whole.reasoning) == ("", "I think and think")


def test_backbones_that_do_not_think(engine, monkeypatch):
    script(monkeypatch, engine, "<think>a</think>b")
    (whole,) = engine.generate([ASK])
    assert (whole.text, whole.reasoning) == ("<think>a</think>b", "")


def test_constrained_replies_have_no_thoughts(engine, opened):
    before = engine.tokenizer.decode(engine.text.prompt(ASK))
    rows = [
        Row(engine.text, Request(ASK, schema={"type": "object"}), engine.ends),
        Row(engine.text, Request(ASK, tools=[TOOL], tool_choice="look_up"), engine.ends),
    ]
    for row in rows:
        prompt = engine.tokenizer.decode(row.prompt)
        assert ("<think>\n\n</think>\n\n" in prompt) == before.endswith("<think>\n")
    requests = [Request(ASK, schema={"type": "object"}, temperature=1.5, seed=i, max_new_tokens=30) for i in range(6)]
    for generation in engine.generate_requests(requests):
        assert isinstance(json.loads(generation.text), dict) and not generation.reasoning


def test_marks_that_are_special_tokens(tiny_adapter):
    tokenizer = AutoTokenizer.from_pretrained(tiny_adapter / "backbone")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    text = ChatText(tokenizer)
    assert len(text.hidden.intersection(tokenizer("<think></think>", add_special_tokens=False)["input_ids"])) == 2
    row = Row(text, Request(ids=[5]), text.ends)
    row.fit(200)
    for token in tokenizer("<think>Seven?</think>\nSeven.", add_special_tokens=False)["input_ids"]:
        row.push(token)
    row.push(tokenizer.eos_token_id)
    assert (row.result().text, row.result().reasoning) == ("Seven.", "Seven?")
