"""Reading the folder of a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DeltaMemError
from ..runner import read_answers
from ..statistics import Interval, bootstrap, score_of

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """What one agent left of one benchmark: ``head`` and ``lines`` are its two files of :mod:`..runner`."""

    head: dict[str, Any]
    lines: Lines


@dataclass(frozen=True)
class Found:
    """All that a folder has; None for what it has not. ``benchmarks``: benchmark -> agent -> answers."""

    folder: Path
    settings: dict[str, Any]
    benchmarks: dict[str, dict[str, Answers]]
    curves: dict[str, Any] | None
    perplexity: dict[str, Any] | None
    ablations: dict[str, Any] | None


def load(folder: Path | str) -> Found:
    """Read the folder of a report.

    Raises:
        DeltaMemError: it has no report.json, or a file is damaged, or agents have answered different questions.
    """
    folder = Path(folder)
    settings = read_json(folder / "report.json", "fingerprint", "plan", "agents", "commands", "environments")
    curves, perplexity, ablations = (
        folder / name for name in ("curves/curves.json", "perplexity.json", "ablations.json")
    )
    return Found(
        folder,
        settings,
        read_benchmarks(folder, settings["agents"]),
        read_json(curves, "curves", "questions", "seed") if curves.exists() else None,
        read_json(perplexity, "texts") if perplexity.exists() else None,
        read_json(ablations, "groups", "settings", "runs") if ablations.exists() else None,
    )


def read_benchmarks(folder: Path | str, order: Sequence[str] = ()) -> dict[str, dict[str, Answers]]:
    """Benchmark -> agent -> answers, agents in this order, those not named in it last. Raises as :func:`load`."""
    found: dict[str, dict[str, Answers]] = {}
    for path in sorted(Path(folder).glob("*/*.jsonl")):
        head = read_json(path.with_suffix(".json"), "benchmark", "agent", "config", "examples")
        if lines := read_answers(path):
            found.setdefault(head["benchmark"], {})[head["agent"]] = Answers(head, lines)
    for name, agents in found.items():
        asked = {agent: {line["question"] for line in answers.lines} for agent, answers in agents.items()}
        every = set().union(*asked.values())
        for agent, own in asked.items():
            if missing := sorted(every - own):
                raise DeltaMemError(
                    f"{name}: {agent!r} has not answered {missing[0]!r} and {len(missing) - 1} more questions that "
                    "others have: run the benchmark again with the same options, it goes on"
                )
    rank = {name: i for i, name in enumerate(order)}
    return {
        name: dict(sorted(agents.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))
        for name, agents in sorted(found.items(), key=lambda item: (item[0] != "World-MAB", item[0]))
    }


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object with these keys. DeltaMemError: it is missing, or is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            document[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeltaMemError(
            f"{path} cannot be read as a part of a report ({error!r}): make it with `deltamem eval report --out "
            "FOLDER`, or give another folder"
        ) from error
    found: dict[str, Any] = document
    return found


def told(lines: Lines) -> Lines:
    """Answers to questions about what was told."""
    return [line for line in lines if "hallucinated" not in line["scores"]]


def mean(lines: Lines, metric: str | None = None) -> Interval | None:
    """Mean and interval of the answers that have the metric (None: their headline); None where there are none."""
    scored = [line for line in lines if metric is None or metric in line["scores"]]
    if not scored:
        return None
    return bootstrap([score_of(line, metric) for line in scored], [line["example"] for line in scored])


def group_of(line: Mapping[str, Any]) -> str:
    """What is reported apart: LoCoMo's categories of questions, else the source of the example."""
    return str(line["group"] if line["source"] == "locomo" else line["source"])
