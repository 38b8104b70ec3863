"""Ablations as tables and a plot, and whether the order of the variants is the paper's.

Intervals are of the mean over seeds, 95 %, from Student's t: with three seeds 2.5 times their standard deviation.
Orders are compared pair by pair, by mean recall of 4, 8 and 16 facts, paired by seed: a pair whose interval of the
difference holds 0, or that has fewer than two seeds in common, is open. Each pair stands alone: there is no correction
for their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..errors import DeltaMemError
from .metrics import require

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # t(0.975) of 1 to 10 degrees of freedom
SHARES = {
    "facts_4": "4 facts",
    "facts_8": "8 facts",
    "facts_16": "16 facts",
    "updated": "updated",
    "old_value": "old value",
    "never_told": "never told",
    "task": "task",
}
COSTS = ("parameters", "state KiB", "train s", "loss", "answer tokens right", "seeds")
COLUMNS = 3
NUMBERS = ("rank", "states")  # groups whose members are numbers: their points are joined

Run = Mapping[str, Any]


@dataclass
class Agreement:
    """Pairs (better, worse) in the paper's order of one group: as in the paper, the other way, open, or not run."""

    agree: list[tuple[str, str]] = field(default_factory=list)
    against: list[tuple[str, str]] = field(default_factory=list)
    open: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % t interval; None of one value. Over 11 values it is a little too wide."""
    if len(values) < 2:
        return mean(values), None
    return mean(values), T95[min(len(values) - 1, len(T95)) - 1] * stdev(values) / sqrt(len(values))


def agreement(document: Mapping[str, Any], group: str) -> Agreement:
    """How the pairs that the paper orders come out here.

    Raises:
        DeltaMemError: no such group.
    """
    groups = {g["name"]: g for g in document["groups"]}
    if group not in groups:
        raise DeltaMemError(f"no group {group!r} in this document; it has {list(groups)}")
    found = groups[group]
    verdict = Agreement()
    for better, worse in combinations(found["order"], 2):
        for pair in [(a, b) for a in better for b in worse]:
            first, second = ({run["seed"]: run["recall"] for run in _runs(document, found, label)} for label in pair)
            if not first or not second:
                verdict.missing.append(pair)
                continue
            gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
            middle, half = interval(gaps) if gaps else (0.0, None)
            if half is None or abs(middle) <= half:
                verdict.open.append(pair)
            else:
                (verdict.agree if middle > 0 else verdict.against).append(pair)
    return verdict


def table(document: Mapping[str, Any]) -> str:
    """Markdown: a table for each group of which two variants were run, what the paper reports, and how ours compares.

    Shares of exact answers, 0 to 1, as mean over seeds ± half of the 95 % interval; "-" for what was not run. Seconds
    are those of training, with compiling, and of a device that runs may have shared.
    """
    settings = document["settings"]
    train = settings["adapter"]["train"]
    sizes = " or ".join(f"{size:,}" for size in train["memory_tokens"])
    parts = [
        f"Adapters of {document['recipe']}, each trained for {train['steps']:,} steps of {train['rows']} sessions with "
        f"up to {train['most_facts']} facts and {sizes} tokens; {settings['questions']} questions a cell; mean over "
        "seeds ± half of the 95 % t interval over seeds."
    ]
    for group in _compared(document):
        head = ("variant", *SHARES.values(), *COSTS)
        rows = [head, ("---", *["---:"] * (len(head) - 1))]
        rows += [_row(label, _runs(document, group, label)) for label in group["members"]]
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts += [f"### {group['title'].capitalize()}", lines, _words(document, group)]
    if document["missing"]:
        parts.append(f"Not finished: {', '.join(document['missing'])}.")
    return "\n\n".join(parts) + "\n"


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Recall of 4, 8 and 16 facts, an axis for each group, with 95 % intervals over seeds; a PNG or SVG file.

    Raises:
        DeltaMemError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "a plot of ablations")
    groups = _compared(document)
    rows = -(-len(groups) // COLUMNS)
    figure = figure_module.Figure(figsize=(4 * COLUMNS, 3.2 * max(1, rows)), layout="constrained")
    for number, group in enumerate(groups, 1):
        axes = figure.add_subplot(rows, COLUMNS, number, title=group["title"], ylabel="share of exact answers")
        line = "-" if group["name"] in NUMBERS else "none"
        for shift, cell in ((-0.1, "facts_4"), (0.0, "facts_8"), (0.1, "facts_16")):
            points = [
                (place + shift, *interval([run["cells"][cell] for run in runs]))
                for place, label in enumerate(group["members"])
                if (runs := _runs(document, group, label))
            ]
            places, means, halves = zip(*points, strict=True)
            errors = [half or 0.0 for half in halves]
            axes.errorbar(
                places, means, yerr=errors, linestyle=line, marker="o", markersize=4, capsize=3, label=SHARES[cell]
            )
        axes.set_xticks(range(len(group["members"])), list(group["members"]))
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _compared(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The groups of which two variants or more were run."""
    return [g for g in document["groups"] if sum(bool(_runs(document, g, label)) for label in g["members"]) > 1]


def _runs(document: Mapping[str, Any], group: Mapping[str, Any], label: str) -> list[Run]:
    return [run for run in document["runs"] if run["variant"] == group["members"][label]]


def _row(label: str, runs: Sequence[Run]) -> tuple[str, ...]:
    if not runs:
        return (label, *["-"] * (len(SHARES) + len(COSTS) - 1), "0")
    shares = [
        _share([run["old_value"] if name == "old_value" else run["cells"][name] for run in runs]) for name in SHARES
    ]
    costs = [
        f"{runs[0]['parameters']:,}",
        f"{runs[0]['state_bytes'] / 1024:g}",
        f"{mean(run['train_seconds'] for run in runs):.0f}",
        f"{mean(run['loss'] for run in runs):.3f}",
        f"{mean(run['accuracy'] for run in runs):.3f}",
        str(len(runs)),
    ]
    return (label, *shares, *costs)


def _share(values: Sequence[float]) -> str:
    middle, half = interval(values)
    return f"{middle:.3f}" if half is None else f"{middle:.3f} ± {half:.3f}"


def _words(document: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """Our order, the paper's, and how many of its pairs are ours."""
    ours = {
        label: mean(r["recall"] for r in runs) for label in group["members"] if (runs := _runs(document, group, label))
    }
    order = ", ".join(f"{label} {ours[label]:.3f}" for label in sorted(ours, key=lambda label: -ours[label]))
    said = f"Here, by mean recall of 4, 8 and 16 facts: {order}."
    if not group["order"]:
        return f"{said} The paper reports no order that could be compared."
    found = agreement(document, group["name"])
    count = len(found.agree) + len(found.against) + len(found.open)
    said += f" Paper: {group['paper']}. Of {count} pairs {len(found.agree)} come out so, {len(found.against)} the "
    said += f"other way, {len(found.open)} are open; {len(found.missing)} were not run."
    for title, pairs in (("The other way", found.against), ("Open", found.open)):
        if pairs:
            said += f" {title}: {', '.join(f'{a} > {b}' for a, b in pairs)}."
    return said
