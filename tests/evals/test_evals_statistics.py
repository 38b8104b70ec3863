"""Intervals agree with what can be computed by hand, and obey what must hold for any scores."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals.statistics import bootstrap, difference, score_of, summary

SCORES = st.lists(st.tuples(st.floats(-1, 1), st.sampled_from("abcde")), min_size=1, max_size=30)


def line(agent: str, example: str, question: str, score: float, group: str = "g") -> dict[str, Any]:
    return {
        "benchmark": "B",
        "agent": agent,
        "example": example,
        "question": question,
        "group": group,
        "source": "s",
        "competency": "c",
        "scores": {"em": score, "f1": score / 2},
        "headline": "em",
    }


def test_of_independent_scores_the_interval_is_that_of_the_binomial() -> None:
    # 200 of 400, an example each: the binomial's standard deviation is 0.025, 1.96 of them 0.049
    found = bootstrap([0.0, 1.0] * 200, [str(i) for i in range(400)])
    assert (found.mean, found.count, found.clusters) == (0.5, 400, 400)
    assert found.low == pytest.approx(0.451, abs=0.004)
    assert found.high == pytest.approx(0.549, abs=0.004)


def test_questions_of_one_example_count_as_one_draw() -> None:
    # Two examples, all right and all wrong: resamples are 0, 1/2 and 1 with probabilities 1/4, 1/2, 1/4.
    found = bootstrap([1.0] * 50 + [0.0] * 50, ["a"] * 50 + ["b"] * 50)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    assert bootstrap([1.0] * 50 + [0.0] * 50, [str(i) for i in range(100)]).low > 0.35


def test_examples_weigh_by_their_questions() -> None:
    assert bootstrap([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]).mean == 0.25
    # 10 a's and 10 b's of three: P(no b drawn) = 2^-20, so that the ends are near the mean and not at 0 and 1
    scores, names = [], []
    for i in range(10):
        scores += [1.0, 0.0, 0.0, 0.0]
        names += [f"a{i}", f"b{i}", f"b{i}", f"b{i}"]
    found = bootstrap(scores, names)
    assert 0.05 < found.low < 0.25 < found.high < 0.6


def test_one_example_has_its_mean_as_interval() -> None:
    found = bootstrap([0.0, 1.0, 1.0], ["a"] * 3)
    assert found.low == pytest.approx(2 / 3) == found.high


def test_the_same_seed_gives_the_same_interval() -> None:
    scores, names = [i * 37 % 101 / 101 for i in range(40)], [str(i // 2) for i in range(40)]
    assert bootstrap(scores, names) == bootstrap(scores, names)
    assert bootstrap(scores, names) != bootstrap(scores, names, seed=1)


@given(SCORES)
def test_the_interval_lies_among_the_scores(drawn: list[tuple[float, str]]) -> None:
    scores, names = [s for s, _ in drawn], [n for _, n in drawn]
    found = bootstrap(scores, names, resamples=200)
    assert min(scores) <= found.low <= found.high <= max(scores)


@given(SCORES, st.floats(-5, 5))
def test_shifted_scores_have_a_shifted_interval(drawn: list[tuple[float, str]], shift: float) -> None:
    scores, names = [s for s, _ in drawn], [n for _, n in drawn]
    found = bootstrap(scores, names, resamples=200)
    moved = bootstrap([s + shift for s in scores], names, resamples=200)
    ends = (found.mean + shift, found.low + shift, found.high + shift)
    assert (moved.mean, moved.low, moved.high) == pytest.approx(ends, abs=1e-9)


@given(SCORES)
def test_the_order_of_the_scores_changes_nothing(drawn: list[tuple[float, str]]) -> None:
    found = bootstrap([s for s, _ in drawn], [n for _, n in drawn], resamples=200)
    back = bootstrap([s for s, _ in drawn[::-1]], [n for _, n in drawn[::-1]], resamples=200)
    assert (back.mean, back.low, back.high) == pytest.approx((found.mean, found.low, found.high), abs=1e-9)


@pytest.mark.parametrize(("scores", "names"), [([], []), ([1.0], []), ([float("nan")], ["a"]), ([float("inf")], ["a"])])
def test_what_has_no_interval_is_refused(scores: list[float], names: list[str]) -> None:
    with pytest.raises(DeltaMemError, match="scores in"):
        bootstrap(scores, names)


def test_a_difference_is_paired_question_by_question() -> None:
    # Scores vary between 0 and 0.9, the difference is 0.1 always: pairing takes all of the variance out.
    first = [line("x", str(i), f"{i}/q", i % 10 / 10 + 0.1) for i in range(30)]
    second = [line("y", str(i), f"{i}/q", i % 10 / 10) for i in reversed(range(30))]
    found = difference(first, second)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert difference(second, first).mean == pytest.approx(-0.1)
    assert difference(first, second, "f1").mean == pytest.approx(0.05)
    with pytest.raises(DeltaMemError, match="29/q"):
        difference(first[:-1], second)


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(DeltaMemError, match=r"'rouge'.*\['em', 'f1'\]"):
        score_of(line("x", "e", "q", 1.0), "rouge")


def test_a_summary_has_rows_for_benchmark_agent_and_group(tmp_path: Path) -> None:
    (tmp_path / "B").mkdir()
    lines = [line("x", "e0", "q0", 1.0, "a"), line("x", "e0", "q1", 0.0, "b"), line("x", "e1", "q2", 1.0, "b")]
    (tmp_path / "B" / "x.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"cut')
    rows = summary(tmp_path, resamples=500)
    got = [(r["benchmark"], r["agent"], r["group"], r["questions"], r["examples"]) for r in rows]
    assert got == [("B", "x", "", 3, 2), ("B", "x", "a", 1, 1), ("B", "x", "b", 2, 2)]
    assert [r["mean"] for r in rows] == pytest.approx([2 / 3, 1.0, 0.5])
    assert (rows[2]["low"], rows[2]["high"]) == (0.0, 1.0)
    assert [r["group"] for r in summary(tmp_path, by="competency", resamples=10)] == ["", "c"]
    assert summary(tmp_path, metric="f1", resamples=10)[1]["mean"] == 0.5


def test_a_summary_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaMemError, match="run the benchmark first"):
        summary(tmp_path)
    with pytest.raises(DeltaMemError, match="'colour'"):
        summary(tmp_path, by="colour")
