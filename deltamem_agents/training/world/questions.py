"""Questions about a session, with their exact answers, by group.

Groups: fact, updated, tool (told by a tool result), never_told, task_goal, task_current, task_done, task_next, task_blocked,
task_reset (after ``task_progress`` was emptied), unknown_task (none was begun), and what needs no memory: tool_call,
tool_answer, small_talk, acknowledge, in_context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from . import tasks
from .facts import BY_ENTITY, Fact, new_entity
from .session import UNKNOWN, Session, new_facts
from .talk import ACKNOWLEDGED, small_talk
from .tools import declared, random_action, random_lookup

Message = dict[str, Any]
TASK_ABOUT = ("current", "done", "next", "goal", "blocked")
NO_MEMORY = ("tool_call", "tool_answer", "small_talk", "acknowledge", "in_context")
SYSTEMS = (
    "You are an operations assistant.",
    "You are a helpful assistant.",
    "You are a project assistant with a memory.",
    "Answer briefly.",
    "You are an agent. Use your memory and your tools.",
)


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the exact answer.

    Attributes:
        group: see the module's description.
        messages: the last one is the assistant's answer.
        old: the value before an update, if there was one.
    """

    group: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    old: str | None = None

    @property
    def text(self) -> str:
        return str(self.messages[-2]["content"])

    @property
    def answer(self) -> str:
        return str(self.messages[-1]["content"])


def asked(group: str, question: str, answer: str, old: str | None = None) -> Question:
    return Question(group, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], old=old)


def fact_questions(rng: Random, session: Session, count: int, held_out: bool = False, times: int = 1) -> list[Question]:
    """Up to ``count`` questions about the session's facts, the updated ones first, each at most ``times`` times."""
    facts = list(session.facts.values())
    rng.shuffle(facts)
    facts.sort(key=lambda fact: fact.key not in session.replaced)
    return [about_fact(rng, session, fact, held_out) for fact in (facts * times)[:count]]


def about_fact(rng: Random, session: Session, fact: Fact, held_out: bool = False) -> Question:
    """The question about one of the session's facts."""
    old = session.replaced.get(fact.key)
    group = "updated" if old else "tool" if fact.key in session.by_tool else "fact"
    return asked(group, fact.ask(rng, held_out), fact.value, old)


def never_told(rng: Random, session: Session, held_out: bool = False) -> Question:
    """Mostly a near miss: another kind of a known entity, or a known kind of another entity."""
    known, fact = list(session.facts.values()), next(new_facts(rng, 1))
    if known and rng.random() < 0.85:
        like = rng.choice(known)
        if rng.random() < 0.5 or like.kind.entity == "me":
            fact = Fact(rng.choice(BY_ENTITY[like.kind.entity]), like.entity, "")
        else:
            fact = Fact(like.kind, new_entity(rng, like.kind.entity), "")
    if fact.key in session.facts:
        return never_told(rng, session, held_out)
    return asked("never_told", fact.ask(rng, held_out), UNKNOWN)


def task_questions(rng: Random, session: Session, about: Sequence[str], reset: bool = False) -> list[Question]:
    """One question for each of ``about`` (of :data:`TASK_ABOUT`)."""
    if session.progress is None:
        return [asked("unknown_task", tasks.ask(rng, which), UNKNOWN) for which in about]
    if reset:
        return [asked("task_reset", tasks.ask(rng, which), UNKNOWN) for which in about if which != "goal"]
    return [asked(f"task_{which}", tasks.ask(rng, which), session.progress.answer(which)) for which in about]


def without_memory(rng: Random, group: str) -> Question:
    """A conversation whose answer needs nothing but itself; ``group`` is one of :data:`NO_MEMORY`."""
    if group in ("tool_call", "tool_answer"):
        turn = random_lookup(rng) if rng.random() < 0.5 else random_action(rng)
        messages = turn.messages[: 2 if group == "tool_call" else 4]
        return Question(group, messages, declared(rng, turn.tool))
    if group == "small_talk":
        return asked(group, *small_talk(rng))
    facts = list(new_facts(rng, rng.randint(1, 3)))
    if group == "acknowledge":
        text = facts[0].update(rng) if rng.random() < 0.25 else " ".join(f.state(rng) for f in facts)
        return asked(group, text, rng.choice(ACKNOWLEDGED))
    told: list[Message] = []
    for fact in facts:
        told += asked("", fact.state(rng), ACKNOWLEDGED[0]).messages
    fact = rng.choice(facts)
    return Question(group, told + asked("", fact.ask(rng), fact.value).messages)


def dressed(rng: Random, question: Question) -> Question:
    """The same question in another setting: after a system prompt, after small talk, or with tools at hand."""
    which = rng.random()
    if which < 0.85 or question.group in ("tool_call", "tool_answer"):
        return question
    messages, tools = question.messages, None
    if which < 0.9:
        messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *messages]
    elif which < 0.95:
        messages = asked("", *small_talk(rng)).messages + messages
    else:
        tools = declared(rng, most=2)
        if rng.random() < 0.5:
            messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *messages]
    return Question(question.group, messages, tools, question.old)
