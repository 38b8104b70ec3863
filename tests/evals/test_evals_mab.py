"""MemoryAgentBench: rows are read and checked, contexts cut, questions asked and scored as their source demands."""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel

from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals import mab
from deltamem_agents.evals.contract import Example, Question
from deltamem_agents.evals.mab import MemoryAgentBench, chunks
from deltamem_agents.evals.mab_judge import RULES
from deltamem_agents.evals.mab_scoring import Entities, clean_title, entity_name, kind_of, listed


def words(text: str) -> int:
    return len(text.split())


def row(source: str = "ruler_qa1_197K", questions: int = 2, **metadata: Any) -> dict[str, Any]:
    return {
        "context": "Ada keeps bees. Ben has a boat.\nThe boat is red.",
        "questions": [f"Question {i}?" for i in range(questions)],
        "answers": [[f"answer {i}", f"other {i}"] for i in range(questions)],
        "metadata": {"source": source, "qa_pair_ids": [f"q{i}" for i in range(questions)]} | metadata,
    }


def write(folder: Path, *rows: Any, split: str = "Accurate_Retrieval") -> Path:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


def bench(source: Path | str, **options: Any) -> MemoryAgentBench:
    return MemoryAgentBench(source, count_tokens=words, **options)


def first(source: Path, **options: Any) -> tuple[MemoryAgentBench, Example, Question]:
    benchmark = bench(source, **options)
    example = next(benchmark.examples())
    return benchmark, example, example.questions[0]


