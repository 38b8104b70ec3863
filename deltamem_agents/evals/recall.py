"""Recall in the world of the embedded adapter: tell, then ask with the question alone in the prompt.

    deltamem eval recall --out adapters/worldops-msw/results.json

Sessions come from seeds that training never used. A session is written message by message, as agents do; the answer
counts when it is exactly the whole value. Beside the memory stand the backbone that sees the question alone, and the
backbone that sees the whole dialogue before it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from ..config import DEFAULT_ADAPTER
from ..engine import Engine, load_engine
from ..errors import DeltaMemError, RecipeError
from ..training.world import (
    TASK,
    Question,
    Session,
    Spec,
    fact_questions,
    never_told,
    new_session,
    rng_for,
    task_questions,
)

Ask = Callable[[Random, Session], list[Question]]
SEED = 20_000
ROWS = 64  # sessions written, or questions answered, at once


@dataclass(frozen=True)
class Cell:
    """One row of the table: sessions like ``spec``, asked ``ask``; ``aim`` is the share of exact answers to reach."""

    name: str
    title: str
    aim: float
    spec: Spec
    ask: Ask
    task: bool = False  # a task of 3-8 steps in every session
    reset: bool = False  # task_progress is emptied before the questions


def _facts(count: int, group: str | None = None, held_out: bool = False) -> Ask:
    def ask(rng: Random, session: Session) -> list[Question]:
        asked = fact_questions(rng, session, count, held_out)
        return [q for q in asked if group is None or q.group == group]

    return ask


def _task(reset: bool = False) -> Ask:
    return lambda rng, session: task_questions(rng, session, ("current", "done", "next"), reset)


def _unknown(rng: Random, session: Session) -> list[Question]:
    return [never_told(rng, session) for _ in range(4)]


CELLS: tuple[Cell, ...] = (
    Cell("facts_4", "4 facts told", 0.97, Spec(facts=4), _facts(4)),
    Cell("facts_8", "8 facts told", 0.95, Spec(facts=8), _facts(8)),
    Cell("facts_16", "16 facts told", 0.85, Spec(facts=16), _facts(16)),
    Cell(
        "small_talk_30", "8 facts, then 30 turns of small talk", 0.90, Spec(facts=8, talk=30, talk_last=True), _facts(8)
    ),
    Cell("updated", "an updated fact: the new value", 0.93, Spec(facts=8, updates=3), _facts(3, "updated")),
    Cell("tool", "told by a tool result", 0.95, Spec(facts=8, from_tools=4), _facts(8, "tool")),
    Cell("task", "task progress (current, done, next) after 3-8 steps", 0.95, Spec(facts=4), _task(), task=True),
    Cell("never_told", 'never told: "I don\'t know."', 0.95, Spec(facts=8), _unknown),
    Cell("held_out", "8 facts, held-out phrasings", 0.85, Spec(facts=8, held_out=True), _facts(8, held_out=True)),
    Cell("reset_facts", "facts after reset of task_progress", 0.95, Spec(facts=8), _facts(8), task=True, reset=True),
    Cell(
        "reset_task",
        'task after reset of task_progress: "I don\'t know."',
        0.95,
        Spec(facts=8),
        _task(True),
        task=True,
        reset=True,
    ),
)


def run_recall(
    adapter: str = DEFAULT_ADAPTER,
    questions: int = 1000,
    out: Path | None = None,
    cells: list[str] | None = None,
    baselines: bool = True,
    say: Callable[[str], None] = print,
    baseline_questions: int = 250,
) -> dict[str, Any]:
    """Measure the cells and write them to ``out`` as JSON.

    Args:
        questions: asked of the memory in each cell.
        cells: names of :data:`CELLS`; None: all.
        baselines: also measure without memory and with the whole dialogue in context, on the first
            ``baseline_questions`` of the same questions.

    Raises:
        RecipeError: an unknown cell.
        DeltaMemError: ``out`` cannot be written; nothing is measured then.
    """
    known = {cell.name: cell for cell in CELLS}
    if unknown := [name for name in cells or () if name not in known]:
        raise RecipeError(f"unknown cell {unknown[0]!r}; known are {list(known)}")
    if out is not None:
        check_writable(out)
    engine = load_engine(adapter)
    document: dict[str, Any] = {
        "adapter": str(adapter),
        "fingerprint": engine.fingerprint,
        "questions": questions,
        "baseline_questions": min(questions, baseline_questions) if baselines else 0,
        "seed": SEED,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cells": {},
    }
    for name in cells or known:
        if known[name].reset and TASK not in engine.sub_states:
            say(f"{name}: left out, the adapter has no sub-state {TASK}")
            continue
        started = time.monotonic()
        row = measure(engine, known[name], questions, document["baseline_questions"])
        row["seconds"] = round(time.monotonic() - started, 1)
        document["cells"][name] = row
        say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items() if key != "title"))
        if out is not None:
            out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return document


def check_writable(path: Path) -> None:
    """Make the folder of ``path``; DeltaMemError when no file can be written there. A file that is there is kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise DeltaMemError(f"results cannot be written to {path}: {error.strerror}; give another --out") from error


