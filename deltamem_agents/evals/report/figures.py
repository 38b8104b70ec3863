"""Figures of a report; they need matplotlib, which is imported when one is drawn."""

from pathlib import Path

from ..metrics import require
from ..world_mab import COMPETENCIES
from .data import Answers, mean, told
from .world_sections import length_of, lengths_of


def plot_world(agents: dict[str, Answers], path: Path) -> None:
    """Exact match of what was told against the length of the row, an axis for each competency; a PNG file.

    Raises:
        DeltaMemError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "a figure of a report").Figure(figsize=(11, 7), layout="constrained")
    own = {name: told(answers.lines) for name, answers in agents.items()}
    lengths = lengths_of(line for lines in own.values() for line in lines)
    spread = min(0.06, 0.5 / len(own))
    for place, competency in enumerate(COMPETENCIES, 1):
        axes = figure.add_subplot(2, 2, place, title=competency.replace("_", " "))
        for number, (name, lines) in enumerate(own.items()):
            cells = {x: [e for e in lines if e["competency"] == competency and length_of(e) == x] for x in lengths}
            found = [(i, cell) for i, x in enumerate(lengths) if (cell := mean(cells[x])) is not None]
            at = [i + (number - (len(own) - 1) / 2) * spread for i, _ in found]  # side by side: many are equal
            errors = [[c.mean - c.low for _, c in found], [c.high - c.mean for _, c in found]]
            axes.errorbar(at, [c.mean for _, c in found], yerr=errors, marker="o", ls=":", capsize=2, label=name)
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("exact match")
        axes.grid(alpha=0.3, axis="y")
    if figure.axes:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
