"""Curves of a memory: how much it holds and for how long, what disturbs it, and when it begins to invent.

Sessions of the embedded adapter's world, from random numbers that training never drew, are written message by message
and asked with the question alone in the prompt. An answer is right when it is exactly the whole value.

"routed": a message goes to the sub-state that it is about, as in training; "unrouted": each goes to all of them. An
adapter without the sub-states ``facts`` and ``task_progress`` is measured unrouted alone.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from ..engine import Engine
from ..errors import DeltaMemError
from ..training.world import TASK, UNKNOWN, Session, Spec, fact_questions, never_told, new_session, rng_for
from ..training.world import Question as Asked
from ..training.world import task_questions as about_task
from ..training.world.facts import Fact
from ..training.world.session import FACTS, new_facts, other_value
from ..training.world.session import say as tell
from ..training.world.talk import ACKNOWLEDGED, small_talk
from .metrics import require
from .plots import plot_curves
from .recall import ROWS, SEED, check_writable, write_sessions

ASKED = 8  # most questions of one session: those of one session are alike, and the intervals take them for independent
LIFE_FACTS = 50  # told in rotation in a long life
NEWEST, OLDER = 5, 20  # asked there: the facts told last, and those of the tellings before, back to this one
CHANGED = 2  # facts of a session that are changed again and again
ROUTED, UNROUTED = "routed", "unrouted"
Z95 = 1.959964  # of the normal distribution: 95 % lie within


@dataclass(frozen=True)
class Probe:
    """A question with its one right answer, and the values that were right earlier."""

    text: str
    answer: str
    old: tuple[str, ...] = ()


Draw = Callable[[Random, int], tuple[Session, list[Probe]]]


@dataclass(frozen=True)
class Curve:
    """What is measured: ``draw(rng, x)`` makes a session and its questions for each x of ``xs``.

    Attributes:
        measure: "right", or "invented" where all questions are about what was never told.
        both: measure routed and unrouted.
    """

    name: str
    title: str
    xlabel: str
    xs: tuple[int, ...]
    draw: Draw
    measure: str = "right"
    both: bool = False


def _facts(rng: Random, count: int) -> tuple[Session, list[Probe]]:
    session = new_session(rng, Spec(facts=count))
    return session, _probes(fact_questions(rng, session, ASKED))


def _talk(rng: Random, turns: int) -> tuple[Session, list[Probe]]:
    session = new_session(rng, Spec(facts=8, talk=turns, talk_last=True))
    return session, _probes(fact_questions(rng, session, ASKED))


def _updates(rng: Random, times: int) -> tuple[Session, list[Probe]]:
    """Two of eight facts are changed in turn, ``times`` times each, to values that they never had."""
    session = new_session(rng, Spec(facts=8))
    told = rng.sample(list(session.facts.values()), len(session.facts))
    series = [values for fact in told if (values := _values(rng, fact, times)) is not None][:CHANGED]
    for step in range(1, times + 1):
        for values in series:
            tell(session, "user", values[step].update(rng), FACTS)
            tell(session, "assistant", ACKNOWLEDGED[0], TASK)
    return session, [Probe(v[-1].ask(rng), v[-1].value, tuple(f.value for f in v[:-1])) for v in series]


def _values(rng: Random, fact: Fact, times: int) -> list[Fact] | None:
    """The fact, and after it ``times`` more with values that differ; None where its kind has too few."""
    values = {fact.value: None}
    for _ in range(10 * times):
        if len(values) <= times:
            values[fact.kind.value(rng)] = None
    return [Fact(fact.kind, fact.entity, value) for value in values] if len(values) > times else None


def _tasks_beside(rng: Random, tasks: int) -> tuple[Session, list[Probe]]:
    """Eight facts, told between the messages of ``tasks`` tasks that follow each other."""
    session = new_session(rng, Spec(facts=8))
    beside = [m for _ in range(tasks) for m in new_session(rng, Spec(facts=0, task_steps=rng.randint(3, 8))).messages]
    sides = [session.messages, beside]
    order = [0] * len(session.messages) + [1] * len(beside)
    rng.shuffle(order)
    rest = [iter(side) for side in sides]
    session.messages = [next(rest[side]) for side in order]
    return session, _probes(fact_questions(rng, session, ASKED))


def _facts_beside(rng: Random, facts: int) -> tuple[Session, list[Probe]]:
    session = new_session(rng, Spec(facts=facts, task_steps=rng.randint(3, 8)))
    return session, _probes(about_task(rng, session, ("current", "done", "next")))


def _never_told(rng: Random, facts: int) -> tuple[Session, list[Probe]]:
    session = new_session(rng, Spec(facts=facts))
    return session, _probes([never_told(rng, session) for _ in range(4)])


def _life(rng: Random, messages: int) -> tuple[Session, list[Fact]]:
    """A life of ``messages`` messages, and the facts in the order in which they were told last, the newest first.

    Of its turns, in random order, half tell one of :data:`LIFE_FACTS` facts in rotation: anew, and from the second
    time on again or with another value; a quarter ask for a fact told so far and are answered; the rest are small talk.
    """
    session, facts = Session(Spec()), list(new_facts(rng, LIFE_FACTS))
    turns = messages // 2
    rest = ["ask"] * (turns // 4)
    rest += ["tell"] * ((turns - 1) // 2) + ["talk"] * (turns - 1 - (turns - 1) // 2 - len(rest))
    rng.shuffle(rest)
    count = 0
    for turn in ["tell", *rest]:
        if turn == "talk":
            said, answer = small_talk(rng)
        elif turn == "ask":
            fact = rng.choice(list(session.facts.values()))
            said, answer = fact.ask(rng), fact.value
        else:
            fact, first = facts[count % LIFE_FACTS], count < LIFE_FACTS
            new = fact if first or rng.random() < 0.5 else other_value(rng, fact)
            said, answer = (new.state(rng) if new == fact else new.update(rng)), ACKNOWLEDGED[0]
            facts[count % LIFE_FACTS] = session.facts[new.key] = new
            count += 1
        tell(session, "user", said, FACTS)
        tell(session, "assistant", answer, TASK)
    newest = [facts[i % LIFE_FACTS] for i in reversed(range(max(0, count - LIFE_FACTS), count))]
    return session, newest


def _newest(rng: Random, messages: int) -> tuple[Session, list[Probe]]:
    session, facts = _life(rng, messages)
    return session, [Probe(fact.ask(rng), fact.value) for fact in facts[:NEWEST]]


def _older(rng: Random, messages: int) -> tuple[Session, list[Probe]]:
    session, facts = _life(rng, messages)
    chosen = rng.sample(older := facts[NEWEST:OLDER], min(ASKED, len(older)))
    return session, [Probe(fact.ask(rng), fact.value) for fact in chosen]


def _probes(asked: Sequence[Asked]) -> list[Probe]:
    return [Probe(q.text, q.answer) for q in asked]


_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_LIVES = (20, 60, 120, 200, 450, 1000)
CURVES: tuple[Curve, ...] = (
    Curve("facts", "Capacity", "facts told", _COUNTS, _facts),
    Curve("talk", "Forgetting: 8 facts", "turns of small talk since", (0, 10, 30, 100, 300), _talk),
    Curve("updates", "A fact changed again and again", "changes", (0, 1, 2, 4, 8), _updates),
    Curve("tasks_beside", "8 facts beside tasks", "tasks beside", (0, 1, 2, 4), _tasks_beside, both=True),
    Curve("facts_beside", "Task progress beside facts", "facts beside", (0, 8, 32), _facts_beside, both=True),
    Curve("never_told", "Invented where nothing was told", "facts told", _COUNTS, _never_told, measure="invented"),
    Curve("messages", "A long life: the last 5 facts told", "messages written", _LIVES, _newest),
    Curve("messages_older", "A long life: facts of 6 to 20 tellings ago", "messages written", _LIVES[1:], _older),
)


def run_curves(
    engine: Engine,
    out: Path | str,
    questions: int = 1000,
    seed: int = SEED,
    curves: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure the curves point by point into ``out/curves.json``, and draw ``out/curves.png``.

    Points that are in the file already, of the same adapter, questions, seed and libraries, are kept.

    Args:
        questions: asked at each point.
        curves: names of :data:`CURVES`; None: all.

    Returns:
        {"adapter", "questions", "seed", "torch", "transformers", "curves": {name: {"title", "xlabel", "measure",
        "points": [point, …]}}}; of a point see :func:`measure`.

    Raises:
        DeltaMemError: an unknown curve; no questions; matplotlib is missing; ``out`` cannot be written, or holds the
            curves of something else. Nothing is measured then.
    """
    known = {curve.name: curve for curve in CURVES}
    if unknown := [name for name in curves or () if name not in known]:
        raise DeltaMemError(f"unknown curve {unknown[0]!r}; known are {list(known)}")
    if questions < 1:
        raise DeltaMemError(f"{questions} questions at a point: give at least 1")
    require("matplotlib.figure", "a plot of curves")
    path = Path(out) / "curves.json"
    check_writable(path)
    document = _begun(path, _header(engine, questions, seed))
    for name in curves or known:
        curve = known[name]
        about = {"title": curve.title, "xlabel": curve.xlabel, "measure": curve.measure, "points": []}
        points = document["curves"].setdefault(name, about)["points"]
        for x, routing in _places(curve, engine):
            if any((point["x"], point["routing"]) == (x, routing) for point in points):
                continue
            points.append(measure(engine, curve, x, routing, questions, seed))
            points.sort(key=lambda point: (point["routing"], point["x"]))
            _write(path, document)
            value = next(p for p in points if (p["x"], p["routing"]) == (x, routing))
            say(f"{curve.title}, {routing}, {x} {curve.xlabel}: {curve.measure} {value[curve.measure]}")
    plot_curves(document, path.with_suffix(".png"))
    return document


