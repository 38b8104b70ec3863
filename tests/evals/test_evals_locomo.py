"""LoCoMo: what is told and asked of a conversation, and the F1 of each category, counted by hand."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals.contract import Example, Question
from deltamem_agents.evals.locomo import LoCoMo, multi_f1, stemmed_f1


def sample() -> dict[str, Any]:
    return {
        "sample_id": "talk-1",
        "conversation": {
            "speaker_a": "Ada",
            "speaker_b": "Ben",
            "session_10_date_time": "9:00 am on 3 June, 2030",
            "session_10": [{"speaker": "Ben", "dia_id": "D10:1", "text": "Bye"}],
            "session_2_date_time": "8:00 am on 2 June, 2030",
            "session_2": [
                {"speaker": "Ada", "dia_id": "D2:1", "text": "I keep bees."},
                {"speaker": "Ben", "dia_id": "D2:2", "text": "Look", "img_url": ["x"], "blip_caption": "a red boat"},
            ],
            "session_11_date_time": "a session without turns",
        },
        "qa": [
            {"question": "What do they own?", "answer": "bees, boats", "evidence": ["D2:1"], "category": 1},
            {"question": "When was that?", "answer": 2030, "evidence": [], "category": 2},
            {"question": "Is Ada patient?", "answer": "Yes; bees need it", "evidence": [], "category": 3},
            {"question": "What does Ada keep?", "answer": "bees", "evidence": ["D2:1"], "category": 4},
            {"question": "What does Ben keep?", "adversarial_answer": "bees", "evidence": ["D2:1"], "category": 5},
        ],
    }


def written(folder: Path, *samples: Any) -> Path:
    path = folder / "talks.json"
    path.write_text(json.dumps(samples))
    return path


def asked(path: Path, **options: Any) -> tuple[LoCoMo, Example, tuple[Question, ...]]:
    benchmark = LoCoMo(path, **options)
    (example,) = benchmark.examples()
    return benchmark, example, example.questions


def test_a_conversation_is_told_turn_by_turn_in_the_order_of_its_sessions(tmp_path: Path) -> None:
    _, example, _ = asked(written(tmp_path, sample()))
    assert [m["content"] for m in example.messages] == [
        'DATE: 8:00 am on 2 June, 2030\nAda said, "I keep bees."',
        'DATE: 8:00 am on 2 June, 2030\nBen said, "Look" and shared a red boat.',
        'DATE: 9:00 am on 3 June, 2030\nBen said, "Bye"',
    ]
    assert {(m["role"], m["sub_state"]) for m in example.messages} == {("user", "facts")}


def test_questions_of_each_category(tmp_path: Path) -> None:
    benchmark, example, questions = asked(written(tmp_path, sample()))
    assert [q.group for q in questions] == ["multi_hop", "temporal", "open_domain", "single_hop", "adversarial"]
    assert [q.answers[0] for q in questions[:4]] == ["bees, boats", "2030", "Yes", "bees"]
    assert ["DATE" in q.text for q in questions] == [False, True, False, False, False]
    assert len({q.id for q in questions}) == 5
    assert (benchmark.name, benchmark.headline(example)) == ("LoCoMo", "f1")


def test_choice_of_questions(tmp_path: Path) -> None:
    path = written(tmp_path, sample())
    assert [q.group for q in asked(path, categories=[2, 5])[2]] == ["temporal", "adversarial"]
    assert len(asked(path, max_questions=3)[2]) == 3
    assert len(list(LoCoMo(written(tmp_path, sample(), sample() | {"sample_id": "b"}), max_examples=1).examples())) == 1
    with pytest.raises(DeltaMemError, match=r"unknown category 6 .*adversarial"):
        LoCoMo(path, categories=[6])


def test_the_order_of_choices_is_drawn_from_the_seed(tmp_path: Path) -> None:
    entry = sample()["qa"][4]
    path = written(tmp_path, sample() | {"qa": [entry] * 60})
    orders = [[q.metadata["choices"]["a"] for q in asked(path, seed=seed)[2]] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert 15 < orders[0].count("bees") < 45
    question = asked(path)[2][0]
    assert all(f"({letter}) {text}" in question.text for letter, text in question.metadata["choices"].items())
    assert sorted(question.metadata["choices"].values()) == ["Not mentioned in the conversation", "bees"]


def test_f1_of_stems() -> None:
    # Stems keep, run, dog against keep, dog: 2 in common of 3 and 2.
    assert stemmed_f1("Keeping, and running the dogs", "keeps a dog") == pytest.approx(2 * 2 / (3 + 2))
    assert stemmed_f1("cat", "dog") == 0.0


def test_f1_of_several_items() -> None:
    # "red boat": best 2 * 1 / (1 + 2) by "boats"; "bees": 1 by "bee"; "hat": 0.
    assert multi_f1("boats, bee", "red boat, bees, hat") == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_scores_follow_the_category(tmp_path: Path) -> None:
    benchmark, example, questions = asked(written(tmp_path, sample()))
    multi, temporal, open_domain, single, _ = questions
    score = lambda question, answer: benchmark.score(example, question, answer)["f1"]  # noqa: E731
    assert score(multi, "a boat") == 0.5
    assert score(temporal, "in 2030") == pytest.approx(2 / 3)
    assert score(open_domain, "yes") == 1.0
    assert score(single, "bees, boats") == pytest.approx(2 / 3)


def test_adversarial_answers(tmp_path: Path) -> None:
    path = written(tmp_path, sample())
    benchmark, example, questions = asked(path)
    question = questions[4]
    right = next(letter for letter, text in question.metadata["choices"].items() if text != "bees")
    wrong = "ab".replace(right, "")
    for answer, wanted in {
        f"({right})": 1.0,
        right.upper(): 1.0,
        f" {right}). ": 1.0,
        f"({wrong})": 0.0,
        "It is not mentioned.": 1.0,
        "No information available": 1.0,
        "bees": 0.0,
        "I don't know.": 0.0,
    }.items():
        assert benchmark.score(example, question, answer) == {"f1": wanted}, answer
    lenient = LoCoMo(path, accept_i_dont_know=True)
    assert lenient.name == "LoCoMo-idk"
    assert lenient.score(example, question, "I don’t know.") == {"f1": 1.0}
    assert lenient.score(example, question, f"({wrong})") == {"f1": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_id": None}, "sample 1, sample_id: expected a text"),
        ({"conversation": {}}, "sample 1, conversation: expected an object with session_1"),
        ({"conversation": {"session_1": []}}, r"session_1_date_time: expected a text"),
        ({"conversation": {"session_1_date_time": "x", "session_1": 3}}, r"session_1: expected a list of turns"),
        ({"conversation": {"session_1_date_time": "x", "session_1": [{"speaker": "A"}]}}, r"session_1\[0\]: expected"),
        ({"qa": None}, "qa: expected a list"),
        ({"qa": [{"question": "Who?", "category": 9}]}, r"qa\[0\]\.category: expected one of \[1, 2, 3, 4, 5\]"),
        ({"qa": [{"category": 1}]}, r"qa\[0\]\.question: expected a text"),
        ({"qa": [{"question": "Who?", "category": 1, "adversarial_answer": "x"}]}, r"qa\[0\]\.answer: expected"),
        ({"qa": [{"question": "Who?", "category": 5, "answer": "x"}]}, r"qa\[0\]\.adversarial_answer: expected"),
    ],
)
def test_a_damaged_sample_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, sample(), sample() | {"sample_id": "two"} | change)
    with pytest.raises(DeltaMemError, match=message) as error:
        LoCoMo(path)
    assert str(path) in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DeltaMemError, match=r"gone\.json: No such file .*snap-research/locomo"):
        LoCoMo(tmp_path / "gone.json")
    (tmp_path / "talks.json").write_text("{")
    with pytest.raises(DeltaMemError, match=r"talks\.json: not JSON"):
        LoCoMo(tmp_path / "talks.json")
    with pytest.raises(DeltaMemError, match="expected a list of samples"):
        LoCoMo(written(tmp_path))
    with pytest.raises(DeltaMemError, match="'talk-1' stands there twice"):
        LoCoMo(written(tmp_path, sample(), sample()))


@pytest.mark.skipif("LOCOMO_PATH" not in os.environ, reason="LOCOMO_PATH does not name locomo10.json")
def test_the_real_file() -> None:
    benchmark = LoCoMo(os.environ["LOCOMO_PATH"])
    examples = list(benchmark.examples())
    questions = [question for example in examples for question in example.questions]
    assert (len(examples), sum(len(example.messages) for example in examples)) == (10, 5882)
    assert Counter(question.metadata["category"] for question in questions) == {1: 282, 2: 321, 3: 96, 4: 841, 5: 446}
    assert {benchmark.score(examples[0], q, q.answers[0])["f1"] for q in questions} == {1.0}
