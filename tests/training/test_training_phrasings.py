"""Phrasings: many, about what they should be, and those that test are never in the training texts."""

import re
from collections.abc import Sequence
from random import Random

import pytest
from world_sentences import pattern

from deltamem_agents.training.records import Record
from deltamem_agents.training.world import Spec, fact_questions, new_session, rng_for, world_dialogues, world_record
from deltamem_agents.training.world.facts import KINDS, Fact
from deltamem_agents.training.world.phrasings import STATE, Frame
from deltamem_agents.training.world.tasks import ASK

MANY = 300


def texts_of(record: Record) -> list[str]:
    return [m["content"] for m in record.memory] + [m["content"] for c in record.conversations for m in c.messages]


def test_kinds_are_many_and_can_be_said_in_many_ways() -> None:
    assert len(KINDS) >= 40
    assert len({kind.key for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        for held_out, ways, asks in ((False, 8, 6), (True, 2, 2)):
            assert len(set(kind.statements(held_out))) >= ways
            assert len(set(kind.questions(held_out))) >= asks
        assert not set(kind.statements()) & set(kind.statements(held_out=True))
        assert not set(kind.questions()) & set(kind.questions(held_out=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.key)
def test_every_phrasing_names_what_it_is_about(kind) -> None:  # type: ignore[no-untyped-def]
    rng = Random(kind.key)
    values = {kind.value(rng) for _ in range(200)}
    assert len(values) >= 5
    fact = Fact(kind, "" if kind.entity == "me" else "quorlex", kind.value(rng))
    for frames in (kind.statements(), kind.statements(True), kind.updates(), kind.questions(), kind.questions(True)):
        for frame in frames:
            text = fact.say(rng, [frame])
            assert not re.search(r"[{}]|  ", text)
            assert fact.entity in text
            assert (fact.value in text) == (frame not in [*kind.questions(), *kind.questions(True)])
            assert text[0] == text[0].upper() or frame.core.startswith(("{e}", "{v}"))


def test_a_sentence_is_its_core_with_a_lead_and_a_tail() -> None:
    rng = Random(3)
    fact = Fact(KINDS[0], "atlas", "4821")
    said = {fact.say(rng, STATE[:1]) for _ in range(300)}
    assert {"The port of atlas is 4821.", "The port of atlas is 4821"} <= said
    assert {text.split("he ")[0] for text in said} >= {"T", "FYI, t", "Remember that t"}
    assert len(said) > 100


def test_held_out_phrasings_never_occur_in_training_texts() -> None:
    texts = [text for i in range(MANY) for text in texts_of(world_record(rng_for(1, i)))]
    texts += [m["content"] for i in range(100) for ms, _, _ in world_dialogues(rng_for(1, i)) for m in ms]
    assert not {question for questions in ASK.values() for question in questions[-2:]} & set(texts)
    lines = "\n".join(texts).lower().split("\n")
    nouns = tuple({noun for kind in KINDS for noun in kind.nouns})
    cores = {frame.core for kind in KINDS for frame in [*kind.statements(True), *kind.questions(True)]}
    assert len(cores) >= 12
    for core in cores:
        # the words around the fields are cheap to look for first
        words = [part.lower() for part in re.split(r"\{.\}", core) if len(part) > 4]
        assert words, core
        for line in lines:
            if all(word in line for word in words):
                assert not pattern(core, nouns).search(line), (core, line)


def test_held_out_phrasings_are_used_when_asked_for() -> None:
    rng = Random(0)
    session = new_session(rng, Spec(facts=6, held_out=True, alone=True, acknowledge=0.0))

    def matches(text: str, fact: Fact, frames: Sequence[Frame]) -> bool:
        return any(pattern(f.core, fact.kind.nouns, re.escape(fact.entity)).search(text) for f in frames)

    for message, fact in zip(session.messages, session.facts.values(), strict=True):
        assert matches(message["content"], fact, fact.kind.statements(held_out=True))
    for question in fact_questions(rng, session, 6, held_out=True):
        assert any(matches(question.text, fact, fact.kind.questions(held_out=True)) for fact in session.facts.values())
