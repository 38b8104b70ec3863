"""The world of a life: what is true, what is said, what is asked, over its sessions."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world_sentences import sentence, stated

from deltamem_agents.training.world import TASK, UNKNOWN, Life, Session, Spec, never_told, other_text
from deltamem_agents.training.world.facts import Fact, same_name
from deltamem_agents.training.world.life import ASKED, Standing, by_age, said

SESSIONS = 5
seeds = st.integers(0, 10_000)
few = settings(max_examples=8)


def plain_sessions(seed: int, questions: int = 0) -> Iterator[tuple[int, Life, Session]]:
    """The sessions of a life that say one fact a message."""
    life, spec = Life(seed, "tests", most_facts=6), Spec(alone=True, questions=questions)
    for number in range(SESSIONS):
        newest = life.standing(number + 1).newest(ASKED)
        yield (
            number,
            life,
            said(Random(f"{seed}/{number}"), spec, life.standing(number), life.script(number), newest),
        )


@few
@given(seeds)
def test_what_is_true_is_what_was_said_last(seed: int) -> None:
    said_so_far: list[str] = []
    for number, life, session in plain_sessions(seed):
        said_so_far += [m["content"] for m in session.messages if m["role"] == "user"]
        standing = life.standing(number + 1)
        assert session.facts == standing.facts
        for fact in standing.facts.values():
            told = [values for text in said_so_far if (values := stated(fact, text))]
            assert fact.value in told[-1]
            old = standing.replaced.get(fact.key)
            assert old is None or any(old in values for values in told[:-1])


@settings(max_examples=3)
@given(seeds)
def test_answers_within_a_session_are_true_when_they_are_given(seed: int) -> None:
    told: list[str] = []
    asked = Counter[bool]()
    for number, life, session in plain_sessions(seed, questions=4):
        newest = {fact.key for fact in life.standing(number + 1).newest(ASKED)}
        for message, answer in pairwise(session.messages):
            if message["role"] != "user":
                continue
            about = [f for f in session.facts.values() if is_asked(f, message["content"])]
            last = {f.key: [v for text in told if (v := stated(f, text))][-1:] for f in about}
            if answer["content"] == UNKNOWN:
                assert not any(last.values())
            elif about:
                assert any(answer["content"] in values for key in last.keys() & newest for values in last[key])
            asked[answer["content"] == UNKNOWN] += bool(about) or answer["content"] == UNKNOWN
            told += [] if about else [message["content"]]
    assert asked[False] > 3


def is_asked(fact: Fact, text: str) -> bool:
    """Whether ``text`` asks for the kind and entity of ``fact``."""
    name = f"(?:project )?{re.escape(same_name(fact.entity))}"
    frames = {*fact.kind.questions(), *fact.kind.questions(held_out=True)}
    return same_name(fact.entity) in text.lower() and any(
        sentence(frame, fact.kind.nouns, name).fullmatch(text) for frame in frames
    )


@few
@given(seeds)
def test_never_told_is_told_in_no_session_of_the_life(seed: int) -> None:
    life, told = Life(seed, "tests", most_facts=8), []
    for number in range(SESSIONS):
        script, session = life.script(number), life.session(number)
        told += [*script.told, *script.updates]
        assert {fact.key for fact in told} == set(session.facts)
        for _ in range(10):
            question = never_told(Random(f"{seed}/{number}"), session)
            assert question.answer == UNKNOWN
            assert not [fact for fact in told if is_asked(fact, question.text)]


@few
@given(seeds)
def test_questions_have_the_answers_of_their_time(seed: int) -> None:
    life = Life(seed, "tests", most_facts=8, questions=16)
    for number in range(SESSIONS):
        standing, record = life.standing(number + 1), life.record(number)
        newest = {fact.key for fact in standing.newest(ASKED)}
        seen = 0
        for conversation in record.conversations:
            question, answer = (m["content"] for m in conversation.messages[-2:])
            about = [f for f in standing.facts.values() if is_asked(f, question)]
            if about and len(conversation.messages) <= 4 and not conversation.messages[-3:-2]:
                assert answer in {f.value for f in about if f.key in newest}
                seen += 1
        assert seen or not standing.facts


def test_questions_are_mostly_about_the_last_session_and_never_about_what_is_too_old() -> None:
    ages: Counter[int] = Counter()
    for seed in range(30):
        life = Life(seed, "tests", most_facts=10)
        standing = life.standing(SESSIONS)
        chosen = by_age(Random(seed), standing, SESSIONS - 1, 12)
        assert max(Counter(fact.key for fact in chosen).values()) <= 2
        assert {fact.key for fact in chosen} <= {fact.key for fact in standing.newest(ASKED)}
        ages.update(SESSIONS - 1 - standing.told_in[fact.key] for fact in chosen)
    assert 0.4 < ages[0] / ages.total() < 0.7
    assert 0.15 < ages[1] / ages.total() < 0.45
    assert sum(ages[age] for age in range(2, SESSIONS)) > 0.05 * ages.total()
    one = next(iter(standing.facts.values()))
    assert by_age(Random(1), Standing({one.key: one}, {one.key: 0}), 0, 5) == [one, one]


def test_a_life_tells_new_facts_and_changes_and_repeats_old_ones() -> None:
    how: Counter[str] = Counter()
    for seed in range(20):
        life = Life(seed, "tests")
        for number in range(1, SESSIONS):
            before = life.standing(number).facts
            for fact in life.script(number).told:
                old = before.get(fact.key)
                how["new" if old is None else "again" if old == fact else "changed"] += 1
    assert all(how[name] > 0.2 * how.total() for name in ("new", "again", "changed"))


def test_other_words_say_the_same() -> None:
    one, other = (Life(3, "tests").session(4, attempt) for attempt in (0, 1))
    assert one.messages != other.messages
    assert (one.facts, one.progress) == (other.facts, other.progress)
    bare = Life(3, "tests").session(4, 150)
    assert (bare.facts, bare.progress) == (one.facts, one.progress)
    assert Life(3, "tests").record(4) == Life(3, "tests").record(4)
    assert Life(3, "tests").record(4) != Life(3, "others").record(4)
    assert Life(3, "tests", start=2).standing(2) == Standing()


def test_tasks_go_on_and_are_forgotten_when_their_memory_is_emptied() -> None:
    seen: Counter[str] = Counter()
    for seed in range(40):
        life = Life(seed, "tests", most_facts=2)
        for number in range(SESSIONS):
            before, script, session = life.standing(number), life.script(number), life.session(number)
            assert session.progress == (script.progress or before.progress)
            plans = [m for m in session.messages if m["content"].startswith("Task: ") and " Plan: " in m["content"]]
            assert len(plans) == (script.progress is not None and script.since is None)
            if script.since is not None:
                assert script.progress and before.progress
                assert script.progress.task == before.progress.task
                assert script.progress.finished > script.since == before.progress.finished
                seen["goes on"] += 1
            assert life.record(number).reset == ((TASK,) if script.reset else ())
            if script.reset:
                assert life.standing(number + 1).progress is None
                seen["reset"] += 1
    assert seen["goes on"] > 15 and seen["reset"] > 15
    assert not any(Life(1, "tests", resets=False).script(number).reset for number in range(40))


def test_a_life_may_be_asked_for_sessions_in_any_order() -> None:
    life = Life(5, "tests", most_facts=6)
    backwards = [life.record(number) for number in (4, 1, 3, 0)]
    assert backwards == [Life(5, "tests", most_facts=6).record(number) for number in (4, 1, 3, 0)]
    assert life.standing(3) == Life(5, "tests", most_facts=6).standing(3)


def test_within_a_session_the_assistant_may_be_asked_often_and_be_wrong() -> None:
    def replies(asked_within: int, wrong: float) -> list[bool]:
        """Within the sessions of five lives, to questions about what is known at their end: what is true there."""
        found = []
        for seed in range(5):
            life = Life(seed, "tests", most_facts=8, asked_within=asked_within, wrong=wrong)
            for session in map(life.session, range(SESSIONS)):
                for message, answer in pairwise(session.messages):
                    about = [f for f in session.facts.values() if is_asked(f, message["content"])]
                    if about and message["role"] == "user" and answer["role"] == "assistant":
                        found.append(answer["content"] in {f.value for f in about})
        return found

    few_asked, many_asked, wrong = replies(3, 0.0), replies(16, 0.0), replies(16, 0.6)
    assert len(many_asked) > 3 * len(few_asked)
    assert sum(wrong) / len(wrong) < sum(many_asked) / len(many_asked) - 0.3


def test_wrong_replies_make_nothing_else_true() -> None:
    """The facts of a life are its scripts', and these do not depend on what the assistant says."""
    lives = [Life(7, "tests", asked_within=16, wrong=wrong) for wrong in (0.0, 0.9)]
    for number in range(SESSIONS):
        one, other = (life.session(number) for life in lives)
        assert one.facts == other.facts and one.progress == other.progress
        assert lives[0].standing(number + 1) == lives[1].standing(number + 1)


def test_a_life_knows_its_newest_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltamem_agents.training.world.life.KNOWN", 9)
    life, told = Life(1, "tests", most_facts=6), dict[tuple[str, str], Fact]()
    for number in range(12):
        script = life.script(number)
        for fact in script.told + script.updates:
            told.pop(fact.key, None)
            told[fact.key] = fact
        standing = life.standing(number + 1)
        assert list(standing.facts.values()) == list(told.values())[-9:]
        assert standing.told_in.keys() == standing.facts.keys() >= standing.replaced.keys()
        assert life.session(number).facts.items() >= standing.facts.items()
    assert len(told) > 15


@few
@given(seeds)
def test_other_text_ends_with_a_reply(seed: int) -> None:
    text = other_text(Random(seed))
    assert text.whole and text.messages[-1]["role"] == "assistant" and 1 <= len(text.messages) <= 4