def test_parquet_and_json_lines_say_the_same(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [row(), row("ruler_qa2_421K", 3)]
    (tmp_path / "lines").mkdir()
    (tmp_path / "columns" / "data").mkdir(parents=True)
    table = tmp_path / "columns" / "data" / "Accurate_Retrieval-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    lines = list(bench(write(tmp_path / "lines", *rows)).examples())
    assert lines == list(bench(tmp_path / "columns").examples()) == list(bench(table).examples())
    assert [(e.id, e.source, e.competency, e.max_tokens, len(e.questions)) for e in lines] == [
        ("Accurate_Retrieval/0", "ruler_qa1_197K", "Accurate_Retrieval", 50, 2),
        ("Accurate_Retrieval/1", "ruler_qa2_421K", "Accurate_Retrieval", 50, 3),
    ]
    question = lines[1].questions[2]
    assert (question.id, question.answers) == ("Accurate_Retrieval/1/2", ("answer 2", "other 2"))
    assert "Question 2?" in question.text
    assert question.metadata["qa_pair_id"] == "q2"


def test_the_hub_is_asked_for_each_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        asked.append((name, split))
        if split == "Conflict_Resolution":
            raise ConnectionError("offline")
        return [row("detective_qa")]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = bench("ai-hyz/MemoryAgentBench", splits=["Long_Range_Understanding", "Conflict_Resolution"]).examples()
    assert next(found).competency == "Long_Range_Understanding"
    with pytest.raises(DeltaMemError, match=r"ai-hyz/MemoryAgentBench, split Conflict_Resolution, .*offline.* folder"):
        next(found)
    assert [split for _, split in asked] == ["Long_Range_Understanding", "Conflict_Resolution"]


def test_choice_of_rows_and_questions(tmp_path: Path) -> None:
    write(tmp_path, row(), row("eventqa_full"), row("eventqa_full"), row("eventqa_65536"))
    write(tmp_path, row("factconsolidation_sh_6k"), split="Conflict_Resolution")

    def ids(**options: Any) -> list[str]:
        return [example.id for example in bench(tmp_path, **options).examples()]

    assert len(ids()) == 5
    assert ids(splits=["Conflict_Resolution"]) == ["Conflict_Resolution/0"]
    assert ids(sources=["eventqa"], max_examples=1) == ["Accurate_Retrieval/1", "Accurate_Retrieval/3"]
    assert ids(sources=["eventqa_65536"]) == ["Accurate_Retrieval/3"]
    assert len(first(tmp_path, max_questions=1)[1].questions) == 1
    with pytest.raises(DeltaMemError, match=r"no rows .*\['icl_'\]; its sources are \['eventqa_65536', 'eventqa_full'"):
        ids(sources=["icl_"])
    with pytest.raises(DeltaMemError, match=r"unknown split 'Other'.*Accurate_Retrieval"):
        ids(splits=["Other"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": " "}, "column context: expected a text"),
        ({"questions": []}, "column questions: expected a list of texts"),
        ({"questions": ["Who?", 3]}, "column questions: expected a list of texts"),
        ({"answers": [["a"]]}, "column answers: expected 2 lists"),
        ({"answers": [["a"], []]}, "column answers: expected a list of lists of texts"),
        ({"answers": ["a", "b"]}, "column answers: expected a list of lists of texts"),
        ({"metadata": {}}, "column metadata: expected an object with source"),
        ({"metadata": {"source": "icl_x", "question_types": ["a"]}}, r"metadata\.question_types: expected null or a"),
        ({"metadata": {"source": "poems"}}, r"column metadata: unknown source 'poems'; known are eventqa_\*"),
        ({"metadata": {"source": "recsys_redial_full"}}, r"entity2id\.json: give its path as entities="),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, row(), row() | change)
    with pytest.raises(DeltaMemError, match=r"Accurate_Retrieval\.jsonl, row 1.*" + message):
        list(bench(tmp_path).examples())


def test_files_that_are_none(tmp_path: Path) -> None:
    def read(path: Path | str) -> None:
        list(bench(path).examples())

    with pytest.raises(DeltaMemError, match=r"no file or folder .*gone.*ai-hyz/MemoryAgentBench"):
        read(tmp_path / "gone")
    with pytest.raises(DeltaMemError, match=r"read from \.parquet and \.jsonl files; there are none"):
        read(tmp_path)
    (tmp_path / "Accurate_Retrieval.parquet").write_bytes(b"no parquet")
    with pytest.raises(DeltaMemError, match=r"Accurate_Retrieval\.parquet is no parquet file that can be read"):
        read(tmp_path)
    (tmp_path / "Accurate_Retrieval.jsonl").write_text(json.dumps(row()) + "\n{")
    with pytest.raises(DeltaMemError, match=r"Accurate_Retrieval\.jsonl, row 1: not JSON"):
        read(tmp_path / "Accurate_Retrieval.jsonl")
    write(tmp_path, row(), split="other")
    with pytest.raises(DeltaMemError, match=r"other\.jsonl: of which split is it\? .*Accurate_Retrieval"):
        read(tmp_path / "other.jsonl")


def test_a_context_becomes_user_messages(tmp_path: Path) -> None:
    _, example, _ = first(write(tmp_path, row()), chunk_tokens=7)
    assert example.messages == (
        {"role": "user", "content": "Ada keeps bees. Ben has a boat.\n"},
        {"role": "user", "content": "The boat is red."},
    )


@settings(max_examples=60)
@given(st.text(alphabet="aB .\n"), st.integers(1, 12))
def test_chunks_hold_all_of_the_text_and_no_more_than_they_may(text: str, most: int) -> None:
    packed = chunks(text, most, len)
    assert "".join(packed) == text
    assert all(0 < len(chunk) <= most for chunk in packed)


def test_long_sentences_are_cut_between_words() -> None:
    assert chunks("one two three four. Five.", 2, words) == ["one two ", "three four. ", "Five."]
    with pytest.raises(DeltaMemError, match="chunks of 0 tokens hold not even 'a'"):
        chunks("a", 0, len)


SCORED = [
    # source, right answers, answer, headline, its value, another metric, its value
    ("ruler_qa1_197K", ["Rome"], "It is Rome.", "substring_exact_match", 1.0, "exact_match", 0.0),
    ("ruler_niah_multi", ["12", "ab", "99"], "12, AB", "ruler_recall", 2 / 3, "exact_match", 0.0),
    ("eventqa_65536", ["He left", "she ran"], "She ran. He left.", "eventqa_recall", 1.0, "exact_match", 0.0),
    ("eventqa_full", ["He left", "she ran"], "He left", "eventqa_recall", 0.0, "exact_match", 1.0),
    ("factconsolidation_mh_6k", ["Rome"], "now Rome", "substring_exact_match", 1.0, "f1", 2 / 3),
    ("detective_qa", ["B. The cook"], "So it is him.\nAnswer: B. The cook", "exact_match", 1.0, "f1", 1.0),
    ("icl_trec_fine_6400shot_balance", ["7"], "label: 7\nlabel: 8", "exact_match", 1.0, "f1", 1.0),
    ("icl_nlu_8296shot_balance", ["7"], "Answer: 7", "exact_match", 1.0, "f1", 1.0),
    ("icl_trec_fine_6400shot_balance", ["7"], "It is\n7", "exact_match", 0.0, "substring_exact_match", 0.0),
    ("world_facts", ["Rome."], "rome", "exact_match", 1.0, "f1", 1.0),
]


@pytest.mark.parametrize(("source", "right", "answer", "headline", "value", "other", "other_value"), SCORED)
def test_scores_follow_the_source(
    tmp_path: Path,
    source: str,
    right: list[str],
    answer: str,
    headline: str,
    value: float,
    other: str,
    other_value: float,
) -> None:
    benchmark, example, question = first(write(tmp_path, row(source, 1) | {"answers": [right]}))
    scores = benchmark.score(example, question, answer)
    assert benchmark.headline(example) == headline
    assert (scores[headline], scores[other]) == pytest.approx((value, other_value))


@pytest.mark.parametrize(
    ("source", "length"),
    {
        "eventqa_131072": 40,
        "longmemeval_s*": 50,
        "longmemeval_s_-1_500": 50,
        "ruler_qa2_421K": 50,
        "factconsolidation_sh_262k": 10,
        "detective_qa": 2000,
        "infbench_sum_eng_shots2": 1200,
        "icl_banking77_5900shot_balance": 20,
        "recsys_redial_full": 300,
    }.items(),
)
def test_lengths_of_answers(source: str, length: int) -> None:
    assert kind_of(source).max_tokens == length


def test_prompts_say_the_day_and_show_the_example(tmp_path: Path) -> None:
    dated = row("longmemeval_s*", 2, question_dates=["2030/06/02", "2030/06/03"]) | {
        "questions": ["When?", "It is 2030/06/03. When?"]
    }
    with pytest.warns(UserWarning, match=r"longmemeval_s\* is not judged: f1 counts; give judge="):
        _, example, _ = first(write(tmp_path, dated))
    assert [q.text.rpartition("\n\n")[2] for q in example.questions] == [
        "Today is 2030/06/02.\nWhen?",
        "It is 2030/06/03. When?",
    ]
    with pytest.warns(UserWarning, match="rougeLsum_f1"):
        _, _, question = first(write(tmp_path, row("infbench_sum_eng_shots2", 1, demo="Once {upon} a time")))
    assert "Once {upon} a time" in question.text


def test_what_is_not_judged_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not judged"):
        benchmark, example, question = first(write(tmp_path, row("longmemeval_s*", 1)))
    assert benchmark.headline(example) == "f1_not_judged"
    assert benchmark.score(example, question, "answer 0")["f1_not_judged"] == 1.0


class Recorder:
    """A chat model that keeps what it was asked."""

    def __init__(self, *replies: str) -> None:
        self.model, self.asked = FakeListChatModel(responses=list(replies)), []

    def invoke(self, prompt: str) -> Any:
        self.asked.append(prompt)
        return self.model.invoke(prompt)


def test_long_memory_answers_are_judged_by_type(tmp_path: Path) -> None:
    kinds = ["temporal-reasoning", "multi-session", "knowledge-update"]
    judge = Recorder("Yes.", "no", "**yes**")
    given = row("longmemeval_s*", 3, question_types=kinds, question_ids=["a", "b", "c_abs"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark, example, _ = first(write(tmp_path, given), judge=judge)
    assert benchmark.headline(example) == "judge_accuracy"
    assert [q.group for q in example.questions] == kinds
    scores = [benchmark.score(example, question, "said")["judge_accuracy"] for question in example.questions]
    assert scores == [1.0, 0.0, 1.0]
    for asked, rule in zip(judge.asked, ("temporal-reasoning", "multi-session", "abstention"), strict=True):
        assert RULES[rule] in asked
    assert "Question: Question 1?\nRight answer: answer 1 or other 1\nReply: said" in judge.asked[1]


def test_a_judge_that_does_not_judge_is_an_error(tmp_path: Path) -> None:
    benchmark, example, question = first(write(tmp_path, row("longmemeval_s*", 1)), judge=Recorder("Perhaps"))
    with pytest.raises(DeltaMemError, match="was to say yes or no and said 'Perhaps'"):
        benchmark.score(example, question, "said")
    odd = row("longmemeval_s*", 1, question_types=["riddle"])
    benchmark, example, question = first(write(tmp_path, odd), judge=Recorder("yes"))
    with pytest.raises(DeltaMemError, match=r"unknown type of question 'riddle'; known are .*multi-session"):
        benchmark.score(example, question, "said")


def summaries(folder: Path, *replies: str) -> tuple[MemoryAgentBench, Example, Question]:
    given = row("infbench_sum_eng_shots2", 1, keypoints=["bees", "boat", "red", "sea"])
    return first(write(folder, given), judge=Recorder(*replies))


def test_summaries_are_judged_by_key_points(tmp_path: Path) -> None:
    said = "Ada keeps bees. Ben sails."
    replies = ('{"fluent": true}', '```json\n{"numbers": [1, 2, 4, 4]}\n```', '{"numbers": [1]}')
    benchmark, example, question = summaries(tmp_path, *replies)
    scores = benchmark.score(example, question, said)
    assert (scores["judge_recall"], scores["judge_precision"], scores["judge_fluency"]) == (0.75, 0.5, 1.0)
    assert scores["judge_f1"] == pytest.approx(0.6)  # 2 * 0.75 * 0.5 / 1.25
    assert scores[benchmark.headline(example)] == scores["judge_f1"]
    broken = summaries(tmp_path, '{"fluent": false}', *replies[1:])
    assert broken[0].score(*broken[1:], said)["judge_f1"] == 0.0
    assert broken[0].score(*broken[1:], " ")["judge_f1"] == 0.0


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        (["fine"], "reply with JSON that has 'fluent' and said 'fine'"),
        (['{"fluent": 1}'], "true or false and gave 1"),
        (['{"fluent": true}', '{"numbers": [0]}'], r"numbers from 1 to 4 and gave \[0\]"),
        (['{"fluent": true}', '{"numbers": "1"}'], "numbers from 1 to 4 and gave '1'"),
    ],
)
def test_a_judge_of_summaries_keeps_to_the_form(tmp_path: Path, replies: list[str], message: str) -> None:
    benchmark, example, question = summaries(tmp_path, *replies)
    with pytest.raises(DeltaMemError, match=message):
        benchmark.score(example, question, "Ada keeps bees.")


FILMS = {
    "<http://dbpedia.org/resource/King_Kong_(1933_film)>": 10,
    "<http://dbpedia.org/resource/King_Kong_(2005_film)>": 11,
    "<http://dbpedia.org/resource/Fahrenheit_9/11>": 12,
    "Alien": 13,
    "A film with a very long title indeed": 14,
}


@pytest.fixture
def entities(tmp_path: Path) -> Path:
    path = tmp_path / "entity2id.json"
    path.write_text(json.dumps(FILMS))
    return path


def test_recommendations_are_mapped_to_the_nearest_name(tmp_path: Path, entities: Path) -> None:
    given = row("recsys_redial_full", 1) | {"answers": [["11", "14", "12"]]}
    (tmp_path / "data").mkdir()
    benchmark, example, question = first(write(tmp_path / "data", given), entities=entities)
    answer = "You may like:\n1. Aliens (1986)\n2) King  Kong (2005)\n3. fahrenheit 9/11\n- **alien**"
    scores = benchmark.score(example, question, answer)
    assert scores == pytest.approx({"recall@1": 0.0, "recall@5": 2 / 3, "recall@10": 2 / 3})
    assert benchmark.headline(example) == "recall@5"
    assert Entities(entities).recommended(answer) == ["13", "11", "12"]


def test_titles_and_lists() -> None:
    assert listed("Sure!\n1. Alien\n 2) Up \n(3) Heat\n* Jaws") == ["Alien", "Up", "Heat", "Jaws"]
    assert listed("Alien\n\nUp") == ["Alien", "Up"]
    assert clean_title("The  Thing (1982 film) ") == "the thing"
    assert entity_name("<http://dbpedia.org/resource/Up_(2009_film)>") == "Up (2009 film)"
    assert entity_name("Up_2") == "Up_2"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=9), min_size=1, max_size=8), st.text("abc", max_size=12))
def test_the_nearest_name_is_that_of_the_smallest_edit_distance(names: list[str], said: str) -> None:
    from nltk import edit_distance

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "entity2id.json"
        path.write_text(json.dumps({name: name for name in names}))
        nearest = Entities(path).nearest(said)
    assert edit_distance(said, nearest) == min(edit_distance(said, name) for name in names)


def test_an_entity_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DeltaMemError, match=r"gone\.json: No such file.*entity2id\.json"):
        bench(tmp_path, entities=tmp_path / "gone.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DeltaMemError, match=r"list\.json: expected an object of names and numbers"):
        bench(tmp_path, entities=tmp_path / "list.json")


def test_all_splits_are_read_by_default(tmp_path: Path) -> None:
    for split in mab.SPLITS:
        write(tmp_path, row(), split=split)
    assert sorted(example.competency for example in bench(tmp_path).examples()) == sorted(mab.SPLITS)


def test_the_modules_import_without_the_libraries_of_the_extra() -> None:
    blocked = "datasets pyarrow nltk rouge_score rank_bm25 pydantic langchain_core".split()
    code = f"import sys; sys.modules |= dict.fromkeys({blocked}); import deltamem_agents.evals.mab, "
    code += "deltamem_agents.evals.locomo"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
