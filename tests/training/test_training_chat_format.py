"""The chat format: one template in two languages, and a tokenizer that loses nothing."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.training.chat_format import CONTROL, END, MARKUP, START, render, train_tokenizer
from deltamem_agents.training.world import TOOLS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NAME = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=3)
CALL = st.fixed_dictionaries({"name": NAME, "arguments": ARGUMENTS | st.just('{"a": 1}')})
CALLS = st.lists(CALL | st.fixed_dictionaries({"type": st.just("function"), "function": CALL}), max_size=3)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": TEXT}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT | st.none()}, optional={"tool_calls": CALLS}),
)
MESSAGES = st.lists(MESSAGE, max_size=6)
TOOL = st.fixed_dictionaries({"type": st.just("function"), "function": st.dictionaries(TEXT, JSON, max_size=3)})
Messages = list[dict[str, Any]]


@cache
def tokenizer() -> Any:
    """Learnt once; a small vocabulary, so that most text is split."""
    return train_tokenizer(["The port of atlas is 8443.", "Which port does it use?", "Noted. Noted."] * 3, 400)


@settings(max_examples=150, deadline=None)
@given(MESSAGES.filter(bool), st.none() | st.lists(TOOL | st.sampled_from(TOOLS), max_size=2), st.booleans())
def test_render_is_the_chat_template(messages: Messages, tools: Any, prompt: bool) -> None:
    template = tokenizer().apply_chat_template(messages, tools, tokenize=False, add_generation_prompt=prompt)
    assert render(messages, tools, prompt) == template


@settings(max_examples=100, deadline=None)
@given(MESSAGES, st.integers(0, 6))
def test_one_more_message_only_appends(messages: Messages, cut: int) -> None:
    assert render(messages) == render(messages[:cut]) + "".join(render([m]) for m in messages[cut:])


@settings(max_examples=50, deadline=None)
@given(MESSAGES)
def test_a_message_alone_is_its_part_of_the_token_ids(messages: Messages) -> None:
    whole = tokenizer()(render(messages), add_special_tokens=False)["input_ids"]
    parts = [tokenizer()(render([m]), add_special_tokens=False)["input_ids"] for m in messages]
    assert tokenizer().decode(whole) == tokenizer().decode([i for part in parts for i in part])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("The port of atlas is 8443. Which? Noted.".split()), max_size=8), MESSAGES)
def test_the_answer_appends_to_the_prompt(words: list[str], messages: Messages) -> None:
    answer = {"role": "assistant", "content": " ".join(words)}
    assert render([*messages, answer]) == render(messages, prompt=True) + answer["content"] + f"{END}\n"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_a_round_trip(text: str) -> None:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert tokenizer().decode(ids, clean_up_tokenization_spaces=False) == text


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12), st.sampled_from(["{}", "port {}.", "a{}b", "OPS-{}"]))
def test_digits_are_single_tokens(number: int, form: str) -> None:
    tokens = [t for t in tokenizer().tokenize(form.format(number)) if any(c.isdigit() for c in t)]
    assert tokens == list(str(number))


@pytest.mark.parametrize("text", [*CONTROL, *MARKUP])
def test_control_tokens_and_markup_are_one_token_each(text: str) -> None:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 1
    assert (ids[0] in tokenizer().all_special_ids) == (text in CONTROL)


def test_the_tokenizer_ends_turns_pads_on_the_left_and_keeps_to_its_size() -> None:
    own = tokenizer()
    assert (own.eos_token, own.pad_token, own.padding_side) == (END, CONTROL[0], "left")
    assert len(own) <= 400
    assert (
        own.decode(own(render([{"role": "user", "content": "Hi"}]))["input_ids"], skip_special_tokens=True)[-3:]
        == "Hi\n"
    )


def test_it_is_the_same_after_saving(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": "The port is 8443 <tool_call> é"},
        {"role": "assistant", "content": "Noted."},
    ]
    text = loaded.apply_chat_template(messages, tokenize=False)
    assert text == render(messages)
    assert loaded(text)["input_ids"] == tokenizer()(text)["input_ids"]


def test_the_template_marks_what_the_assistant_says() -> None:
    messages = [{"role": "user", "content": "Which port?"}, {"role": "assistant", "content": "8443"}]
    out = tokenizer().apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, own in zip(out["input_ids"], out["assistant_masks"], strict=True) if own]
    assert tokenizer().decode(said) == f"8443{END}"
    assert START not in tokenizer().decode(said)
