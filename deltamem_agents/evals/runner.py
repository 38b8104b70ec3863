"""Brings benchmarks and agents together: tells, asks, scores, measures, and goes on where a killed run stopped.

    out/<benchmark>/<agent>.jsonl   a line for each question: ids, answer, right answers, scores, counts of tokens
    out/<benchmark>/<agent>.json    how the agent was set up, and what was measured for each example and in all

The second file also says what the answers in the first belong to: the agent's ``config`` and a hash of each example.
"""

import hashlib
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..errors import DeltaMemError
from .agents.base import EngineAgent
from .contract import Answer, Benchmark, Example, Question

QUESTIONS = 64  # asked, and then written down, at once


@dataclass(frozen=True)
class Results:
    """What a run left in ``folder``.

    Attributes:
        scores: agent -> mean of the headline metric over all questions of this run.
        measured: agent -> write_seconds_per_1000_tokens, latency_seconds (median), state_bytes (the most that an
            example needed), told_tokens (of all examples), questions (answered in ``folder``).
    """

    benchmark: str
    folder: Path
    scores: dict[str, float]
    measured: dict[str, dict[str, Any]]


def run(
    benchmark: Benchmark,
    agents: Sequence[EngineAgent],
    out: Path | str,
    *,
    latency_questions: int = 5,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> Results:
    """Let each agent be told each example and answer its questions; what is in ``out`` already is not asked again.

    Args:
        out: folder of the results.
        latency_questions: of each example, asked once more, one at a time, with a clock.
        limit: examples at the most.

    Raises:
        DeltaMemError: ``out`` has results of another configuration or other examples under these names, or damaged
            ones, or cannot be written; two agents have one name; two questions have one id.
    """
    folder = Path(out) / file_name(benchmark.name)
    examples = list(islice(benchmark.examples(), limit))
    _check_names(agents, examples)
    records = [Record.open(folder, benchmark, agent, examples) for agent in agents]
    scores, measured = {}, {}
    for agent, record in zip(agents, records, strict=True):
        todo = [example for example in examples if record.wants(example, latency_questions)]
        if todo:
            _warm_up(agent, todo[0])
        for example in tqdm(todo, f"{benchmark.name}, {agent.name}", disable=None):
            _run_example(benchmark, agent, example, record, latency_questions)
        agent.forget()
        measured[agent.name] = record.summarise()
        scores[agent.name] = record.mean(examples)
        asked = sum(len(example.questions) for example in examples)
        say(f"{benchmark.name}, {agent.name}: {scores[agent.name]:.4f} in {asked} questions")
    return Results(benchmark.name, folder, scores, measured)


class Record:
    """The two files of one agent."""

    def __init__(self, path: Path, head: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self.path, self.head, self.lines = path, head, {line["question"]: line for line in lines}

    @classmethod
    def open(cls, folder: Path, benchmark: Benchmark, agent: EngineAgent, examples: Sequence[Example]) -> "Record":
        """The record of this agent, new or as a run before left it, its last line cut off if it is not whole.

        Raises:
            DeltaMemError: it is of another configuration, of other examples or was scored otherwise, or cannot be read
                or written.
        """
        path = folder / f"{file_name(agent.name)}.json"
        config = json.loads(json.dumps(agent.config))
        head: dict[str, Any] = {"benchmark": benchmark.name, "agent": agent.name, "config": config, "examples": {}}
        if benchmark.scoring:
            head["scoring"] = dict(benchmark.scoring)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                head = _same(path, json.loads(path.read_text(encoding="utf-8")), head)
            elif path.with_suffix(".jsonl").exists():
                raise DeltaMemError(f"{path} is missing beside the answers in {path.stem}.jsonl: delete these")
            for example in examples:
                kept = head["examples"].setdefault(example.id, {"sha256": digest(example)})
                if kept["sha256"] != digest(example):
                    raise DeltaMemError(
                        f"{path} has answers about another example {example.id!r} of {benchmark.name}: give another "
                        "folder for the results, or delete this file and its .jsonl"
                    )
            record = cls(path, head, _whole_lines(path.with_suffix(".jsonl")))
            record.save()
        except (OSError, json.JSONDecodeError) as error:
            raise DeltaMemError(f"results cannot be kept in {path} ({error}): give another folder") from error
        return record

    def wants(self, example: Example, latency_questions: int) -> bool:
        """Whether something is to be asked or measured."""
        measured = self.head["examples"][example.id].get("latency_seconds", ())
        return bool(self.open_questions(example)) or len(measured) < min(latency_questions, len(example.questions))

    def open_questions(self, example: Example) -> list[Question]:
        """Those without an answer."""
        return [q for q in example.questions if q.id not in self.lines]

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write answers down."""
        with self.path.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.lines |= {line["question"]: line for line in lines}

    def measure(self, example: Example, **found: Any) -> None:
        """Write down what was measured."""
        self.head["examples"][example.id] |= found
        self.save()

    def save(self) -> None:
        """Write the JSON file, whole or not at all."""
        fresh = self.path.with_suffix(".json.new")
        fresh.write_text(json.dumps(self.head, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        fresh.replace(self.path)

    def summarise(self) -> dict[str, Any]:
        """What was measured in all; also written down."""
        told = [e for e in self.head["examples"].values() if "write_seconds" in e]
        tokens = sum(e["told_tokens"] for e in told)
        latencies = [s for e in told for s in e.get("latency_seconds", ())]
        self.head["measured"] = {
            "write_seconds_per_1000_tokens": 1000 * sum(e["write_seconds"] for e in told) / tokens if tokens else None,
            "latency_seconds": statistics.median(latencies) if latencies else None,
            "state_bytes": max((e["state_bytes"] for e in told), default=None),
            "told_tokens": tokens,
            "questions": len(self.lines),
        }
        self.save()
        found: dict[str, Any] = self.head["measured"]
        return found

    def mean(self, examples: Sequence[Example]) -> float:
        """Mean of the headline metric over the questions of ``examples``."""
        lines = [self.lines[q.id] for example in examples for q in example.questions]
        return statistics.fmean(line["scores"][line["headline"]] for line in lines) if lines else float("nan")


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of an agent's ``.jsonl``; one at the end that is not whole is passed over.

    Raises:
        DeltaMemError: a line is damaged: the file and the line are named.
    """
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise DeltaMemError(
                f"{path}, line {number} is no JSON ({error}): delete the line, it is asked again"
            ) from error
    return lines


def file_name(name: str) -> str:
    """A name of a benchmark or agent as it stands in names of files."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "_"


def digest(example: Example) -> str:
    """SHA-256 of all of an example, messages, questions and answers."""
    return hashlib.sha256(json.dumps(asdict(example), sort_keys=True, default=str).encode()).hexdigest()


def _run_example(
    benchmark: Benchmark, agent: EngineAgent, example: Example, record: Record, latency_questions: int
) -> None:
    agent.forget()
    with _clock() as seconds:
        agent.tell(example.messages)
    record.measure(
        example,
        told_tokens=agent.count(example.messages),
        write_seconds=seconds[0],
        state_bytes=agent.state_bytes,
    )
    todo = record.open_questions(example)
    for start in range(0, len(todo), QUESTIONS):
        part = todo[start : start + QUESTIONS]
        answers = agent.ask([q.text for q in part], example.max_tokens)
        record.add([_line(benchmark, agent, example, q, a) for q, a in zip(part, answers, strict=True)])
    latencies = []
    for question in example.questions[:latency_questions]:
        with _clock() as seconds:
            agent.ask([question.text], example.max_tokens)
        latencies.append(seconds[0])
    record.measure(example, latency_seconds=latencies)


def _line(
    benchmark: Benchmark, agent: EngineAgent, example: Example, question: Question, answer: Answer
) -> dict[str, Any]:
    return {
        "benchmark": benchmark.name,
        "agent": agent.name,
        "example": example.id,
        "question": question.id,
        "group": question.group,
        "source": example.source,
        "competency": example.competency,
        "answer": answer.text,
        "answers": list(question.answers),
        "scores": benchmark.score(example, question, answer.text),
        "headline": benchmark.headline(example),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cut_tokens": answer.cut_tokens,
    }


def _warm_up(agent: EngineAgent, example: Example) -> None:
    """What is compiled and allocated once for a process does not count."""
    agent.forget()
    agent.tell(example.messages[:1])
    if example.questions:
        agent.ask([example.questions[0].text], example.max_tokens)


@contextmanager
def _clock() -> Iterator[list[float]]:
    """Seconds of what happens inside, its work on the device included."""
    found: list[float] = []
    _synchronise()
    started = time.perf_counter()
    yield found
    _synchronise()
    found.append(time.perf_counter() - started)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _check_names(agents: Sequence[EngineAgent], examples: Sequence[Example]) -> None:
    for what, names in (
        ("agents have the name", [file_name(agent.name) for agent in agents]),
        ("examples have the id", [example.id for example in examples]),
        ("questions have the id", [q.id for example in examples for q in example.questions]),
    ):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise DeltaMemError(f"two {what} {name!r}, and results are kept by it: rename one")
            seen.add(name)


def _same(path: Path, kept: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """What is kept. Raises DeltaMemError, naming what differs, when it is of another run."""
    before, now = (
        {"benchmark": h["benchmark"], "name": h["agent"], **h["config"], **h.get("scoring", {})} for h in (kept, head)
    )
    if changed := [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]:
        key = changed[0]
        raise DeltaMemError(
            f"{path} was made with {key}={before.get(key)!r}, and now it is {now.get(key)!r}: give another folder for "
            "the results, or another name to the agent"
        )
    return kept


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the file; the rest of a line that a killed run left is cut off, in the file as well."""
    if not path.exists():
        return []
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    return read_answers(path)
