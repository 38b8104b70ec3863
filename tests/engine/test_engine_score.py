"""Scores of answers: the log-probabilities that the model gives them, alone and in any batch; and what memory adds."""

import pytest
import torch
from tiny import build_adapter_folder

from deltamem_agents.engine import load_engine
from deltamem_agents.engine import score as score_module
from deltamem_agents.engine.score import log_likelihoods, recall_scores
from deltamem_agents.errors import ContextOverflow, FingerprintMismatch, StateError

TOLD = {"role": "user", "content": "The rice is in room seven."}
QUESTION = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is the rice?"}]
ANSWERS = ["room seven", "the blue door, after the second bell", "", "tank", "In room seven, Mila: the report says so."]


@pytest.fixture(scope="module")
def told(engine):
    return engine.write(engine.new_state(), [TOLD])


@pytest.fixture(scope="module")
def embedded():
    return load_engine()


def by_hand(engine, answer, state):
    """Token by token: the sum over log_softmax of the whole sequence's logits."""
    prompt = engine.text.prompt(QUESTION)
    said = [*engine.text.plain(answer), engine.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids = torch.tensor([prompt + said])
    with torch.no_grad(), engine.reading(state):
        chances = engine.model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(float(chances[len(prompt) + i - 1, token]) for i, token in enumerate(said))


@pytest.mark.parametrize("with_memory", [True, False])
def test_likelihoods_are_the_models_own(engine, told, with_memory):
    state = told if with_memory else None
    expected = [by_hand(engine, answer, state) for answer in ANSWERS]
    assert log_likelihoods(engine, QUESTION, ANSWERS, state) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("name", "most"), [("ROWS", 2), ("TOKENS", 100), ("LOGITS", 1), ("ROWS", 1)])
def test_batches_change_nothing(engine, told, monkeypatch, name, most):
    whole = log_likelihoods(engine, QUESTION, ANSWERS * 2, told)
    monkeypatch.setattr(score_module, name, most)
    assert log_likelihoods(engine, QUESTION, ANSWERS * 2, told) == pytest.approx(whole, abs=1e-4)
    alone = [log_likelihoods(engine, QUESTION, [answer], told)[0] for answer in ANSWERS]
    assert whole == pytest.approx(alone * 2, abs=1e-4)


def test_batches_are_as_large_as_they_may_be(engine, monkeypatch):
    sizes = []
    handle = engine.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(score_module, "ROWS", 3)
    log_likelihoods(engine, QUESTION, ["tank"] * 7, None)
    assert log_likelihoods(engine, QUESTION, [], None) == []
    handle.remove()
    assert sizes == [3, 3, 1]


def test_memory_is_read_and_not_written(engine, told):
    before = {name: tensor.clone() for name, tensor in told.tensors.items()}
    scores = recall_scores(engine, QUESTION, ANSWERS, told)
    with_memory, without = (log_likelihoods(engine, QUESTION, ANSWERS, state) for state in (told, None))
    assert scores == pytest.approx([a - b for a, b in zip(with_memory, without, strict=True)], abs=1e-6)
    assert all(abs(score) > 1e-4 for score in scores)
    assert all(torch.equal(tensor, told.tensors[name]) for name, tensor in before.items())


def test_an_empty_memory_says_nothing(engine):
    assert recall_scores(engine, QUESTION, ANSWERS, engine.new_state()) == [0.0] * len(ANSWERS)


def test_control_tokens_in_answers_are_text(engine):
    [score] = log_likelihoods(engine, QUESTION, ["tank<|im_end|>"], None)
    assert score != pytest.approx(log_likelihoods(engine, QUESTION, ["tank"], None)[0], abs=1e-3)
    assert score == pytest.approx(by_hand(engine, "tank<|im_end|>", None), abs=1e-4)


def test_what_does_not_fit_is_refused(engine, told, tmp_path):
    with pytest.raises(ContextOverflow, match="512"):
        log_likelihoods(engine, QUESTION, ["tank", "the blue door " * 400], told)
    with pytest.raises(StateError, match="2 rows of state"):
        log_likelihoods(engine, QUESTION, ANSWERS, engine.new_state(2))
    other = load_engine(build_adapter_folder(tmp_path, seed=1), device="cpu")
    with pytest.raises(FingerprintMismatch):
        recall_scores(other, QUESTION, ANSWERS, told)


def test_a_thought_that_the_prompt_opens_is_closed(tmp_path):
    engine = load_engine(build_adapter_folder(tmp_path), device="cpu")
    plain = log_likelihoods(engine, QUESTION, ["tank"], None)
    template = engine.tokenizer.chat_template
    prompt = engine.tokenizer.decode(engine.text.prompt(QUESTION))
    begin = prompt[prompt.rindex("<|im_start|>") :]
    assert begin.rstrip("\n") == "<|im_start|>assistant"
    engine.tokenizer.chat_template = template + "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}"
    opened = log_likelihoods(engine, QUESTION, ["tank"], None)
    engine.tokenizer.chat_template = (
        template + "{%- if add_generation_prompt %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    )
    closed = log_likelihoods(engine, QUESTION, ["tank"], None)
    assert opened == pytest.approx(closed, abs=1e-4) != plain


def test_memory_speaks_for_what_it_was_told(embedded):
    state = embedded.write(embedded.new_state(), [{"role": "user", "content": "The port of atlas is 48213."}])
    others = ["51877", "10422", "90211", "33345", "48123", "77777", "20981", "64050", "15739", "48231"]
    scores = recall_scores(embedded, "What is the port of atlas?", ["48213", *others], state)
    assert scores[0] > 0 and scores[0] > max(scores[1:])
    empty = recall_scores(embedded, "What is the port of atlas?", ["48213", *others], embedded.new_state())
    assert empty == [0.0] * 11
