"""One session of the project-operations assistant: what is said, in order, and what is true at its end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from . import tasks
from .facts import BY_ENTITY, Fact, new_entity, same_name
from .talk import ACKNOWLEDGED, small_talk
from .tools import lookup, random_action

Message = dict[str, Any]
FACTS, TASK = "facts", "task_progress"
UNKNOWN = "I don't know."
MESSAGES_A_TURN = 3  # at most so many facts in one message

_GROUPS = ("service", "person", "project", "team", "customer", "ticket", "me")
_GROUP_WEIGHTS = (5, 3, 3, 1, 1.5, 1, 2.5)
START = ("New task for you: {g}.", "Please take care of this: {g}.", "Your next job: {g}.", "Let us {g}.")
GO_ON = (
    "Please go on.",
    "Continue with the task.",
    "Carry on.",
    "Next step, please.",
    "Keep going.",
    "How is the task going?",
)


@dataclass(frozen=True)
class Spec:
    """What a session holds.

    Attributes:
        facts: facts told; ``updates`` of them are changed later, ``from_tools`` of them are told by tool results.
        task_steps: steps of the task, 0 for no task; ``second_task``: an earlier task was finished before it.
        talk: turns of small talk, scattered, or all at the end with ``talk_last``.
        acknowledge: share of the user's messages that the assistant acknowledges.
        questions: questions asked (and answered) within the session.
        held_out: state facts with the phrasings that training never uses.
        alone: one fact a message, nothing else in it.
    """

    facts: int = 8
    updates: int = 0
    from_tools: int = 0
    task_steps: int = 0
    second_task: bool = False
    actions: int = 0
    talk: int = 0
    talk_last: bool = False
    acknowledge: float = 0.6
    questions: int = 0
    held_out: bool = False
    alone: bool = False


@dataclass
class Session:
    """``messages`` in order, each with its ``sub_state``; ``facts`` by key as they are at the end."""

    spec: Spec
    messages: list[Message] = field(default_factory=list)
    facts: dict[tuple[str, str], Fact] = field(default_factory=dict)
    replaced: dict[tuple[str, str], str] = field(default_factory=dict)  # key -> value before the update
    by_tool: set[tuple[str, str]] = field(default_factory=set)
    progress: tasks.Progress | None = None


Event = tuple[float, Callable[[Session], None]]


def new_session(rng: Random, spec: Spec) -> Session:
    """A random session that holds what ``spec`` asks for."""
    told = list(new_facts(rng, spec.facts))
    by_tool = tool_groups(rng, told, spec.from_tools)
    spoken = [f for f in told if not any(f in group for group in by_tool)]
    events: list[Event] = [fact_event(rng, group, spec) for group in grouped(rng, spoken, spec)]
    events += [lookup_event(rng, group) for group in by_tool]
    for fact in rng.sample(told, min(spec.updates, len(told))):
        events.append((1 + rng.random(), _update(rng, fact)))
    events = spread(rng, events)
    events += _task_events(rng, spec)
    events += [(rng.random(), action_turn(rng)) for _ in range(spec.actions)]
    events += [(2 + i if spec.talk_last else rng.random(), talk_turn(rng)) for i in range(spec.talk)]
    events += [(0.3 + 0.7 * rng.random(), _asked(rng)) for _ in range(spec.questions)]
    session = Session(spec)
    for _, happen in sorted(events, key=lambda event: event[0]):
        happen(session)
    return session


def new_facts(rng: Random, count: int, known: Iterable[Fact] = ()) -> Iterator[Fact]:
    """``count`` facts of some entities; the same kind is often told of several of them.

    None of them has the key of a ``known`` fact; the entities of those are spoken of again.
    """
    entities: dict[str, tuple[str, str]] = {}
    used: set[tuple[str, str]] = set()
    for fact in known:
        entities[same_name(fact.entity)] = fact.kind.entity, fact.entity
        used.add(fact.key)
    count += len(used)
    while len(used) < count:
        if not entities or rng.random() < 0.45:
            group = rng.choices(_GROUPS, _GROUP_WEIGHTS)[0]
            name = new_entity(rng, group)
            group, name = entities.setdefault(same_name(name), (group, name))
        else:
            group, name = rng.choice(list(entities.values()))
        kinds = BY_ENTITY[group]
        repeated = [k for k in kinds if any(key == k.key for key, _ in used)]
        kind = rng.choice(repeated if repeated and rng.random() < 0.45 else kinds)
        fact = Fact(kind, name, kind.value(rng))
        if fact.key not in used:
            used.add(fact.key)
            yield fact


def say(session: Session, role: str, content: str, sub_state: str, **more: Any) -> None:
    session.messages.append({"role": role, "content": content, "sub_state": sub_state, **more})


def spread(rng: Random, events: list[Event]) -> list[Event]:
    """Updates (at 1 and more) come after what they change; all of it is squeezed into 0 … 1."""
    last = 0.5 + 0.5 * rng.random()
    return [(at * last if at < 1 else last + (at - 1) * (1 - last), happen) for at, happen in events]


def tool_groups(rng: Random, told: Sequence[Fact], count: int) -> list[list[Fact]]:
    """Facts told by tools, those of one entity together."""
    groups: dict[str, list[Fact]] = {}
    for fact in rng.sample(
        [f for f in told if f.kind.entity != "me"], k=len([f for f in told if f.kind.entity != "me"])
    ):
        if sum(map(len, groups.values())) < count:
            groups.setdefault(fact.entity, []).append(fact)
    return list(groups.values())


def grouped(rng: Random, facts: Sequence[Fact], spec: Spec) -> Iterator[list[Fact]]:
    at = 0
    while at < len(facts):
        size = 1 if spec.alone else rng.choices(range(1, MESSAGES_A_TURN + 1), (6, 2, 1))[0]
        yield list(facts[at : at + size])
        at += size


def _acknowledge(rng: Random, session: Session) -> None:
    if rng.random() < session.spec.acknowledge:
        say(session, "assistant", rng.choice(ACKNOWLEDGED), TASK)


def fact_event(rng: Random, facts: list[Fact], spec: Spec) -> Event:
    text = _joined([fact.state(rng, spec.held_out) for fact in facts])
    if not spec.alone and rng.random() < 0.12:
        text = rng.choice((f"Hi! {text}", _joined([text, "Thanks!"]), f"OK. {text}", f"One more thing. {text}"))

    def happen(session: Session) -> None:
        say(session, "user", text, FACTS)
        session.facts.update({fact.key: fact for fact in facts})
        _acknowledge(rng, session)

    return rng.random(), happen


def _joined(sentences: Sequence[str]) -> str:
    """One text; what has no end before another sentence gets one."""
    return " ".join([*(s if s[-1] in ".!?" else s + "." for s in sentences[:-1]), sentences[-1]])


def lookup_event(rng: Random, facts: list[Fact]) -> Event:
    turn = lookup(rng, facts[0].entity, facts)

    def happen(session: Session) -> None:
        _tool_turn(session, turn.messages)
        session.facts.update({fact.key: fact for fact in facts})
        session.by_tool.update(fact.key for fact in facts)

    return rng.random(), happen


def _tool_turn(session: Session, messages: list[Message]) -> None:
    for message in messages:
        session.messages.append(message | {"sub_state": TASK if message["role"] == "assistant" else FACTS})


def action_turn(rng: Random) -> Callable[[Session], None]:
    turn = random_action(rng)
    return lambda session: _tool_turn(session, turn.messages)


def _update(rng: Random, old: Fact) -> Callable[[Session], None]:
    return changed(rng, old, other_value(rng, old))


def other_value(rng: Random, old: Fact) -> Fact:
    """The same fact with a value that differs."""
    value = old.kind.value(rng)
    while value == old.value:
        value = old.kind.value(rng)
    return Fact(old.kind, old.entity, value)


def changed(rng: Random, old: Fact, new: Fact) -> Callable[[Session], None]:
    """The user says that ``old`` is now ``new``."""
    text = new.update(rng)

    def happen(session: Session) -> None:
        say(session, "user", text, FACTS)
        session.facts[new.key] = new
        session.replaced[new.key] = old.value
        _acknowledge(rng, session)

    return happen


def talk_turn(rng: Random) -> Callable[[Session], None]:
    line, answer = small_talk(rng)

    def happen(session: Session) -> None:
        say(session, "user", line, FACTS)
        say(session, "assistant", answer, TASK)

    return happen


def _asked(rng: Random) -> Callable[[Session], None]:
    """A question within the session, about a fact told so far or one that was not."""

    def happen(session: Session) -> None:
        fact = (
            rng.choice(list(session.facts.values()))
            if session.facts and rng.random() < 0.8
            else next(new_facts(rng, 1))
        )
        known = session.facts.get(fact.key)
        say(session, "user", fact.ask(rng), FACTS)
        say(session, "assistant", known.value if known else UNKNOWN, TASK)

    return happen


def _task_events(rng: Random, spec: Spec) -> list[Event]:
    if not spec.task_steps:
        return []
    start, end = 0.4 * rng.random(), 0.6 + 0.4 * rng.random()
    events: list[Event] = []
    if spec.second_task:
        middle = start + 0.4 * (end - start)
        first = tasks.new_task(rng, rng.randint(3, 5))
        events += _one_task(rng, first, len(first.steps), start, middle, sparse=0.6)
        start = middle + 0.01
    task = tasks.new_task(rng, spec.task_steps)
    finished = rng.randint(0, spec.task_steps)
    return events + _one_task(rng, task, finished, start, end, sparse=0.2)


def _one_task(rng: Random, task: tasks.Task, finished: int, start: float, end: float, sparse: float) -> list[Event]:
    """Its request, its plan, and a report after each finished step (some are left out, never the last)."""
    stages = [n for n in range(1, finished + 1) if n == finished or rng.random() > sparse]
    times = sorted(start + (end - start) * rng.random() for _ in stages)
    blocked = {n: tasks.blocker(rng) for n in stages if n < len(task.steps) and rng.random() < 0.25}
    request = rng.choice(START).format(g=task.goal) if rng.random() < 0.5 else None
    form = rng.randrange(3)
    reports = [task_reported(rng, task, n, blocked.get(n), form) for n in stages]
    return [(start, task_begun(task, request)), *zip(times, reports, strict=True)]


def task_begun(task: tasks.Task, request: str | None) -> Callable[[Session], None]:
    """The user's request, if there is one, and the assistant's plan."""

    def happen(session: Session) -> None:
        if request:
            say(session, "user", request, FACTS)
        say(session, "assistant", tasks.plan_text(task.goal, task.steps), TASK)
        session.progress = tasks.Progress(task, 0)

    return happen


def task_reported(
    rng: Random, task: tasks.Task, finished: int, blocker: str | None, form: int
) -> Callable[[Session], None]:
    """The assistant's report after ``finished`` steps, sometimes because the user asked for it."""

    def happen(session: Session) -> None:
        if rng.random() < 0.3:
            say(session, "user", rng.choice(GO_ON), FACTS)
        say(session, "assistant", tasks.report_text(task.goal, task.steps, finished, blocker, form), TASK)
        session.progress = tasks.Progress(task, finished, blocker)

    return happen