def measure(engine: Engine, curve: Curve, x: int, routing: str, questions: int, seed: int = SEED) -> dict[str, Any]:
    """One point.

    Returns:
        {"x", "routing", "sessions", "questions", curve.measure, "interval", "unknown"}: shares of the questions, 0 to
        1; "interval" is the 95 % one of the measure, "unknown" the share of "I don't know.". Where facts were changed
        also "old_value", the share of answers that were right earlier, with "old_interval".
    """
    sessions, asked = draw(curve, x, routing, questions, seed)
    answers: list[str] = []
    for start in range(0, len(sessions), ROWS):
        own = [(i - start, probe) for i, probe in asked if start <= i < start + ROWS]
        states = write_sessions(engine, sessions[start : start + ROWS])
        answers += engine.answer(states.rows([i for i, _ in own]), [p.text for _, p in own], batch_size=ROWS)
    pairs = list(zip(answers, (probe for _, probe in asked), strict=True))
    right = sum(answer == probe.answer for answer, probe in pairs)
    counted = right if curve.measure == "right" else len(pairs) - right
    point: dict[str, Any] = {
        "x": x,
        "routing": routing,
        "sessions": len(sessions),
        "questions": len(pairs),
        curve.measure: round(counted / len(pairs), 4),
        "interval": wilson(counted, len(pairs)),
        "unknown": round(sum(answer == UNKNOWN for answer in answers) / len(pairs), 4),
    }
    if any(probe.old for _, probe in pairs):
        old = sum(answer in probe.old for answer, probe in pairs)
        point |= {"old_value": round(old / len(pairs), 4), "old_interval": wilson(old, len(pairs))}
    return point


