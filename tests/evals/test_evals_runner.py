"""The runner asks each question once, goes on where it was stopped, and refuses what does not belong together."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents.engine import Engine
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals.agents import DeltaMem, NoMemory, SlidingWindow
from deltamem_agents.evals.contract import Answer, Benchmark, Example, Message, Question, Scores
from deltamem_agents.evals.runner import read_answers, run


class Tanks(Benchmark):
    """Three examples of two questions; the score is the number of the question's last digit over 10."""

    name = "Tanks / small"

    def __init__(self, word: str = "rice") -> None:
        self.word = word

    def examples(self) -> Iterator[Example]:
        for i in range(3):
            told = tuple({"role": "user", "content": f"tank {i} holds {self.word} {k}."} for k in range(2))
            asked = tuple(Question(f"e{i}q{k}", f"What is in tank {k}?", (self.word,), f"g{k}") for k in range(2))
            yield Example(f"e{i}", told, asked, "source", "competency", 3)

    def score(self, example: Example, question: Question, answer: str) -> Scores:
        return {"digit": int(question.id[-1]) / 10, "length": float(len(answer) > 0)}

    def headline(self, example: Example) -> str:
        return "digit"


class Diary(NoMemory):
    """Notes what happens to it; the ``stop``-th batch of two or more questions kills it."""

    def __init__(self, engine: Engine, name: str = "diary", stop: int = 100) -> None:
        super().__init__(engine, name)
        self.stop, self.did = stop, list[tuple[str, Any]]()

    def forget(self) -> None:
        self.did.append(("forget", None))

    def tell(self, messages: Sequence[Message]) -> None:
        self.did.append(("tell", len(messages)))

    def ask(self, questions: Sequence[str], max_tokens: int) -> list[Answer]:
        self.did.append(("ask", len(questions)))
        if len(questions) > 1:
            self.stop -= 1
            if self.stop < 0:
                raise KeyboardInterrupt
        return super().ask(questions, max_tokens)


def quiet(_: str) -> None: ...


def test_every_example_is_told_to_a_new_agent_and_asked_in_one_batch(engine: Engine, tmp_path: Path) -> None:
    agent = Diary(engine)
    results = run(Tanks(), [agent], tmp_path, latency_questions=1, say=quiet)
    each = [("forget", None), ("tell", 2), ("ask", 2), ("ask", 1)]
    warm = [("forget", None), ("tell", 1), ("ask", 1)]
    assert agent.did == [*warm, *each * 3, ("forget", None)]
    assert results.folder == tmp_path / "Tanks_small"
    assert results.scores == {"diary": pytest.approx(0.05)}


def test_a_line_says_all_about_an_answer(engine: Engine, tmp_path: Path) -> None:
    run(Tanks(), [SlidingWindow(engine, messages=1)], tmp_path, limit=1, say=quiet)
    lines = read_answers(tmp_path / "Tanks_small" / "last_1_messages.jsonl")
    assert [line["question"] for line in lines] == ["e0q0", "e0q1"]
    line = lines[1]
    alone = SlidingWindow(engine, messages=1)
    alone.tell([{"role": "user", "content": "tank 0 holds rice 1."}])
    answer = alone.ask(["What is in tank 1?"], 3)[0]
    assert line == {
        "benchmark": "Tanks / small",
        "agent": "last 1 messages",
        "example": "e0",
        "question": "e0q1",
        "group": "g1",
        "source": "source",
        "competency": "competency",
        "answer": answer.text,
        "answers": ["rice"],
        "scores": {"digit": 0.1, "length": float(len(answer.text) > 0)},
        "headline": "digit",
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cut_tokens": 0,
    }


