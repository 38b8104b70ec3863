"""The script of a long run: facts told, told again, changed, looked up and asked for, and small talk, from a seed."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from deltamem_agents.training.world.facts import Fact
from deltamem_agents.training.world.session import new_facts
from deltamem_agents.training.world.talk import small_talk
from deltamem_agents.training.world.tools import lookup

MIX = {"ask": 40, "again": 15, "update": 15, "talk": 26, "lookup": 4}  # of turns after all facts were told, in percent
APART = 3  # turns between a fork and the beginning of its thread
ROWS, SETTINGS = "rows.jsonl", "settings.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a run is drawn from; kept in its folder."""

    turns: int
    facts: int
    forks: int
    restarts: int
    agents: int
    day: int
    seed: int
    threads: int
    end_tasks: bool = False


@dataclass(frozen=True)
class Turn:
    """What the user says and the right answer.

    Attributes:
        fact: what is told or asked for.
        age: of a question: how many turns ago the fact was told last.
        tool_result: what the tool returns.
    """

    number: int
    kind: str
    text: str
    answer: str
    fact: Fact | None = None
    age: int | None = None
    tool_result: str | None = None


def script(settings: Settings) -> list[Turn]:
    """All turns: each fact is told once, then :data:`MIX`."""
    rng = Random(f"long run {settings.seed}")
    facts = list(new_facts(rng, settings.facts))
    told = [0] * len(facts)
    turns: list[Turn] = []
    for number in range(settings.turns):
        new = number < len(facts)
        kind = "new" if new else rng.choices(list(MIX), list(MIX.values()))[0]
        services = [i for i, fact in enumerate(facts) if fact.kind.entity == "service"]
        if kind == "lookup" and not services:
            kind = "update"
        i = number if new else rng.choice(services if kind == "lookup" else range(len(facts)))
        if kind in ("update", "lookup"):
            facts[i] = changed(rng, facts[i])
        turns.append(_turn(rng, number, kind, facts[i], number - told[i]))
        if kind not in ("ask", "talk"):
            told[i] = number
    return turns


def changed(rng: Random, fact: Fact) -> Fact:
    """The fact with another value."""
    value = fact.value
    while value == fact.value:
        value = fact.kind.value(rng)
    return Fact(fact.kind, fact.entity, value)


def _turn(rng: Random, number: int, kind: str, fact: Fact, age: int) -> Turn:
    if kind == "ask":
        return Turn(number, kind, fact.ask(rng), fact.value, fact, age)
    if kind == "talk":
        return Turn(number, kind, *small_talk(rng))
    if kind == "lookup":
        asked = lookup(rng, fact.entity, [fact])
        return Turn(number, kind, asked.request, asked.answer, fact, tool_result=asked.result)
    return Turn(number, kind, fact.update(rng) if kind == "update" else fact.state(rng), "Noted.", fact)


def fork_points(settings: Settings) -> list[int]:
    """Turns before which a fork is made: random, each at least three turns into its thread.

    Raises:
        SystemExit: so many do not fit.
    """
    start = min(settings.facts, settings.turns // 2)
    late = [n for n in range(start, settings.turns) if n % settings.day >= APART]
    Random(f"forks {settings.seed}").shuffle(late)
    chosen: list[int] = []
    for point in late:
        if len(chosen) < settings.forks and all(abs(point - other) >= APART for other in chosen):
            chosen.append(point)
    if len(chosen) < settings.forks:
        raise SystemExit(f"--forks {settings.forks}: a run of {settings.turns} turns has room for {len(chosen)}")
    return sorted(chosen)


def thread_of(settings: Settings, forks: Iterable[int], turn: int) -> tuple[str, int]:
    """The thread of a turn and its first turn: a new one each day, and after a fork, which is then the thread's tip."""
    start = max([turn - turn % settings.day, *(fork for fork in forks if fork <= turn)])
    return f"from turn {start}", start


def read_settings(folder: Path) -> Settings:
    return Settings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))


def read_rows(folder: Path) -> list[Row]:
    """What was done. The beginning of a line, left by a process that was killed, is cut off."""
    path = folder / ROWS
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.decode().splitlines()]


def facts_at(turns: Sequence[Turn]) -> dict[tuple[str, str], Fact]:
    """What is known after these turns, by key."""
    return {turn.fact.key: turn.fact for turn in turns if turn.fact is not None}
