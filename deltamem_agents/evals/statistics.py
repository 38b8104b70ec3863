"""Intervals for means of scores, and for differences of two agents.

The questions of one example are asked of one state (or one context): what went wrong while it was written goes wrong
for all of them, and they are not independent. So examples are drawn anew, with all of their questions, not questions:
the cluster bootstrap (Davison & Hinkley, Bootstrap Methods and their Application, 1997, 3.8). Intervals are percentile
intervals of 95 %, from 10,000 draws of a seeded generator. Of a single example there is no interval but the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeltaMemError
from .runner import read_answers

LEVEL = 0.95
RESAMPLES = 10_000
CHUNK = 500  # resamples drawn at once


@dataclass(frozen=True)
class Interval:
    """A mean, and where it lies in 95 % of the resamples.

    Attributes:
        count: scores.
        clusters: examples that they come from; with few of them the interval is too narrow.
    """

    mean: float
    low: float
    high: float
    count: int
    clusters: int


def bootstrap(
    scores: Sequence[float], clusters: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of ``scores`` and its interval; ``clusters[i]`` is the example that ``scores[i]`` belongs to.

    Raises:
        DeltaMemError: no scores, not as many clusters as scores, a score that is no number, or no resamples.
    """
    values = np.asarray(scores, np.float64)
    if values.size == 0 or len(clusters) != len(scores) or not np.isfinite(values).all() or resamples < 1:
        raise DeltaMemError(
            f"{len(scores)} scores in {len(clusters)} clusters, {resamples} resamples: give one or more finite scores, "
            "a cluster for each, and one resample or more"
        )
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sizes = np.bincount(index)
    mean = float(values.mean())
    sums = np.bincount(index, weights=values - mean)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, CHUNK):
        drawn = rng.integers(len(sizes), size=(min(CHUNK, resamples - start), len(sizes)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    tail = (1 - LEVEL) / 2
    ends = mean + np.quantile(np.concatenate(means), [tail, 1 - tail])
    low, high = np.clip(ends, values.min(), values.max())  # against rounding
    return Interval(mean, float(low), float(high), len(values), len(sizes))


def difference(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], metric: str | None = None, **options: Any
) -> Interval:
    """Mean of ``first`` minus ``second`` on the same questions, paired question by question, and its interval.

    Args:
        first, second: answers of two agents, as :func:`read_answers` reads them.
        metric: None: the headline of each question.
        options: resamples, seed of :func:`bootstrap`.

    Raises:
        DeltaMemError: the two did not answer the same questions, or a score is missing: what is missing is named.
    """
    one, other = ({(line["example"], line["question"]): line for line in lines} for lines in (first, second))
    if odd := sorted(one.keys() ^ other.keys()):
        raise DeltaMemError(f"only one of two agents has answered {odd[0]} ({len(odd)} in all): finish the run first")
    gaps = [score_of(line, metric) - score_of(other[key], metric) for key, line in one.items()]
    return bootstrap(gaps, [example for example, _ in one], **options)


def score_of(line: dict[str, Any], metric: str | None = None) -> float:
    """A score of an answer; ``metric`` None: its headline. DeltaMemError when the answer has none of this name."""
    name = metric or line["headline"]
    if name not in line["scores"]:
        raise DeltaMemError(f"{line['question']} has no score {name!r}; it has {sorted(line['scores'])}")
    return float(line["scores"][name])


def summary(out: Path | str, *, by: str = "group", metric: str | None = None, **options: Any) -> list[dict[str, Any]]:
    """A row for each benchmark, agent and group in the folder ``out`` of a run; group "" is all of the benchmark.

    Args:
        by: "group" of the question, "competency" or "source" of the example.
        metric: None: the headline of each question. Answers without this metric are left out.
        options: resamples, seed of :func:`bootstrap`.

    Returns:
        {"benchmark", "agent", "group", "mean", "low", "high", "questions", "examples"}, sorted by the first three.

    Raises:
        DeltaMemError: ``out`` has no answers, or damaged ones, or ``by`` is something else.
    """
    if by not in ("group", "competency", "source"):
        raise DeltaMemError(f"no summary by {by!r}: give group, competency or source")
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for path in sorted(Path(out).glob("*/*.jsonl")):
        for line in read_answers(path):
            if metric is None or metric in line["scores"]:
                for group in {"", line[by]}:
                    cells.setdefault((line["benchmark"], line["agent"], group), []).append(line)
    if not cells:
        raise DeltaMemError(f"no answers{f' with {metric!r}' if metric else ''} in {out}: run the benchmark first")
    rows = []
    for (benchmark, agent, group), lines in sorted(cells.items()):
        found = bootstrap([score_of(line, metric) for line in lines], [line["example"] for line in lines], **options)
        rows.append(
            {
                "benchmark": benchmark,
                "agent": agent,
                "group": group,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "questions": found.count,
                "examples": found.clusters,
            }
        )
    return rows
