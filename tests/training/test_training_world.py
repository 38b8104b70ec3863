"""The world: enough variety, right answers, and nothing of the evaluation in the training texts."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
from jsonschema import Draft202012Validator
from world_sentences import sentence, stated

from deltamem_agents.training.world import (
    FACTS,
    TASK,
    TOOLS,
    UNKNOWN,
    Session,
    Spec,
    fact_questions,
    never_told,
    new_session,
    plan_text,
    report_text,
    rng_for,
    task_questions,
    without_memory,
    world_dialogues,
    world_record,
    world_records,
)
from deltamem_agents.training.world.facts import same_name
from deltamem_agents.training.world.questions import NO_MEMORY, TASK_ABOUT, dressed
from deltamem_agents.training.world.session import new_facts
from deltamem_agents.training.world.source import random_spec
from deltamem_agents.training.world.tasks import ASK
from deltamem_agents.training.world.tools import declared, random_action, random_lookup

MANY = 300
BUSY = Spec(facts=10, updates=3, from_tools=4, task_steps=5, second_task=True, actions=2, talk=3, questions=2)


def sessions(count: int = MANY, spec: Spec | None = None) -> list[tuple[Random, Session]]:
    made = []
    for index in range(count):
        rng = rng_for(7, index, "tests")
        made.append((rng, new_session(rng, spec or random_spec(rng))))
    return made


def test_the_same_seed_gives_the_same_records_and_others_do_not() -> None:
    first = list(islice(world_records(3), 20))
    assert first == list(islice(world_records(3), 20))
    assert first[4] == world_record(rng_for(3, 4))
    assert first != list(islice(world_records(4), 20))
    assert list(world_dialogues(rng_for(3, 1))) == list(world_dialogues(rng_for(3, 1)))


def test_splits_share_no_session() -> None:
    def texts(split: str) -> set[str]:
        return {" ".join(m["content"] for m in world_record(rng_for(1, i, split)).memory) for i in range(100)} - {""}

    train, evaluation = texts("train"), texts("eval")
    assert len(train) > 90
    assert not train & evaluation


def test_the_last_statement_of_each_fact_contains_its_value() -> None:
    for _, session in sessions(10, Spec(facts=8, updates=3, alone=True, acknowledge=0.3)):
        said = [m["content"] for m in session.messages if m["role"] == "user"]
        for fact in session.facts.values():
            told = [values for text in said if (values := stated(fact, text))]
            assert fact.value in told[-1]
            assert len(told) == 1 + (fact.key in session.replaced)
            if fact.key in session.replaced:
                assert session.replaced[fact.key] in told[0]


def test_after_an_update_only_the_new_value_is_said() -> None:
    for _, session in sessions(20, replace(BUSY, questions=0)):
        assert len(session.replaced) == 3
        for key, old in session.replaced.items():
            fact = session.facts[key]
            assert fact.value != old
            said = [values for m in session.messages if m["role"] == "user" and (values := stated(fact, m["content"]))]
            assert fact.value in said[-1]  # the update, the last message that speaks of it
            contents = [m["content"] for m in session.messages]
            update = max(i for i, text in enumerate(contents) if fact.value in stated(fact, text))
            assert any(old in text for text in contents[:update])


def test_questions_of_facts_have_the_value_at_the_end_as_answer() -> None:
    groups: Counter[str] = Counter()
    for rng, session in sessions(spec=BUSY):
        questions = fact_questions(rng, session, 10)
        assert sorted(q.answer for q in questions) == sorted(f.value for f in session.facts.values())
        assert [q.group for q in questions[:3]] == ["updated"] * 3
        groups.update(q.group for q in questions)
        for question in questions:
            assert question.messages[-2] == {"role": "user", "content": question.text}
            assert (question.old is not None) == (question.group == "updated")
            assert question.old != question.answer
        assert len(fact_questions(rng, session, 4)) == 4
    assert set(groups) == {"fact", "updated", "tool"}


def test_tools_are_declared_by_valid_json_schemas() -> None:
    names = [tool["function"]["name"] for tool in TOOLS]
    assert len(set(names)) == len(TOOLS) >= 6
    for tool in TOOLS:
        schema = tool["function"]["parameters"]
        Draft202012Validator.check_schema(schema)
        assert tool["type"] == "function" and tool["function"]["description"]
        assert set(schema["required"]) == set(schema["properties"])


def test_tool_turns_call_with_valid_arguments_and_return_json_with_the_facts() -> None:
    rng = Random(1)
    used = set()
    for i in range(300):
        turn = random_lookup(rng) if i % 2 else random_action(rng)
        used.add(turn.tool["function"]["name"])
        Draft202012Validator(turn.tool["function"]["parameters"]).validate(turn.arguments)
        assert [m["role"] for m in turn.messages] == ["user", "assistant", "tool", "assistant"]
        assert turn.messages[1]["tool_calls"][0]["function"]["arguments"] == turn.arguments
        result = json.loads(turn.result)
        assert {fact.kind.key: fact.value for fact in turn.facts}.items() <= result.items()
        assert all(argument in turn.request for argument in turn.arguments.values())
    assert used == {tool["function"]["name"] for tool in TOOLS}


def test_facts_told_by_tools_are_in_a_result_and_in_no_statement() -> None:
    for _, session in sessions(15, replace(BUSY, updates=0, questions=0, facts=12)):
        results = [json.loads(m["content"]) for m in session.messages if m["role"] == "tool"]
        for key in session.by_tool:
            fact = session.facts[key]
            assert any(r.get(fact.kind.key) == fact.value for r in results)
            assert not any(stated(fact, m["content"]) for m in session.messages if m["role"] == "user")


def test_declared_tools_hold_the_needed_one_in_any_place() -> None:
    rng = Random(2)
    places = set()
    for _ in range(100):
        tools = declared(rng, TOOLS[0], most=3)
        assert 1 <= len(tools) <= 3 and TOOLS[0] in tools
        places.add(tools.index(TOOLS[0]))
    assert places == {0, 1, 2}
    assert {len(declared(rng, most=3)) for _ in range(50)} == {1, 2}


def test_answers_about_the_task_follow_the_last_report() -> None:
    seen: Counter[str] = Counter()
    for rng, session in sessions(spec=Spec(facts=3, task_steps=5, second_task=True)):
        progress = session.progress
        assert progress is not None
        goal, steps = progress.task.goal, progress.task.steps
        reports = [m["content"] for m in session.messages if m["role"] == "assistant" and m["content"] != "Noted."]
        plan = plan_text(goal, steps)
        assert reports.count(plan) == 1
        forms = [report_text(goal, steps, progress.finished, progress.blocker, form) for form in range(3)]
        assert reports[-1] in ([plan] if progress.finished == 0 else forms)
        done, now, then = (steps[i] if 0 <= i < 5 else "nothing" for i in (progress.finished + k for k in (-1, 0, 1)))
        wanted = {"goal": goal, "done": done, "current": now, "next": then, "blocked": progress.blocker or "nothing"}
        for question, about in zip(task_questions(rng, session, TASK_ABOUT), TASK_ABOUT, strict=True):
            assert question.group == f"task_{about}"
            assert question.answer == wanted[about][0].upper() + wanted[about][1:] + "."
            assert wanted[about] == "nothing" or wanted[about].lower() in reports[-1].lower()
            seen[about] += question.answer != "Nothing."
    assert min(seen[about] for about in TASK_ABOUT) > 20


def test_without_a_task_and_after_its_reset_nothing_is_known() -> None:
    rng = Random(5)
    none = new_session(rng, Spec(facts=3))
    assert {(q.group, q.answer) for q in task_questions(rng, none, TASK_ABOUT)} == {("unknown_task", UNKNOWN)}
    some = new_session(rng, Spec(facts=3, task_steps=4))
    questions = task_questions(rng, some, TASK_ABOUT, reset=True)
    assert len(questions) == len(TASK_ABOUT) - 1  # the goal may still be known: the user asked for it
    assert {(q.group, q.answer) for q in questions} == {("task_reset", UNKNOWN)}


def test_records_reset_the_task_only_where_one_was_begun() -> None:
    resets = 0
    questions = {question for about in ASK.values() for question in about} - set(ASK["goal"])
    for index in range(MANY):
        record = world_record(rng_for(1, index))
        assert record.reset in ((), (TASK,))
        begun = any(m["role"] == "assistant" and ". Plan: " in m["content"] for m in record.memory)
        resets += bool(record.reset)
        assert begun or not record.reset
        answers = [c.messages[-1]["content"] for c in record.conversations if c.messages[-2]["content"] in questions]
        assert all((answer == UNKNOWN) == (not begun or bool(record.reset)) for answer in answers)
    assert 10 < resets < MANY / 3


def test_what_was_never_told_is_really_never_told() -> None:
    near = 0
    for rng, session in sessions(spec=Spec(facts=12, updates=2, from_tools=4)):
        for held_out in (False, True):
            question = never_told(rng, session, held_out)
            assert (question.group, question.answer) == ("never_told", UNKNOWN)
            for fact in session.facts.values():
                noun = "|".join(map(re.escape, fact.kind.nouns))
                name = f"(?:project )?{re.escape(same_name(fact.entity))}"
                for frame in (
                    {*fact.kind.questions(held_out)} if same_name(fact.entity) in question.text.lower() else ()
                ):
                    assert not sentence(frame, fact.kind.nouns, name).fullmatch(question.text)
                near += bool(fact.entity and fact.entity in question.text) or bool(re.search(noun, question.text))
    assert near > MANY  # most are near misses: a known entity or a known kind


@pytest.mark.parametrize("group", NO_MEMORY)
def test_conversations_that_need_no_memory(group: str) -> None:
    rng = Random(group)
    for _ in range(50):
        question = without_memory(rng, group)
        assert question.group == group
        assert question.messages[-1]["role"] == "assistant"
        if group == "in_context":
            assert any(question.answer in m["content"] for m in question.messages[:-2])
        if group in ("tool_call", "tool_answer"):
            call = question.messages[1]["tool_calls"][0]["function"]
            tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in question.tools or []}
            Draft202012Validator(tools[call["name"]]).validate(call["arguments"])
        assert bool(question.messages[-1].get("tool_calls")) == (group == "tool_call")


def test_dressing_changes_neither_question_nor_answer() -> None:
    rng = Random(3)
    changed = 0
    for _ in range(200):
        question = without_memory(rng, "small_talk")
        other = dressed(rng, question)
        assert (other.text, other.answer, other.group) == (question.text, question.answer, question.group)
        changed += other != question
    assert 20 < changed < 120


def test_sessions_hold_what_the_spec_asks_for() -> None:
    for _, session in sessions(100, BUSY):
        assert len(session.facts) == 10
        assert len(session.replaced) == 3
        assert len(session.by_tool) == min(4, len([f for f in session.facts.values() if f.kind.entity != "me"]))
        assert session.progress is not None and len(session.progress.task.steps) == 5
        contents = [m["content"] for m in session.messages]
        assert sum(". Plan: " in text for text in contents) == 2
        actions = {"restart_service", "open_ticket", "send_message"}
        called = [m["tool_calls"][0]["function"]["name"] for m in session.messages if m.get("tool_calls")]
        assert sum(name in actions for name in called) == 2
        for message in session.messages:
            assert message["sub_state"] == (TASK if message["role"] == "assistant" else FACTS)


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        (Spec(facts=0), 0),
        (Spec(facts=5, alone=True, acknowledge=0.0), 5),
        (Spec(facts=5, alone=True, acknowledge=1.0), 10),
        (Spec(facts=5, updates=2, alone=True, acknowledge=0.0), 7),
        (Spec(facts=0, talk=4), 8),
        (Spec(facts=0, actions=3), 12),
        (Spec(facts=2, questions=3, alone=True, acknowledge=0.0), 8),
    ],
)
def test_each_field_adds_its_messages(spec: Spec, messages: int) -> None:
    assert [len(s.messages) for _, s in sessions(20, spec)] == [messages] * 20


def test_talk_can_come_last() -> None:
    for _, session in sessions(30, Spec(facts=4, talk=3, talk_last=True, task_steps=3, acknowledge=1.0)):
        tail, head = session.messages[-6:], session.messages[:-6]
        assert [m["role"] for m in tail] == ["user", "assistant"] * 3
        assert all(fact.value in " ".join(m["content"] for m in head) for fact in session.facts.values())
        assert "Noted." not in [m["content"] for m in tail]


def test_questions_within_a_session_are_answered_by_what_is_true_then() -> None:
    answers: Counter[bool] = Counter()
    for _, session in sessions(100, Spec(facts=6, alone=True, acknowledge=0.0, questions=3)):
        for i, message in enumerate(session.messages):
            if message["role"] != "assistant":
                continue
            known = message["content"] != UNKNOWN
            answers[known] += 1
            if known:
                assert any(message["content"] in m["content"] for m in session.messages[: i - 1])
    assert min(answers.values()) > 20


def test_new_facts_are_of_different_keys() -> None:
    for seed in range(50):
        facts = list(new_facts(Random(seed), 40))
        assert len({fact.key for fact in facts}) == 40
        assert len({fact.kind.key for fact in facts}) < 40  # the same kind is told of several


def test_dialogues_name_their_answers() -> None:
    for index in range(60):
        dialogues = list(world_dialogues(rng_for(1, index)))
        assert len(dialogues) == 3
        for messages, tools, answers in dialogues:
            assert answers and all(messages[i]["role"] == "assistant" for i in answers)
            assert tools is None or all(tool in TOOLS for tool in tools)
        blue = dialogues[1][0]
        assert blue[-1]["content"] == UNKNOWN
