"""Metrics of short answers: every figure here is counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals import metrics
from deltamem_agents.evals.metrics import (
    all_inside,
    best_metrics,
    exact_match,
    f1,
    normalise,
    parse_answer,
    recall_at,
    require,
    rouge,
    sentences,
    share_inside,
    substring_exact_match,
)


def test_normalised_text() -> None:
    assert normalise("  The Cat's  hat, an old-fashioned one. A!") == "cats hat oldfashioned one"


@pytest.mark.parametrize(
    ("said", "answers", "wanted"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], 1.0),
        ("Eiffel Tower in Paris", ["eiffel tower"], 0.0),
        ("Rome", ["Paris", "rome!"], 1.0),
    ],
)
def test_exact_match(said: str, answers: list[str], wanted: float) -> None:
    assert exact_match(said, answers) == wanted


@pytest.mark.parametrize(
    ("said", "answers", "wanted"),
    [
        ("It is the Eiffel Tower, in Paris.", ["Eiffel tower"], 1.0),
        ("Eiffel", ["Eiffel tower"], 0.0),
        ("It is Rome.", ["Paris", "Rome"], 1.0),
    ],
)
def test_substring_exact_match(said: str, answers: list[str], wanted: float) -> None:
    assert substring_exact_match(said, answers) == wanted


@pytest.mark.parametrize(
    ("said", "answers", "wanted"),
    [
        ("red red car", ["red car blue"], 2 / 3),  # red, car in common: 2 of 3 said, 2 of 3 right
        ("big red car", ["car"], 0.5),  # 1 of 3, 1 of 1: 2 * 1 / (3 + 1)
        ("tree", ["car"], 0.0),
        ("", ["car"], 0.0),
        ("yes it is", ["yes"], 0.0),
        ("no", ["no way"], 0.0),
        ("Yes.", ["yes"], 1.0),
        ("green car", ["blue house", "green car"], 1.0),
    ],
)
def test_f1(said: str, answers: list[str], wanted: float) -> None:
    assert f1(said, answers) == pytest.approx(wanted)


def test_rouge() -> None:
    # Longest common subsequence "cat on mat", stems: 3 of 4 said, 3 of 6 right.
    scores = rouge("cats on green mats", ["one cat sat on two mats"])
    assert scores["rougeL_recall"] == pytest.approx(3 / 6)
    assert scores["rougeL_f1"] == pytest.approx(2 * 3 / (4 + 6))
    assert rouge("blue", ["red", "blue"])["rougeL_f1"] == 1.0
    # By lines, the union of what each right line has in common: both words; as one text, one of them.
    assert rouge("beta\nalpha", ["alpha\nbeta"])["rougeLsum_f1"] == 1.0
    assert rouge("beta\nalpha", ["alpha\nbeta"])["rougeL_f1"] == 0.5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I think.\nANSWER:  Rome \nOr Paris.", "Rome"),
        ("\nRome\nor Paris", "Rome"),
        ("Answer: a. Answer: b", "a. Answer: b"),
        ("", ""),
    ],
)
def test_what_counts_as_the_answer(text: str, wanted: str) -> None:
    assert parse_answer(text) == wanted
    assert parse_answer("So: Label: 7\nAnswer: 8", ("label:", "answer:")) == "7"


def test_the_better_of_the_whole_text_and_the_parsed_answer() -> None:
    scores = best_metrics("Reasons.\nAnswer: Rome", ["Rome"])
    assert (scores["exact_match"], scores["f1"], scores["rougeL_f1"]) == (1.0, 1.0, 1.0)
    only_whole = best_metrics("Answer: Paris\nNo, Rome", ["Rome"])
    assert (only_whole["exact_match"], only_whole["substring_exact_match"]) == (0.0, 1.0)


def test_answers_inside() -> None:
    assert share_inside("Values 12 and AB", ["12", "ab", "99", "7"]) == 0.5
    assert all_inside("Values 12 and AB", ["12", "ab"]) == 1.0
    assert all_inside("Values 12 and AB", ["12", "99"]) == 0.0


def test_recall_among_the_first() -> None:
    assert recall_at(["a", "b", "c"], ["c", "x"], 2) == 0.0
    assert recall_at(["a", "b", "c"], ["c", "x"], 3) == 0.5
    assert recall_at(["a"], ["a", "a"], 1) == 1.0


def test_sentences_end_where_they_should() -> None:
    text = 'He said "Stop!" Then he left. At 3.5 km, e.g. here, it rained.\n\nlabel: 4\nNext? 5 more.'
    assert sentences(text) == [
        'He said "Stop!" ',
        "Then he left. ",
        "At 3.5 km, e.g. here, it rained.\n\n",
        "label: 4\n",
        "Next? ",
        "5 more.",
    ]


@given(st.text(alphabet="aB. !?\n\"'。”"))
def test_sentences_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text
    assert "" not in sentences(text)


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_scores_are_shares(said: str, answers: list[str]) -> None:
    for metric in (exact_match, substring_exact_match, f1, share_inside):
        assert 0.0 <= metric(said, answers) <= 1.0
        assert metric(said, answers) == metric(said, answers[::-1])
    assert exact_match(answers[0], answers) == 1.0


def test_no_right_answer_is_an_error() -> None:
    for wrong in ([], "Rome"):
        with pytest.raises(DeltaMemError, match="at least one right answer"):
            exact_match("Rome", wrong)


def test_a_missing_library_is_named_with_its_remedy() -> None:
    with pytest.raises(DeltaMemError, match=r'ROUGE needs no_such_thing .*"deltamem-agents\[evals\]"'):
        require("no_such_thing.part", "ROUGE")
    assert metrics.require("json", "x").loads("1") == 1
