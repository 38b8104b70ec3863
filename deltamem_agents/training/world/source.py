"""Random sessions for training: records for the adapter, and dialogues for the backbone."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from ..records import Conversation, Record
from .questions import (
    NO_MEMORY,
    TASK_ABOUT,
    Question,
    dressed,
    fact_questions,
    never_told,
    task_questions,
    without_memory,
)
from .session import TASK, UNKNOWN, Session, Spec, new_session

Message = dict[str, Any]
ASKED_WITHIN = 3  # questions within a session, at most


def rng_for(seed: int, index: int, split: str = "train") -> Random:
    """The random numbers of one session. Sessions of different splits or seeds never share them."""
    return Random(f"{split}/{seed}/{index}")


def random_spec(rng: Random, most_facts: int = 16, asked_within: int = ASKED_WITHIN) -> Spec:
    facts = rng.randint(1, most_facts) if rng.random() < 0.97 else 0
    long_talk = rng.random()
    return Spec(
        facts=facts,
        updates=rng.randint(1, max(1, facts // 4)) if facts and rng.random() < 0.4 else 0,
        from_tools=rng.randint(1, 4) if rng.random() < 0.35 else 0,
        task_steps=rng.randint(3, 8) if rng.random() < 0.5 else 0,
        second_task=rng.random() < 0.15,
        actions=rng.choice((0, 0, 0, 1, 2)),
        talk=rng.randint(0, 4) if long_talk < 0.6 else rng.randint(5, 14) if long_talk < 0.85 else rng.randint(20, 34),
        talk_last=rng.random() < 0.4,
        acknowledge=rng.choice((0.0, 0.5, 1.0)),
        questions=rng.choice((0, asked_within // 4, asked_within // 2, asked_within)),
        alone=rng.random() < 0.3,
    )


def questions_for(rng: Random, session: Session, count: int, reset: bool = False, times: int = 1) -> list[Question]:
    """About ``count`` questions, most of them about facts (each at most ``times`` times), in random order."""
    task = rng.sample(TASK_ABOUT, rng.randint(2, 4) if session.progress else 1)
    questions = task_questions(rng, session, task, reset)
    questions += [never_told(rng, session) for _ in range(rng.choice((3, 4, 5)))]
    questions += [without_memory(rng, rng.choice(NO_MEMORY))] if rng.random() < 0.5 else []
    questions += fact_questions(rng, session, max(1, count - len(questions)), times=times)
    rng.shuffle(questions)
    return questions


def other_text(rng: Random, messages: int = 4) -> Conversation:
    """The first messages of a session of its own, learnt whole: up to the last reply among ``messages`` of them."""
    session = new_session(rng, replace(random_spec(rng), facts=rng.randint(1, 4), questions=0, acknowledge=1.0))
    first = session.messages[:messages]
    while first[-1]["role"] != "assistant":
        first.pop()
    return Conversation(first, whole=True)


def world_record(rng: Random, most_facts: int = 16, questions: int = 20) -> Record:
    """A session to write, and questions to ask of it."""
    session = new_session(rng, random_spec(rng, most_facts))
    reset = session.progress is not None and rng.random() < 0.25
    asked = [dressed(rng, q) for q in questions_for(rng, session, questions, reset, times=2)]
    return Record(session.messages, [Conversation(q.messages, q.tools) for q in asked], (TASK,) if reset else ())


def world_records(seed: int, most_facts: int = 16, questions: int = 20) -> Iterator[Record]:
    """Records without end, the same for the same seed."""
    index = 0
    while True:
        yield world_record(rng_for(seed, index), most_facts, questions)
        index += 1


def world_dialogues(
    rng: Random, most_facts: int = 16, questions: int = 16
) -> Iterator[tuple[list[Message], Any, set[int]]]:
    """Dialogues for the backbone out of one session: (messages, tools, indices of the answers to learn).

    The session with its questions at the end; one of them asked out of the blue (the answer is then "I don't know.");
    and one that needs no memory.
    """
    session = new_session(rng, random_spec(rng, most_facts))
    asked = [q for q in questions_for(rng, session, questions) if q.group not in NO_MEMORY]
    flat = [{"role": m["role"], "content": m["content"], "tool_calls": m.get("tool_calls")} for m in session.messages]
    answers: set[int] = set()
    for question in asked:
        flat += question.messages
        answers.add(len(flat) - 1)
    yield flat, None, answers
    blue = rng.choice(asked).text
    alone = dressed(
        rng, Question("never_told", [{"role": "user", "content": blue}, {"role": "assistant", "content": UNKNOWN}])
    )
    yield alone.messages, alone.tools, {len(alone.messages) - 1}
    own = dressed(rng, without_memory(rng, rng.choice(NO_MEMORY)))
    yield own.messages, own.tools, {len(own.messages) - 1}