def measure(engine: Engine, cell: Cell, questions: int, baseline_questions: int) -> dict[str, Any]:
    """One cell: shares of exact answers, and of old values where facts were updated."""
    sessions, asked = draw(cell, questions)
    hits, old, identical = 0, 0, True
    order = 0
    for start in range(0, len(sessions), ROWS):
        group = range(start, min(start + ROWS, len(sessions)))
        state = write_sessions(engine, [sessions[i] for i in group])
        if cell.reset:
            empty = state.reset(TASK)
            kept, was = empty.select("facts").tensors, state.select("facts").tensors
            identical = identical and all(torch.equal(kept[name], was[name]) for name in was)
            state = empty
        own = [(i - group[0], q) for i, q in asked if group[0] <= i <= group[-1]]
        answers = engine.answer(state.rows([i for i, _ in own]), [q.messages[:-1] for _, q in own], batch_size=ROWS)
        hits += sum(answer == q.answer for answer, (_, q) in zip(answers, own, strict=True))
        old += sum(answer == q.old for answer, (_, q) in zip(answers, own, strict=True))
        order += len(own)
    row: dict[str, Any] = {"title": cell.title, "aim": cell.aim, "memory": round(hits / order, 4), "questions": order}
    if cell.name == "updated":
        row["old_value"] = round(old / order, 4)
    if cell.reset:
        row["facts_bit_identical"] = identical
    if baseline_questions:
        row |= baseline(engine, sessions, asked[:baseline_questions])
    return row


def draw(cell: Cell, questions: int) -> tuple[list[Session], list[tuple[int, Question]]]:
    """Sessions of unseen seeds, and ``questions`` questions, each with the number of its session."""
    sessions: list[Session] = []
    asked: list[tuple[int, Question]] = []
    while len(asked) < questions:
        rng = rng_for(SEED, len(sessions), f"recall/{cell.name}")
        spec = replace(cell.spec, task_steps=rng.randint(3, 8)) if cell.task else cell.spec
        sessions.append(new_session(rng, spec))
        asked += [(len(sessions) - 1, q) for q in cell.ask(rng, sessions[-1])]
    return sessions, asked[:questions]


def write_sessions(engine: Engine, sessions: Sequence[Session]) -> Any:
    """Write each session message by message into an empty memory of its own."""
    messages = [[_bare(m) for m in s.messages] for s in sessions]
    known = engine.sub_states
    routes = [[(m["sub_state"],) if m["sub_state"] in known else known for m in s.messages] for s in sessions]
    return engine.write_batch(engine.new_state(len(sessions)), messages, routes)


def baseline(engine: Engine, sessions: Sequence[Session], asked: Sequence[tuple[int, Question]]) -> dict[str, float]:
    """The same questions without memory: alone, and after the whole dialogue."""
    alone = engine.answer(None, [q.messages[:-1] for _, q in asked], batch_size=ROWS)
    whole = engine.answer(
        None, [[_bare(m) for m in sessions[i].messages] + q.messages[:-1] for i, q in asked], batch_size=16
    )
    return {
        "no_memory": round(sum(a == q.answer for a, (_, q) in zip(alone, asked, strict=True)) / len(asked), 4),
        "full_context": round(sum(a == q.answer for a, (_, q) in zip(whole, asked, strict=True)) / len(asked), 4),
    }


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "sub_state"}
