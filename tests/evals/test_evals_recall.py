"""Recall: what is asked has been told, a cell measures what its title says, and the table shows it."""

import json
from pathlib import Path

import pytest

from deltamem_agents.errors import RecipeError
from deltamem_agents.evals.recall import CELLS, draw, run_recall
from deltamem_agents.evals.report import markdown

BY_NAME = {cell.name: cell for cell in CELLS}


def test_the_same_sessions_every_time() -> None:
    first, again = draw(BY_NAME["updated"], 30), draw(BY_NAME["updated"], 30)
    assert [s.messages for s in first[0]] == [s.messages for s in again[0]]
    assert first[1] == again[1]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_questions_are_of_the_cells_kind(cell) -> None:  # type: ignore[no-untyped-def]
    sessions, asked = draw(cell, 40)
    assert len(asked) == 40
    groups = {question.group for _, question in asked}
    wanted = {
        "updated": {"updated"},
        "tool": {"tool"},
        "task": {"task_current", "task_done", "task_next"},
        "never_told": {"never_told"},
        "reset_task": {"task_reset"},
    }
    assert groups == wanted.get(cell.name, {"fact"})
    for number, question in asked:
        said = " ".join(str(m["content"]) for m in sessions[number].messages)
        told = question.answer.rstrip(".").lower() in said.lower() or question.answer == "Nothing."
        assert told == (question.answer != "I don't know.")
    if cell.name.startswith("facts_"):
        assert {len(session.facts) for session in sessions} == {int(cell.name[6:])}


def test_a_run_is_written_and_becomes_a_table(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    document = run_recall(questions=12, out=out, cells=["facts_4", "updated"], say=lambda _: None, baseline_questions=4)
    assert json.loads(out.read_text()) == document
    told = document["cells"]["facts_4"]
    assert (told["questions"], document["baseline_questions"]) == (12, 4)
    assert told["memory"] >= 0.75 > 0.25 >= told["no_memory"]
    lines = markdown(document).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| 4 facts told | 0.97 | ")
    assert f"(old value {document['cells']['updated']['old_value']:.2f}) |" in lines[3]


def test_what_was_not_measured_is_a_dash() -> None:
    cell = {"title": "t", "aim": 0.9, "memory": 0.875}
    assert markdown({"cells": {"x": cell}}).splitlines()[2] == "| t | 0.90 | 0.88 | - | - |"


def test_unknown_cells_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown cell 'nix'.*facts_4"):
        run_recall(cells=["nix"])
