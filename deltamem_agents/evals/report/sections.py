"""Writes ``report.md``: every number in it is read from the files in the folder."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from ...errors import DeltaMemError
from ..ablation_report import plot as plot_ablations
from ..plots import plot_curves
from .data import Answers, Found, group_of, load, mean, told
from .figures import plot_world
from .other_sections import ablations, curves, perplexity
from .roster import described
from .tables import number, percent, size, table
from .words import READING, limits
from .world_sections import lengths_of, world

WORLD = "World-MAB"
Agents = dict[str, Answers]


def render(folder: Path | str) -> Path:
    """Write ``report.md`` and its figures from what is in the folder; nothing is run. Returns its path.

    Raises:
        DeltaMemError: a file of the folder is missing, damaged or not finished; matplotlib is not installed.
    """
    found = load(folder)
    path = found.folder / "report.md"
    if not found.benchmarks:
        raise DeltaMemError(f"{folder} has no answers yet: run `deltamem eval report --out {folder}`")
    if WORLD in found.benchmarks:
        plot_world(found.benchmarks[WORLD], found.folder / "world_mab.png")
    if found.curves:
        plot_curves(found.curves, found.folder / "curves" / "curves.png")
    path.write_text("\n\n".join(part for part in _parts(found) if part) + "\n", encoding="utf-8")
    if found.ablations:
        plot_ablations(found.ablations, found.folder / "ablations.png")
    return path


def benchmark_sections(name: str, agents: Agents) -> str:
    """The scores and costs of one benchmark."""
    scores = world(agents) if name == WORLD else _groups(name, agents)
    return "\n\n".join([scores, costs(name, agents)])


def costs(name: str, agents: Agents) -> str:
    """What telling and asking takes."""
    rows = []
    for agent, answers in agents.items():
        measured = answers.head.get("measured", {})
        rows.append(
            (
                agent,
                number(statistics.fmean(line["prompt_tokens"] for line in answers.lines)),
                number(statistics.fmean(line["cut_tokens"] for line in answers.lines), 1),
                number(measured.get("write_seconds_per_1000_tokens"), 3),
                number(measured.get("latency_seconds"), 3),
                size(measured.get("state_bytes")),
            )
        )
    columns = ("agent", "prompt tokens", "tokens cut", "write, s per 1,000 tokens", "latency, s", "kept, at most")
    return "\n\n".join(
        (
            f"### {name}: what it costs",
            "Mean prompt of a question, and mean of what was to be shown and did not fit into the window; seconds to "
            "take in 1,000 tokens (for the LoRA: training); median seconds of one question asked alone, as long as the "
            "answer is; bytes kept of one example.",
            table(columns, rows),
        )
    )


def _parts(found: Found) -> Iterator[str]:
    yield "# Evaluation"
    yield _about(found)
    yield _short(found)
    for name, agents in found.benchmarks.items():
        yield benchmark_sections(name, agents)
        if name == WORLD:
            yield "![World-MAB: exact match by length of the row](world_mab.png)"
    yield curves(found.curves) if found.curves else ""
    yield perplexity(found.perplexity) if found.perplexity else ""
    yield ablations(found.ablations) if found.ablations else ""
    yield "## What this does not show\n\n" + limits(found)
    yield _commands(found)


def _about(found: Found) -> str:
    lines = [
        f"- Adapter and backbone: `{found.settings['plan']['adapter']}`, fingerprint `{found.settings['fingerprint']}`"
    ]
    for environment in found.settings["environments"]:
        facts = {key: value for key, value in environment.items() if value is not None}
        lines.append("- Environment: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    return READING + "\n\n" + "\n".join(lines)


def _short(found: Found) -> str:
    agents = found.benchmarks.get(WORLD, {})
    if not agents:
        return ""
    rows = []
    for name, answers in agents.items():
        rows.append(
            (
                name,
                percent(mean(told(answers.lines))),
                percent(mean(answers.lines, "hallucinated")),
                number(statistics.fmean(line["prompt_tokens"] for line in answers.lines)),
                size(answers.head.get("measured", {}).get("state_bytes")),
            )
        )
    lines = next(iter(agents.values())).lines
    lengths, count = ", ".join(lengths_of(lines)), len({line["example"] for line in lines})
    known = {name: described(a.head["config"]) for name, a in agents.items()}
    return "\n\n".join(
        (
            "## In short",
            f"World-MAB, {count} examples of the lengths {lengths}, {len(lines)} questions: exact match of what was "
            "told (higher is better), inventions where nothing was told (lower is better), and what it takes.",
            table(("agent", "exact match", "invented", "prompt tokens", "kept, at most"), rows),
            "\n".join(f"- **{name}**: {what}." for name, what in known.items()),
        )
    )


def _groups(name: str, agents: Agents) -> str:
    """LoCoMo by category, MemoryAgentBench by source, each with the metric that counts there."""
    lines = next(iter(agents.values())).lines
    metrics = {group_of(line): line["headline"] for line in lines}
    groups = sorted(metrics)
    one = len(set(metrics.values())) == 1
    rows = []
    for agent, answers in agents.items():
        cells = [mean([line for line in answers.lines if group_of(line) == g]) for g in groups]
        rows.append((agent, *map(percent, cells), *([percent(mean(answers.lines))] if one else [])))
    heads = [f"{g}: {metrics[g]} ({sum(group_of(line) == g for line in lines)})" for g in groups]
    return "\n\n".join(
        (
            f"## {name}",
            "The metric of each column, and the number of questions, stand at its head; higher is better.",
            table(("agent", *heads, *([f"all ({len(lines)})"] if one else [])), rows),
        )
    )


def _commands(found: Found) -> str:
    parts = found.settings["commands"]
    block = "\n\n".join(f"# {name}\n{command}" for name, command in parts.items())
    return (
        "## Commands\n\nThe first makes all of this; each of the others makes its part alone, into the same folder. "
        f"What is there already is not run again.\n\n```bash\n{block}\n```\n\nThis page is written again from the "
        f"files beside it, without running anything, by `deltamem eval report --no-run --out FOLDER`."
    )
