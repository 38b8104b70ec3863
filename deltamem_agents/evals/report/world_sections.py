"""The part of a report about World-MAB."""

from collections.abc import Callable, Iterable

from ..statistics import difference
from ..world_mab import COMPETENCIES, LENGTHS
from .data import Answers, Lines, mean, told
from .roster import REFERENCE
from .tables import NOTHING, percent, table

Agents = dict[str, Answers]


def world(agents: Agents) -> str:
    """All tables of World-MAB."""
    parts = ["## World-MAB", "Exact match of questions about what was told, by competency and length of the row."]
    for competency in COMPETENCIES:
        if rows := _by_length(agents, lambda line, c=competency: line["competency"] == c):  # type: ignore[misc]
            parts += [f"### {competency}", rows]
    changed = _by_length(agents, lambda _: True, "old_value")
    if changed:
        parts += [
            "### Old values",
            "How often the old value was answered for a fact that was changed (Conflict_Resolution): lower is better.",
            changed,
        ]
    invented = _by_length(agents, lambda _: True, "hallucinated")
    if invented:
        parts += [
            "### Never told",
            "How often something other than “I don't know.” was answered to a question about what was never told; "
            "lower is better. These questions are in no other table. An agent that always says so has 0 here.",
            invented,
        ]
    return "\n\n".join([*parts, differences(agents)]).strip()


def differences(agents: Agents) -> str:
    """Each agent minus δ-mem, question by question; "" without δ-mem or without others."""
    if REFERENCE not in agents or len(agents) < 2:
        return ""
    base = told(agents[REFERENCE].lines)
    present = [c for c in COMPETENCIES if any(line["competency"] == c for line in base)]
    rows = []
    for name, answers in agents.items():
        if name == REFERENCE:
            continue
        own = told(answers.lines)
        cells = [difference(_of(own, c), _of(base, c)) for c in present]
        rows.append((name, *(percent(cell, sign=True) for cell in (*cells, difference(own, base)))))
    return "\n\n".join(
        (
            f"### Difference to {REFERENCE}",
            f"Exact match of the agent minus that of {REFERENCE} on the same questions, in percentage points; above 0 "
            "the agent is better. Where the interval holds 0, the two cannot be told apart here.",
            table(("agent", *present, "all"), rows),
        )
    )


def lengths_of(lines: Iterable[dict[str, object]]) -> list[str]:
    """The lengths that answers are of, in the order of World-MAB."""
    have = {length_of(line) for line in lines}
    return [name for name in LENGTHS if name in have]


def length_of(line: dict[str, object]) -> str:
    """ "short", "medium" or "long": how the source's name ends."""
    return str(line["source"]).rpartition("_")[2]


def _by_length(agents: Agents, wanted: Callable[[dict[str, object]], bool], metric: str | None = None) -> str:
    """A row for each agent, a column for each length and one for all; "" where there is nothing."""
    chosen = {name: _scored([line for line in a.lines if wanted(line)], metric) for name, a in agents.items()}
    lengths = lengths_of(line for lines in chosen.values() for line in lines)
    rows = []
    for name, lines in chosen.items():
        cells = [percent(mean([line for line in lines if length_of(line) == x], metric)) for x in lengths]
        rows.append((name, *cells, percent(mean(lines, metric))))
    if all(cell == NOTHING for row in rows for cell in row[1:]):
        return ""
    counts = [str(sum(length_of(line) == x for line in next(iter(chosen.values())))) for x in lengths]
    heads = [f"{x} ({count})" for x, count in zip(lengths, counts, strict=True)]
    total = len(next(iter(chosen.values())))
    return table(("agent (questions)", *heads, f"all ({total})"), rows)


def _scored(lines: Lines, metric: str | None) -> Lines:
    return told(lines) if metric is None else [line for line in lines if metric in line["scores"]]


def _of(lines: Lines, competency: str) -> Lines:
    return [line for line in lines if line["competency"] == competency]