def test_what_was_measured_stands_beside_the_answers(engine: Engine, tmp_path: Path) -> None:
    agent = DeltaMem(engine)
    results = run(Tanks(), [agent], tmp_path, latency_questions=2, say=quiet)
    kept = json.loads((tmp_path / "Tanks_small" / "δ-mem.json").read_text(encoding="utf-8"))
    measured = results.measured["δ-mem"]
    assert kept["measured"] == measured
    tokens = sum(len(engine.text.message(m)) for e in Tanks().examples() for m in e.messages)
    assert (measured["told_tokens"], measured["state_bytes"], measured["questions"]) == (tokens, agent.state_bytes, 6)
    seconds = sum(e["write_seconds"] for e in kept["examples"].values())
    assert measured["write_seconds_per_1000_tokens"] == pytest.approx(1000 * seconds / tokens)
    latencies = sorted(s for e in kept["examples"].values() for s in e["latency_seconds"])
    assert len(latencies) == 6
    assert measured["latency_seconds"] == pytest.approx((latencies[2] + latencies[3]) / 2)


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(engine: Engine, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(Tanks(), [Diary(engine)], whole, say=quiet)
    with pytest.raises(KeyboardInterrupt):
        run(Tanks(), [Diary(engine, stop=2)], cut, say=quiet)
    path = cut / "Tanks_small" / "diary.jsonl"
    data = path.read_bytes()
    assert data.count(b"\n") == 4
    path.write_bytes(data[:-20])  # the kill came in the midst of a line
    agent = Diary(engine)
    run(Tanks(), [agent], cut, latency_questions=0, say=quiet)
    assert [n for what, n in agent.did if what == "ask"] == [1, 1, 2]  # the warm-up, the line cut off, the last example
    assert path.read_bytes() == (whole / "Tanks_small" / "diary.jsonl").read_bytes()


def test_a_finished_run_asks_nothing_again(engine: Engine, tmp_path: Path) -> None:
    first = run(Tanks(), [Diary(engine)], tmp_path, say=quiet)
    agent = Diary(engine)
    assert run(Tanks(), [agent], tmp_path, say=quiet) == first
    assert agent.did == [("forget", None)]


def test_more_examples_are_added_to_those_asked(engine: Engine, tmp_path: Path) -> None:
    run(Tanks(), [Diary(engine)], tmp_path, limit=1, say=quiet)
    agent = Diary(engine)
    run(Tanks(), [agent], tmp_path, limit=2, latency_questions=0, say=quiet)
    assert [n for what, n in agent.did if what == "ask"] == [1, 2]


def test_results_of_another_configuration_are_refused_by_name(engine: Engine, tmp_path: Path) -> None:
    run(Tanks(), [DeltaMem(engine)], tmp_path, limit=1, say=quiet)
    before = (tmp_path / "Tanks_small" / "δ-mem.jsonl").read_bytes()
    with pytest.raises(DeltaMemError, match="routed=True, and now it is False"):
        run(Tanks(), [DeltaMem(engine, routed=False)], tmp_path, limit=1, say=quiet)
    with pytest.raises(DeltaMemError, match="another example 'e0' of Tanks"):
        run(Tanks("salt"), [DeltaMem(engine)], tmp_path, limit=1, say=quiet)
    assert (tmp_path / "Tanks_small" / "δ-mem.jsonl").read_bytes() == before


def test_damaged_results_are_refused_by_line(engine: Engine, tmp_path: Path) -> None:
    run(Tanks(), [Diary(engine)], tmp_path, limit=1, say=quiet)
    path = tmp_path / "Tanks_small" / "diary.jsonl"
    path.write_bytes(b"{oops\n" + path.read_bytes())
    with pytest.raises(DeltaMemError, match=r"diary.jsonl, line 1"):
        run(Tanks(), [Diary(engine)], tmp_path, limit=1, say=quiet)
    path.with_suffix(".json").unlink()
    with pytest.raises(DeltaMemError, match=r"diary.json is missing"):
        run(Tanks(), [Diary(engine)], tmp_path, limit=1, say=quiet)


def test_names_that_would_fall_together_are_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DeltaMemError, match="two agents have the name 'a_b'"):
        run(Tanks(), [Diary(engine, "a b"), Diary(engine, "a/b")], tmp_path, say=quiet)


def test_results_that_cannot_be_kept_are_refused_before_anything_is_asked(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    agent = Diary(engine)
    with pytest.raises(DeltaMemError, match="give another folder"):
        run(Tanks(), [agent], tmp_path / "file", say=quiet)
    assert agent.did == []
