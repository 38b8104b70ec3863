"""Recall: what is asked has been told, a cell measures what its title says, and the table shows it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents.cli.evals import app
from deltamem_agents.errors import DeltaMemError, RecipeError
from deltamem_agents.evals import recall
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
    document = run_recall(questions=8, out=out, cells=["facts_4", "updated"], say=lambda _: None, baseline_questions=2)
    assert json.loads(out.read_text()) == document
    told = document["cells"]["facts_4"]
    assert (told["questions"], document["baseline_questions"]) == (8, 2)
    assert told["memory"] >= 0.75 > 0.25 >= told["no_memory"]
    lines = markdown(document).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| 4 facts told | 0.970 | ")
    assert f"(old value {document['cells']['updated']['old_value']:.3f}) |" in lines[3]


def test_what_was_not_measured_is_a_dash() -> None:
    cell = {"title": "t", "aim": 0.9, "memory": 0.875}
    assert markdown({"cells": {"x": cell}}).splitlines()[2] == "| t | 0.900 | 0.875 | - | - |"


def test_a_share_below_its_aim_does_not_look_as_if_it_reached_it() -> None:
    cell = {"title": "t", "aim": 0.93, "memory": 0.928}
    assert markdown({"cells": {"x": cell}}).splitlines()[2] == "| t | 0.930 | 0.928 | - | - |"


def test_results_that_cannot_be_written_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "load_engine", None)  # not reached
    (tmp_path / "file").write_text("text")
    for out in (tmp_path / "file" / "x.json", tmp_path):
        with pytest.raises(DeltaMemError, match=rf"results cannot be written to {out}: .* --out"):
            run_recall(out=out)


def test_results_get_their_folder_and_what_is_there_is_kept(tmp_path: Path) -> None:
    recall.check_writable(tmp_path / "new" / "folder" / "x.json")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "old.json").write_text("{}")
    recall.check_writable(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "{}"


def test_the_command_says_how_many_baseline_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(*arguments: object) -> dict[str, dict[str, object]]:
        asked.append(arguments[-1])  # type: ignore[arg-type]
        return {"cells": {}}

    monkeypatch.setattr(recall, "run_recall", measured)
    for options in ([], ["--baseline-questions", "40"]):
        done = CliRunner().invoke(app, ["recall", *options])
        assert done.exit_code == 0, done.output
    assert asked == [250, 40]


def test_unknown_cells_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown cell 'nix'.*facts_4"):
        run_recall(cells=["nix"])