def draw(
    curve: Curve, x: int, routing: str, questions: int, seed: int = SEED
) -> tuple[list[Session], list[tuple[int, Probe]]]:
    """Sessions, and ``questions`` questions with the numbers of their sessions; the same for both routings."""
    sessions: list[Session] = []
    asked: list[tuple[int, Probe]] = []
    while len(asked) < questions:
        session, probes = curve.draw(rng_for(seed, len(sessions), f"curves/{curve.name}/{x}"), x)
        if routing == UNROUTED:  # a message about no sub-state goes to all
            session.messages = [message | {"sub_state": ""} for message in session.messages]
        asked += [(len(sessions), probe) for probe in probes]
        sessions.append(session)
    return sessions, asked[:questions]


def wilson(hits: int, total: int) -> list[float]:
    """The 95 % interval of a share, [low, high], of independent trials (Wilson 1927, score interval)."""
    share, weight = hits / total, Z95**2 / total
    middle = share + weight / 2
    half = Z95 * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return [round(max(0.0, (middle - half) / (1 + weight)), 4), round(min(1.0, (middle + half) / (1 + weight)), 4)]


def _places(curve: Curve, engine: Engine) -> Iterator[tuple[int, str]]:
    routings = [ROUTED] if {FACTS, TASK} <= set(engine.sub_states) else []
    routings += [UNROUTED] if curve.both or not routings else []
    return ((x, routing) for routing in routings for x in curve.xs)


def _header(engine: Engine, questions: int, seed: int) -> dict[str, Any]:
    libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"adapter": engine.fingerprint, "questions": questions, "seed": seed} | libraries


def _begun(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, or an empty document."""
    if not path.exists():
        return header | {"curves": {}}
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        before = {name: document[name] for name in header}
        document["curves"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeltaMemError(f"{path} holds no curves ({error!r}): remove it, or give another folder") from error
    if other := [name for name in header if before[name] != header[name]]:
        name = other[0]
        raise DeltaMemError(
            f"{path} was measured with {name} {before[name]}, now it is {header[name]}: give another folder, or remove "
            "the file"
        )
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: a run that is cut off leaves the points before."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)
