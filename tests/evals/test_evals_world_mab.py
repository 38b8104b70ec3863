"""World-MAB: rows hold what they ask for, the scores tell right from old from invented, files are in the schema."""

import json
from pathlib import Path

import pytest

from deltamem_agents.engine import Engine
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals.contract import Example, Question
from deltamem_agents.evals.world_mab import COMPETENCIES, LENGTHS, WorldMAB, context

UNKNOWN = "I don't know."


def rows(competency: str, length: str = "short", examples: int = 4) -> list[Example]:
    return list(WorldMAB([length], examples, competencies=[competency]).examples())


def test_four_competencies_of_three_lengths_the_same_every_time() -> None:
    found = list(WorldMAB(examples=2).examples())
    assert found == list(WorldMAB(examples=2).examples())
    assert len(found) == 4 * 3 * 2
    assert [e.competency for e in found[::6]] == list(COMPETENCIES)
    assert {e.source.rpartition("_")[2] for e in found} == set(LENGTHS)
    ids = [q.id for e in found for q in e.questions]
    assert len(set(ids)) == len(ids)
    sizes = [sum(len(context(e.messages)) for e in found if e.source.endswith(length)) for length in LENGTHS]
    assert sizes[0] * 2 < sizes[1] < sizes[2] / 2


def test_another_seed_makes_other_rows() -> None:
    first, other = (next(WorldMAB(["short"], 1, seed).examples()) for seed in (1, 2))
    assert first.messages != other.messages


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("competency", COMPETENCIES)
def test_what_is_asked_was_told_unless_it_was_never_told(competency: str, length: str) -> None:
    for example in rows(competency, length, 3):
        said = context(example.messages).lower()
        groups = {q.group for q in example.questions}
        assert "never_told" in groups
        for q in example.questions:
            (answer,) = q.answers
            if q.group == "never_told":
                assert answer == UNKNOWN
            else:
                assert answer == "Nothing." or answer.rstrip(".").lower() in said


def test_facts_come_from_users_and_from_tools() -> None:
    for example in rows("Accurate_Retrieval"):
        assert {q.group for q in example.questions} == {"fact", "tool", "never_told"}
        assert {m["role"] for m in example.messages} == {"user", "assistant", "tool"}
        assert {m["sub_state"] for m in example.messages} == {"facts", "task_progress"}


def test_labels_are_few_and_given_to_many() -> None:
    (example,) = rows("Test_Time_Learning", "long", 1)
    asked = [q for q in example.questions if q.group == "label"]
    assert len(asked) == 32
    assert len({q.answers[0] for q in asked}) < 28


def test_a_task_is_asked_about_from_all_sides() -> None:
    groups = {q.group for e in rows("Long_Range_Understanding") for q in e.questions}
    assert groups == {"task_goal", "task_current", "task_done", "task_next", "task_blocked", "never_told"}


def test_a_changed_fact_has_its_new_value_and_its_old_one() -> None:
    for example in rows("Conflict_Resolution"):
        text = context(example.messages)
        changed = [q for q in example.questions if q.group == "updated"]
        assert len(changed) == 4
        for q in changed:
            assert q.metadata["old"] in text
            assert q.metadata["old"] != q.answers[0]


def test_scores() -> None:
    bench = WorldMAB(["short"], 1)
    example = next(bench.examples())
    changed = Question("a", "Which colour?", ("teal",), "updated", {"old": "red"})
    assert bench.score(example, changed, " teal") == {
        "exact_match": 1.0,
        "substring_exact_match": 1.0,
        "f1": 1.0,
        "old_value": 0.0,
    }
    assert bench.score(example, changed, "Teal")["exact_match"] == 0.0  # letter by letter
    assert bench.score(example, changed, "Teal")["f1"] == 1.0
    assert bench.score(example, changed, "red")["old_value"] == 1.0
    said = bench.score(example, changed, "It is teal now.")
    assert (said["exact_match"], said["substring_exact_match"]) == (0.0, 1.0)
    assert 0 < said["f1"] < 1
    unknown = Question("b", "Which port?", (UNKNOWN,), "never_told", {"old": None})
    assert bench.score(example, unknown, UNKNOWN)["hallucinated"] == 0.0
    assert bench.score(example, unknown, "8080") | {"f1": 0.0} == {
        "exact_match": 0.0,
        "substring_exact_match": 0.0,
        "f1": 0.0,
        "hallucinated": 1.0,
    }
    assert bench.headline(example) == "exact_match"


def test_files_are_in_the_schema_of_the_benchmark(tmp_path: Path) -> None:
    bench = WorldMAB(["short", "medium"], 2)
    paths = bench.write_jsonl(tmp_path / "new")
    assert [p.name for p in paths] == [f"{name}.jsonl" for name in COMPETENCIES]
    written = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    for row, example in zip(written, bench.examples(), strict=True):
        assert set(row) == {"context", "questions", "answers", "metadata"}
        about, count = row["metadata"], len(example.questions)
        assert about["source"] == example.source
        parallel = (row["questions"], row["answers"], about["qa_pair_ids"], about["question_types"])
        assert {len(values) for values in parallel} == {count}
        assert row["answers"] == [list(q.answers) for q in example.questions]
    calls = [row["context"] for row in written if "Assistant: get_" in row["context"]]
    assert calls
    assert 'Tool: {"' in calls[0]


def test_the_native_reader_reads_the_files(tmp_path: Path) -> None:
    from deltamem_agents.evals.mab import MemoryAgentBench

    bench = WorldMAB(["short"], 2)
    bench.write_jsonl(tmp_path)
    read = list(MemoryAgentBench(tmp_path, count_tokens=len).examples())
    own = list(bench.examples())
    assert sorted((e.competency, e.source) for e in read) == sorted((e.competency, e.source) for e in own)
    by_source = {e.source: [q.answers for q in e.questions] for e in own}
    assert {e.source: [q.answers for q in e.questions] for e in read} == by_source


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaMemError, match=r"unknown length.*'huge'.*medium"):
        WorldMAB(["huge"])
    with pytest.raises(DeltaMemError, match=r"unknown competency"):
        WorldMAB(competencies=["Wits"])
    with pytest.raises(DeltaMemError, match="at least 1"):
        WorldMAB(examples=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DeltaMemError, match=r"cannot be written.*another folder"):
        WorldMAB(["short"], 1).write_jsonl(tmp_path / "file")


def test_the_embedded_adapter_remembers_short_rows_and_not_without_memory(default_engine: Engine) -> None:
    bench, engine = WorldMAB(["short"], 1, competencies=COMPETENCIES[::3]), default_engine
    right = {True: 0.0, False: 0.0}
    for example in bench.examples():
        routes = [(m["sub_state"],) for m in example.messages]
        messages = [{k: v for k, v in m.items() if k != "sub_state"} for m in example.messages]
        state = engine.write(engine.new_state(), messages, routes)
        asked = [q for q in example.questions if q.group != "never_told"]
        for told in right:
            answers = engine.answer(state if told else None, [q.text for q in asked])
            scored = [bench.score(example, q, a)["exact_match"] for q, a in zip(asked, answers, strict=True)]
            right[told] += sum(scored) / len(scored) / 2
    assert right[True] >= 0.6
    assert right[False] == 0.0
