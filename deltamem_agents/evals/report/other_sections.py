"""The parts of a report about curves, perplexity and ablations."""

import statistics
from collections.abc import Callable
from typing import Any

from ...errors import DeltaMemError
from ..plots import curve_lines
from .tables import NOTHING, number, size, table

Lines = list[dict[str, Any]]


def curves(document: dict[str, Any]) -> str:
    """Curves of :func:`..curves.run_curves`: a figure, and a table for each."""
    parts = [
        "## Curves",
        f"{document['questions']} questions at each point, of δ-mem, with the question alone in the prompt; intervals "
        "are those of Wilson. Routed: a message goes to the sub-state that it is about; unrouted: to all of them.",
        "![Curves](curves/curves.png)",
    ]
    for curve in document["curves"].values():
        if not curve["points"]:
            continue
        xs = sorted({point["x"] for point in curve["points"]})
        rows = []
        for label, points in curve_lines(curve).items():
            at = {x: f"{100 * y:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for x, y, (low, high) in points}
            rows.append((label, *(at.get(x, NOTHING) for x in xs)))
        parts += [f"### {curve['title']}", table((curve["xlabel"], *map(str, xs)), rows)]
    return "\n\n".join(parts)


def perplexity(document: dict[str, Any]) -> str:
    """A document of :func:`..perplexity.run_perplexity`."""
    rows = [
        (
            row["name"],
            number(row["tokens"]),
            *(number(row[way]["perplexity"], 3) for way in ("detached", "empty", "full")),
            f"{row['full_minus_detached']:+.4f}",
            "yes" if row["empty_bit_equal"] else "no",
        )
        for row in document["texts"].values()
    ]
    columns = ("text", "tokens", "backbone alone", "empty memory", f"memory of {document['facts']} facts")
    return "\n\n".join(
        (
            "## Perplexity",
            "What the memory costs the backbone on text that has nothing to do with what it holds: lower is better. "
            "The difference is of the mean loss of a token, in nats, with the memory of facts minus alone. A text that "
            "the backbone alone cannot predict (perplexity in the thousands) says nothing about the memory.",
            table((*columns, "difference of losses", "empty equals alone, bit for bit"), rows),
        )
    )


def ablations(lines: Lines) -> str:
    """Adapters trained alike, by variant: the mean over seeds, and the least and greatest of them.

    Raises:
        DeltaMemError: a line is not one of an ablation's ``results.jsonl``.
    """
    by_variant: dict[str, Lines] = {}
    try:
        for line in lines:
            by_variant.setdefault(line["variant"], []).append(line)
        rows = [(name, str(len(runs)), *_variant(runs)) for name, runs in by_variant.items()]
        steps = sorted({line["steps"] for line in lines})
    except (KeyError, TypeError) as error:
        raise DeltaMemError(
            f"ablations.jsonl: a line is not of an ablation's results ({error!r}): give its results.jsonl"
        ) from error
    heads = ("variant", "seeds", "recall", "updated", "old value", "never told", "task", "parameters", "state")
    return "\n\n".join(
        (
            "## Ablations",
            f"Adapters trained alike but for what the name says ({', '.join(map(str, steps))} steps, fewer than the "
            "adapter above may have had), asked about the same unseen sessions: exact answers in per cent, the mean "
            "over seeds, with the least and the greatest in brackets. Recall is the mean of 4, 8 and 16 facts told.",
            table(heads, rows),
        )
    )


def _variant(runs: Lines) -> list[str]:
    def over(value: Callable[[dict[str, Any]], float]) -> str:
        found = [100 * value(run) for run in runs]
        return f"{statistics.fmean(found):.1f} [{min(found):.1f}, {max(found):.1f}]"

    cells = [over(lambda run, name=name: run["cells"][name]) for name in ("updated", "never_told", "task")]  # type: ignore[misc]
    updated, never, task = cells
    old = over(lambda run: run["old_value"])
    of_all = over(lambda run: run["recall"])
    return [of_all, updated, old, never, task, number(runs[0]["parameters"]), size(runs[0]["state_bytes"])]
