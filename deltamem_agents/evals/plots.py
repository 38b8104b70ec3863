"""Plots of results; they need matplotlib, which is imported when one is drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .metrics import require

COLUMNS = 3
OLD_VALUE = "old value"


def plot_curves(document: Mapping[str, Any], path: Path) -> None:
    """Draw a document of :func:`.curves.run_curves`, an axis for each curve, with 95 % intervals; a PNG or SVG file.

    Raises:
        DeltaMemError: matplotlib is not installed.
    """
    curves = list(document["curves"].values())
    figure_module = require("matplotlib.figure", "a plot of curves")
    columns = min(COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = figure_module.Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    for number, curve in enumerate(curves, 1):
        axes = figure.add_subplot(rows, columns, number, title=curve["title"], xlabel=curve["xlabel"])
        xs = sorted({point["x"] for point in curve["points"]})
        for label, lines in curve_lines(curve).items():
            _line(axes, [xs.index(x) for x, _, _ in lines], lines, label)
        axes.set_xticks(range(len(xs)), [str(x) for x in xs])  # evenly: the steps are factors
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel(f"share {curve['measure']}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"{document['questions']} questions a point, 95 % intervals", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def curve_lines(curve: Mapping[str, Any]) -> dict[str, list[tuple[int, float, tuple[float, float]]]]:
    """The lines of one curve: label -> (x, share, (low, high)) in the order of x.

    A line for each routing, and one of old values for each where facts were changed.
    """
    lines: dict[str, list[tuple[int, float, tuple[float, float]]]] = {}
    for point in sorted(curve["points"], key=lambda point: point["x"]):
        label = f"{curve['measure']}, {point['routing']}"
        lines.setdefault(label, []).append((point["x"], point[curve["measure"]], tuple(point["interval"])))
        if "old_value" in point:
            old = (point["x"], point["old_value"], tuple(point["old_interval"]))
            lines.setdefault(f"{OLD_VALUE}, {point['routing']}", []).append(old)
    return lines


def _line(
    axes: Any, places: Sequence[int], lines: Sequence[tuple[int, float, tuple[float, float]]], label: str
) -> None:
    shares = [share for _, share, _ in lines]
    below = [max(0.0, share - low) for _, share, (low, _) in lines]
    above = [max(0.0, high - share) for _, share, (_, high) in lines]
    axes.errorbar(places, shares, yerr=[below, above], marker="o", markersize=4, capsize=3, label=label)
