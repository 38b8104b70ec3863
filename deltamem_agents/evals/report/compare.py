"""Two reports side by side."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import DeltaMemError
from ..statistics import difference
from .data import Answers, Found, Lines, group_of, load, mean, told
from .tables import number, percent, table

Agents = dict[str, Answers]
INVENTED, OLD = "never told: invented", "changed: old value"


def compare(a: Path | str, b: Path | str) -> str:
    """The same cells of two folders of reports, as Markdown: first the settings that differ, then the numbers.

    Answers are paired question by question: "b - a" of a benchmark has an interval of its own, by :func:`difference`,
    and the two differ where it leaves 0 out. Of a single example there is none. Curves keep no answers: "overlap" says
    whether the two 95 % intervals have a value in common; where they have one, the two may differ all the same.

    Raises:
        DeltaMemError: a folder holds no report, or the two asked different examples or questions: what differs is
            named.
    """
    first, second = load(a), load(b)
    _check_same(first, second)
    shared = [name for name in first.benchmarks if name in second.benchmarks]
    parts = ["# Comparison", f"a: `{first.folder}`\n\nb: `{second.folder}`", _settings(first, second)]
    for name in shared:
        rows = list(_benchmark_rows(first.benchmarks[name], second.benchmarks[name]))
        made = table(("agent", "group", "a", "b", "b - a, paired"), rows)
        parts += [f"## {name}", made if rows else "No agent is in both."]
    if first.curves and second.curves:
        columns = ("curve", "routing", "at", "a", "b", "b - a", "overlap")
        parts += ["## Curves", table(columns, _curve_rows(first.curves, second.curves))]
    if first.perplexity and second.perplexity:
        rows = list(_perplexity_rows(first.perplexity, second.perplexity))
        parts += ["## Perplexity", table(("text", "memory", "a", "b", "b - a"), rows)]
    return "\n\n".join(parts)


def _check_same(a: Found, b: Found) -> None:
    for name in a.benchmarks.keys() & b.benchmarks.keys():
        one, other = (_digests(found.benchmarks[name]) for found in (a, b))
        if odd := sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
            raise DeltaMemError(
                f"{name}: {a.folder} and {b.folder} were asked different examples ({odd[0]!r} and {len(odd) - 1} more "
                "differ or are in one alone): run both with the same seed, lengths, examples and limits"
            )
        asked = [
            {line["question"]: line["headline"] for agent in f.benchmarks[name].values() for line in agent.lines}
            for f in (a, b)
        ]
        if asked[0].keys() != asked[1].keys():
            raise DeltaMemError(f"{name}: one of {a.folder} and {b.folder} is not finished: run it again, it goes on")
        if odd := sorted(question for question, metric in asked[0].items() if asked[1][question] != metric):
            raise DeltaMemError(
                f"{name}: {odd[0]} is scored by {asked[0][odd[0]]} in {a.folder} and by {asked[1][odd[0]]} in "
                f"{b.folder}: run both with the same judge, or both without"
            )
    if a.curves and b.curves:
        for key in ("seed", "questions"):
            if a.curves[key] != b.curves[key]:
                raise DeltaMemError(
                    f"curves: {key} is {a.curves[key]} in {a.folder} and {b.curves[key]} in {b.folder}: run both alike"
                )


def _digests(agents: Agents) -> dict[str, str]:
    return {id: example["sha256"] for answers in agents.values() for id, example in answers.head["examples"].items()}


def _settings(a: Found, b: Found) -> str:
    """Differing settings, configurations of agents, and what only one of the two has."""
    before, after = (_flat(found) for found in (a, b))
    differing = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    rows = [(key, str(before.get(key, "not there")), str(after.get(key, "not there"))) for key in differing]
    if not rows:
        return "## Settings\n\nThe two have the same settings, versions and agents."
    return "## Settings that differ\n\n" + table(("setting", "a", "b"), rows)


def _flat(found: Found) -> dict[str, Any]:
    flat: dict[str, Any] = {"fingerprint": found.settings["fingerprint"]}
    flat |= {f"plan: {key}": value for key, value in found.settings["plan"].items()}
    flat |= {f"environment: {key}": value for key, value in found.settings["environments"][-1].items()}
    for name, agents in found.benchmarks.items():
        for agent, answers in agents.items():
            config = answers.head["config"] | answers.head.get("scoring", {})
            flat |= {f"{name}, {agent}: {key}": value for key, value in config.items()}
    return flat | {name: "there" for name in ("curves", "perplexity", "ablations") if getattr(found, name)}


def _benchmark_rows(a: Agents, b: Agents) -> Iterator[tuple[str, ...]]:
    for agent in (name for name in a if name in b):
        one, other = _cells(a[agent]), _cells(b[agent])
        for group, (lines, metric) in one.items():
            found = other[group][0]
            shares = [percent(mean(each, metric)) for each in (lines, found)]
            yield (agent, group, *shares, percent(difference(found, lines, metric), sign=True))


def _cells(answers: Answers) -> dict[str, tuple[Lines, str | None]]:
    """Group -> its answers, and the metric (None: their headline); groups without answers are left out."""
    lines = told(answers.lines)
    found: dict[str, tuple[Lines, str | None]] = {}
    if len({line["headline"] for line in lines}) == 1:
        found["all"] = lines, None
    for group in dict.fromkeys(map(group_of, lines)):
        found[group] = [line for line in lines if group_of(line) == group], None
    for name, metric in ((INVENTED, "hallucinated"), (OLD, "old_value")):
        if scored := [line for line in answers.lines if metric in line["scores"]]:
            found[name] = scored, metric
    return found


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> str:
    return "yes" if a[0] <= b[1] and b[0] <= a[1] else "no"


def _curve_rows(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, curve in a["curves"].items():
        measure = curve["measure"]
        others = {(p["routing"], p["x"]): p for p in b["curves"].get(name, {"points": []})["points"]}
        for point in curve["points"]:
            if (other := others.get((point["routing"], point["x"]))) is None:
                continue
            shares = [f"{100 * p[measure]:.1f} [{100 * p['interval'][0]:.1f}, {100 * p['interval'][1]:.1f}]"
                      for p in (point, other)]  # fmt: skip
            gap = f"{100 * (other[measure] - point[measure]):+.1f}"
            label = (f"{curve['title']}: {measure}", point["routing"], f"{point['x']} {curve['xlabel']}")
            yield (*label, *shares, gap, _overlap(tuple(point["interval"]), tuple(other["interval"])))


def _perplexity_rows(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, row in a["texts"].items():
        other = b["texts"].get(key)
        if other is None or (other["name"], other["tokens"]) != (row["name"], row["tokens"]):
            continue
        for way, title in (("detached", "backbone alone"), ("empty", "empty"), ("full", "full")):
            one, two = row[way]["perplexity"], other[way]["perplexity"]
            yield (row["name"], title, number(one, 3), number(two, 3), f"{two - one:+.3f}")
