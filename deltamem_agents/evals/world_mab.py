"""World-MAB: the world of the embedded adapter, asked as MemoryAgentBench asks (arXiv 2507.05257).

Its four competencies, as far as this world has them. Every row also asks what was never told: group "never_told", right
is "I don't know.".

Accurate_Retrieval        facts told once, by the user or by tool results, among small talk
Test_Time_Learning        labels given to things (a ticket's priority, a colleague's role), asked back. MemoryAgentBench
                          asks for the labels of unseen texts; in this world nothing follows from one label to another,
                          so this is the learning of arbitrary pairs with few classes, no more
Long_Range_Understanding  goal, blocker, last, current and next step of a task, after its plan and reports. The latest
                          report names them all; what is asked is to keep it, and to let go of those before
Conflict_Resolution       facts that were changed later, single-hop: the new value is right; the metric old_value says
                          how often the old one was answered

Three lengths each. Sessions come from random numbers of their own, which training never drew.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..errors import DeltaMemError
from ..training.world import TASK, Session, Spec, fact_questions, never_told, new_session, rng_for
from ..training.world import Question as Asked
from ..training.world import task_questions as about_task
from ..training.world.facts import BY_ENTITY, Fact, new_entity
from ..training.world.session import FACTS, say
from ..training.world.talk import ACKNOWLEDGED, small_talk
from .contract import Benchmark, Example, Message, Question, Scores
from .metrics import f1, substring_exact_match
from .recall import SEED

RETRIEVAL, LEARNING, UNDERSTANDING, CONFLICT = COMPETENCIES = (
    "Accurate_Retrieval",
    "Test_Time_Learning",
    "Long_Range_Understanding",
    "Conflict_Resolution",
)
SOURCES = dict(zip(COMPETENCIES, ("world_facts", "world_labels", "world_task", "world_updates"), strict=True))
LABELS = (("ticket", "priority"), ("person", "role"), ("service", "language"), ("customer", "plan"))
TASK_ABOUT = ("goal", "current", "done", "next", "blocked")
WORDINGS = 2  # questions about each of TASK_ABOUT


@dataclass(frozen=True)
class Length:
    """How long a row is: facts (labels) told, turns of small talk among them, steps of a task."""

    facts: int
    talk: int
    steps: int


LENGTHS = {"short": Length(8, 4, 4), "medium": Length(16, 24, 6), "long": Length(32, 96, 8)}


class WorldMAB(Benchmark):
    """Rows with the roles, tool turns and sub-states of training sessions; ``examples`` of each competency and length.

    ``score`` gives exact_match (the whole value, letter by letter), and substring_exact_match and f1 of normalised
    text; for a changed fact also old_value, for what was never told also hallucinated (1: all but "I don't know.").

    Args:
        lengths: some of :data:`LENGTHS`.
        examples: rows of each competency and length.
        seed: other seeds, other rows.
        competencies: some of :data:`COMPETENCIES`.

    Raises:
        DeltaMemError: an unknown length or competency, or no examples.
    """

    name = "World-MAB"

    def __init__(
        self,
        lengths: Sequence[str] = tuple(LENGTHS),
        examples: int = 10,
        seed: int = SEED,
        competencies: Sequence[str] = COMPETENCIES,
    ) -> None:
        _known("length", lengths, LENGTHS)
        _known("competency", competencies, COMPETENCIES)
        if examples < 1:
            raise DeltaMemError(f"World-MAB with {examples} examples: give at least 1")
        self.lengths, self.count, self.seed, self.competencies = tuple(lengths), examples, seed, tuple(competencies)

    def examples(self) -> Iterator[Example]:
        """Competency by competency, the lengths in the given order."""
        for competency in self.competencies:
            for length in self.lengths:
                for number in range(self.count):
                    yield _example(competency, length, number, self.seed)

    def score(self, example: Example, question: Question, answer: str) -> Scores:
        """See the class."""
        said = answer.strip()
        scores = {
            "exact_match": float(said in question.answers),
            "substring_exact_match": substring_exact_match(said, question.answers),
            "f1": f1(said, question.answers),
        }
        if question.metadata.get("old") is not None:
            scores["old_value"] = float(said == question.metadata["old"])
        if question.group == "never_told":
            scores["hallucinated"] = 1.0 - scores["exact_match"]
        return scores

    def headline(self, example: Example) -> str:
        """exact_match, for all."""
        return "exact_match"

    def write_jsonl(self, folder: Path | str) -> list[Path]:
        """Write one file for each competency, ``<competency>.jsonl``, in MemoryAgentBench's schema; replaces old ones.

        A row is {"context", "questions", "answers", "metadata"}; the context is :func:`context` of the messages.

        Raises:
            DeltaMemError: the folder cannot be written.
        """
        rows: dict[str, list[str]] = {name: [] for name in self.competencies}
        for example in self.examples():
            rows[example.competency].append(json.dumps(mab_row(example), ensure_ascii=False) + "\n")
        folder = Path(folder)
        paths = [folder / f"{name}.jsonl" for name in rows]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, lines in zip(paths, rows.values(), strict=True):
                path.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise DeltaMemError(f"rows cannot be written to {folder}: {error.strerror}; give another folder") from error
        return paths


def mab_row(example: Example) -> dict[str, Any]:
    """An example as a row of MemoryAgentBench: context, questions, answers, metadata (lists parallel to questions)."""
    questions = example.questions
    return {
        "context": context(example.messages),
        "questions": [q.text for q in questions],
        "answers": [list(q.answers) for q in questions],
        "metadata": {
            "source": example.source,
            "qa_pair_ids": [q.id for q in questions],
            "question_types": [q.group for q in questions],
            "old_values": [q.metadata["old"] for q in questions],
        },
    }


def context(messages: Iterable[Message]) -> str:
    """The messages as text: "User: …", "Assistant: …", "Tool: …", one below the other; calls as name(arguments)."""
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        called = [f"{c['name']}({json.dumps(c['arguments'], ensure_ascii=False)})" for c in calls]
        lines.append(f"{message['role'].capitalize()}: {' '.join(filter(None, [message['content'], *called]))}")
    return "\n".join(lines)


def _example(competency: str, length: str, number: int, seed: int) -> Example:
    source = f"{SOURCES[competency]}_{length}"
    rng = rng_for(seed, number, f"world_mab/{source}")
    session, asked = _BUILD[competency](rng, LENGTHS[length])
    asked += [never_told(rng, session) for _ in range(max(2, len(asked) // 4))]
    distinct = {question.text: question for question in asked}
    name = f"{source}_{number}"
    return Example(
        id=name,
        messages=tuple(session.messages),
        questions=tuple(
            Question(f"{name}_no{i}", q.text, (q.answer,), q.group, {"old": q.old})
            for i, q in enumerate(distinct.values())
        ),
        source=source,
        competency=competency,
    )


def _retrieval(rng: Random, size: Length) -> tuple[Session, list[Asked]]:
    session = new_session(rng, Spec(facts=size.facts, from_tools=size.facts // 4, talk=size.talk))
    return session, fact_questions(rng, session, size.facts)


def _learning(rng: Random, size: Length) -> tuple[Session, list[Asked]]:
    """``size.facts`` things of four kinds, each with a label of a few; lines and small talk in random order."""
    session = Session(Spec(facts=size.facts, talk=size.talk))
    while len(session.facts) < size.facts:
        entity, key = LABELS[len(session.facts) % len(LABELS)]
        kind = next(kind for kind in BY_ENTITY[entity] if kind.key == key)
        fact = Fact(kind, new_entity(rng, entity), kind.value(rng))
        session.facts.setdefault(fact.key, fact)
    turns = [(fact.state(rng), ACKNOWLEDGED[0]) for fact in session.facts.values()]
    turns += [small_talk(rng) for _ in range(size.talk)]
    rng.shuffle(turns)
    for line, reply in turns:
        say(session, "user", line, FACTS)
        say(session, "assistant", reply, TASK)
    return session, [Asked("label", q.messages) for q in fact_questions(rng, session, size.facts)]


def _understanding(rng: Random, size: Length) -> tuple[Session, list[Asked]]:
    """A task among facts and small talk; beyond the shortest rows, another task was finished before it."""
    spec = Spec(
        facts=size.facts // 2, talk=size.talk, task_steps=size.steps, second_task=size != LENGTHS["short"], actions=2
    )
    session = new_session(rng, spec)
    return session, about_task(rng, session, TASK_ABOUT * WORDINGS)


def _conflict(rng: Random, size: Length) -> tuple[Session, list[Asked]]:
    updates = size.facts // 2
    session = new_session(rng, Spec(facts=size.facts, updates=updates, talk=size.talk))
    return session, fact_questions(rng, session, updates)


_BUILD = dict(zip(COMPETENCIES, (_retrieval, _learning, _understanding, _conflict), strict=True))


def _known(what: str, given: Sequence[str], known: Iterable[str]) -> None:
    if isinstance(given, str) or not given or not set(given) <= set(known):
        raise DeltaMemError(f"unknown {what} in {given!r}: give a list of some of {list(known)}")
