"""A life: sessions of one agent, one after the other, in which what was told stays true until it is changed.

What each session tells (its script) is drawn apart from how it is said. A session that does not fit a batch is said in
other words, with the same facts and the same progress, so that what is true later depends on scripts alone: they are
drawn again in microseconds, and nothing is encoded for the sessions before.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from random import Random

from ..records import Conversation, Record
from . import tasks
from .facts import Fact
from .questions import NO_MEMORY, TASK_ABOUT, Question, about_fact, dressed, never_told, task_questions, without_memory
from .session import (
    FACTS,
    START,
    TASK,
    UNKNOWN,
    Event,
    Session,
    Spec,
    action_turn,
    changed,
    fact_event,
    grouped,
    lookup_event,
    new_facts,
    other_value,
    say,
    spread,
    talk_turn,
    task_begun,
    task_reported,
    tool_groups,
)
from .source import ASKED_WITHIN, random_spec, rng_for

Key = tuple[str, str]
RETOLD = 48  # the newest facts, which may be told again or changed
ASKED = 24  # the newest facts, which are asked for: what is older may be forgotten
KNOWN = 256  # the newest facts, which a life knows: what is older counts as never told
AGES = (0.6, 0.25, 0.15)  # shares of the questions about facts of the last session, of the one before, and older
PLAIN = 20  # attempts after which a session says nothing but its script


@dataclass(frozen=True)
class Standing:
    """What is true in a life between two sessions.

    Attributes:
        facts: the newest :data:`KNOWN`, in the order in which they were told last; ``told_in``: the session of that.
        replaced: values before the last change.
        progress: of the task at hand; ``reported_in``: the session that spoke of it last.
    """

    facts: Mapping[Key, Fact] = field(default_factory=dict)
    told_in: Mapping[Key, int] = field(default_factory=dict)
    replaced: Mapping[Key, str] = field(default_factory=dict)
    progress: tasks.Progress | None = None
    reported_in: int = -1

    def newest(self, count: int) -> list[Fact]:
        """The facts told last, oldest first."""
        return list(self.facts.values())[-count:]


@dataclass(frozen=True)
class Script:
    """What one session tells.

    Attributes:
        told: new facts, old ones told again, and old ones changed (their new values); ``updates``: facts of ``told``
            that change once more within the session.
        progress: the task at the end, None when the session does not speak of it; ``since``: steps that were done
            before, None when the task begins here.
        reset: ``task_progress`` is emptied after the session, before the questions.
    """

    told: tuple[Fact, ...]
    updates: tuple[Fact, ...]
    progress: tasks.Progress | None
    since: int | None
    reset: bool

    def changed(self, before: Standing) -> set[Key]:
        """Keys of the facts whose value it replaces."""
        return {fact.key for fact in (*self.changes(before), *self.updates)}

    def changes(self, before: Standing) -> list[Fact]:
        """Those of ``told`` that have another value than before."""
        old = before.facts
        return [fact for fact in self.told if fact.key in old and old[fact.key].value != fact.value]


class Life:
    """One agent's sessions ``start``, ``start + 1``, …: a pure function of its arguments.

    It keeps what was true around the session that it spoke of last: earlier ones take their scripts from the start.

    Args:
        most_facts, questions: of one session, as in :func:`.source.world_record`.
        resets: whether ``task_progress`` is emptied now and then. It stays so in the sessions that follow.
        asked_within: at most so many questions within a session; ``wrong``: the share of them that the assistant
            answers wrong.
    """

    def __init__(
        self,
        seed: int,
        name: str,
        most_facts: int = 16,
        questions: int = 20,
        resets: bool = True,
        start: int = 0,
        asked_within: int = ASKED_WITHIN,
        wrong: float = 0.0,
    ) -> None:
        self.seed, self.name, self.start = seed, name, start
        self.most_facts, self.questions, self.resets = most_facts, questions, resets
        self.asked_within, self.wrong = asked_within, wrong
        self._begin()

    def _begin(self) -> None:
        self._number = self.start - 1
        self._script: Script | None = None
        self._before = self._after = Standing()

    def record(self, number: int, attempt: int = 0) -> Record:
        """Session ``number`` to write after those before it, and questions to ask then; said anew in each attempt."""
        rng = rng_for(self.seed, number, f"life/{self.name}/{attempt}")
        session = self._said(rng, number, attempt)
        asked = [dressed(rng, question) for question in self._asked(rng, number, session)]
        reset = (TASK,) if self.script(number).reset else ()
        return Record(session.messages, [Conversation(q.messages, q.tools) for q in asked], reset)

    def session(self, number: int, attempt: int = 0) -> Session:
        """Session ``number`` alone; its ``facts`` are all that are true at its end."""
        return self._said(rng_for(self.seed, number, f"life/{self.name}/{attempt}"), number, attempt)

    def script(self, number: int) -> Script:
        """What session ``number`` tells."""
        self._go(number)
        assert self._script is not None
        return self._script

    def standing(self, number: int) -> Standing:
        """What is true before session ``number``."""
        if number == self._number:
            return self._before
        self._go(number - 1)
        return self._after

    def _go(self, number: int) -> None:
        """Draw the scripts up to that of session ``number``."""
        if number < self._number:
            self._begin()
        while self._number < number:
            self._number += 1
            rng = rng_for(self.seed, self._number, f"life/{self.name}/script")
            self._before = self._after
            self._script = script = new_script(rng, self._before, self.most_facts, self.resets)
            self._after = after(self._before, script, self._number)

    def _said(self, rng: Random, number: int, attempt: int) -> Session:
        script, before, newest = self.script(number), self.standing(number), self.standing(number + 1).newest(ASKED)
        spec = Spec(acknowledge=0.0)
        if attempt < PLAIN:
            spec = random_spec(rng, self.most_facts, self.asked_within)
        return said(rng, spec, before, script, newest, self.wrong)

    def _asked(self, rng: Random, number: int, session: Session) -> list[Question]:
        """As :func:`.source.questions_for`, by the age of the facts; of a task that the last two sessions spoke of."""
        script, now = self.script(number), self.standing(number + 1)
        questions: list[Question] = []
        if session.progress is None or now.reported_in >= number - 1 or script.reset:
            about = rng.sample(TASK_ABOUT, rng.randint(2, 4) if session.progress else 1)
            questions = task_questions(rng, session, about, script.reset)
        questions += [never_told(rng, session) for _ in range(rng.choice((3, 4, 5)))]
        questions += [without_memory(rng, rng.choice(NO_MEMORY))] if rng.random() < 0.5 else []
        changed = script.changed(self.standing(number))
        count = max(1, self.questions - len(questions))
        questions += [about_fact(rng, session, fact) for fact in by_age(rng, now, number, count, changed)]
        rng.shuffle(questions)
        return questions


def new_script(rng: Random, before: Standing, most_facts: int, resets: bool = True) -> Script:
    """What the next session tells. With nothing told before, all its facts are new."""
    count = rng.randint(1, most_facts) if rng.random() < 0.97 else 0
    pool = before.newest(RETOLD)
    old = rng.sample(pool, min(len(pool), sum(rng.random() < 0.6 for _ in range(count))))
    told = [fact if rng.random() < 0.5 else other_value(rng, fact) for fact in old]
    told += new_facts(rng, count - len(told), before.facts.values())
    updates = rng.randint(1, max(1, count // 4)) if told and rng.random() < 0.4 else 0
    changes = tuple(other_value(rng, fact) for fact in rng.sample(told, updates))
    progress, since = _next_progress(rng, before.progress)
    reset = resets and rng.random() < 0.25 and (progress or before.progress) is not None
    return Script(tuple(told), changes, progress, since, reset)


def _next_progress(rng: Random, before: tasks.Progress | None) -> tuple[tasks.Progress | None, int | None]:
    """A task that goes on or begins, and the steps that were done before; or (None, None)."""
    since = None
    if before is not None and before.finished < len(before.task.steps) and rng.random() < 0.6:
        task, since = before.task, before.finished
        finished = rng.randint(since + 1, len(task.steps))
    elif rng.random() < 0.5:
        task = tasks.new_task(rng, rng.randint(3, 8))
        finished = rng.randint(0, len(task.steps))
    else:
        return None, None
    blocked = 0 < finished < len(task.steps) and rng.random() < 0.25
    return tasks.Progress(task, finished, tasks.blocker(rng) if blocked else None), since


def after(before: Standing, script: Script, number: int) -> Standing:
    """What is true when session ``number`` told its script."""
    facts, told_in, replaced = dict(before.facts), dict(before.told_in), dict(before.replaced)
    for fact in script.told + script.updates:
        old = facts.pop(fact.key, None)
        if old is not None and old.value != fact.value:
            replaced[fact.key] = old.value
        facts[fact.key], told_in[fact.key] = fact, number
    spoke = script.progress is not None
    for key in list(facts)[:-KNOWN]:
        del facts[key], told_in[key]
        replaced.pop(key, None)
    progress = None if script.reset else script.progress if spoke else before.progress
    return Standing(facts, told_in, replaced, progress, number if spoke else before.reported_in)


def said(rng: Random, spec: Spec, before: Standing, script: Script, newest: list[Fact], wrong: float = 0.0) -> Session:
    """A session that tells the script, with the surroundings of ``spec``. Its questions are about ``newest`` facts."""
    change = script.changes(before)
    plain = [fact for fact in script.told if fact not in change]
    by_tool = tool_groups(rng, plain, spec.from_tools)
    spoken = [f for f in plain if not any(f in group for group in by_tool)]
    rng.shuffle(spoken)
    events: list[Event] = [fact_event(rng, group, spec) for group in grouped(rng, spoken, spec)]
    events += [lookup_event(rng, group) for group in by_tool]
    events += [(rng.random(), changed(rng, before.facts[fact.key], fact)) for fact in change]
    first = {fact.key: fact for fact in script.told}
    events += [(1 + rng.random(), changed(rng, first[fact.key], fact)) for fact in script.updates]
    events = spread(rng, events)
    events += _task_events(rng, script)
    events += [(rng.random(), action_turn(rng)) for _ in range(spec.actions)]
    events += [(2 + i if spec.talk_last else rng.random(), talk_turn(rng)) for i in range(spec.talk)]
    keys = {fact.key for fact in newest}
    events += [(0.3 + 0.7 * rng.random(), _ask_within(rng, keys, wrong)) for _ in range(spec.questions)]
    session = Session(spec, facts=dict(before.facts), progress=before.progress)
    for _, happen in sorted(events, key=lambda event: event[0]):
        happen(session)
    session.replaced = dict(before.replaced) | session.replaced
    return session


def _task_events(rng: Random, script: Script) -> list[Event]:
    """The request and plan of a task that begins, and reports of its steps; some are left out, never the last."""
    if (end := script.progress) is None:
        return []
    task, blockers = end.task, {end.finished: end.blocker}
    stages = [n for n in range((script.since or 0) + 1, end.finished) if rng.random() > 0.2]
    stages += [end.finished] if end.finished else []
    times = sorted(rng.random() for _ in [0, *stages])
    request = rng.choice(START).format(g=task.goal) if rng.random() < 0.5 else None
    form = rng.randrange(3)
    begins: list[Event] = [(times[0], task_begun(task, request))] if script.since is None else []
    reports = [task_reported(rng, task, n, blockers.get(n), form) for n in stages]
    return [*begins, *zip(times[1:], reports, strict=True)]


def _ask_within(rng: Random, keys: set[Key], wrong: float) -> Callable[[Session], None]:
    """A question within the session: mostly about one of the facts ``keys`` that was told so far.

    A share of the answers is ``wrong``, as those of a model may be: another value, or that it does not know.
    """

    def happen(session: Session) -> None:
        known = [fact for key, fact in session.facts.items() if key in keys]
        if known and rng.random() < 0.8:
            fact, answer = (chosen := rng.choice(known)), chosen.value
        else:
            fact, answer = next(new_facts(rng, 1, session.facts.values())), UNKNOWN
        if wrong and rng.random() < wrong:
            answer = UNKNOWN if answer != UNKNOWN and rng.random() < 0.5 else other_value(rng, fact).value
        say(session, "user", fact.ask(rng), FACTS)
        say(session, "assistant", answer, TASK)

    return happen


def by_age(
    rng: Random, now: Standing, number: int, count: int, first: Collection[Key] = (), times: int = 2
) -> list[Fact]:
    """Up to ``count`` of the newest facts, by :data:`AGES` after session ``number``, each at most ``times`` times.

    Of those of the session itself the keys ``first`` come first.
    """
    ages: tuple[list[Fact], ...] = ([], [], [])
    for fact in now.newest(ASKED):
        ages[min(2, number - now.told_in[fact.key])].append(fact)
    for facts in ages:
        rng.shuffle(facts)
    ages[0].sort(key=lambda fact: fact.key not in first)
    queues = [facts * times for facts in ages]
    chosen: list[Fact] = []
    while len(chosen) < count and any(queues):
        (queue,) = rng.choices(queues, [share if queue else 0.0 for share, queue in zip(AGES, queues, strict=True)])
        chosen.append(queue.pop(0))
    return chosen
