"""The long run, short: the command of its docstring, its script of turns, and going on after an interruption."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
TINY = {"turns": 30, "facts": 6, "forks": 1, "restarts": 1, "agents": 4, "day": 10}
ENV = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def command(out: Path, **options: int) -> list[str]:
    given = [word for name, value in (TINY | options).items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(FOLDER / "long_run.py"), *given, "--out", str(out)]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the command."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("long_run")


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that draws the turns."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("long_run_script")


def settings(plan: ModuleType, **changes: int) -> Any:
    known = plan.Settings(turns=2000, facts=50, forks=10, restarts=5, agents=4, day=50, seed=3, threads=1)
    return replace(known, **changes)


@pytest.mark.slow
def test_run(tmp_path: Path) -> None:
    words = [*command(tmp_path), "--end-tasks"]
    done = subprocess.run(words, capture_output=True, text=True, env=ENV, timeout=280)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "long_run.json").read_text(encoding="utf-8"))
    assert document["environment"]["command"].startswith("python benchmarks/long_run.py --turns 30 --facts 6")
    assert {"torch", "python", "device", "date"} <= set(document["environment"])
    assert str(tmp_path) not in json.dumps(document)
    check_agent(document)
    crowd = document["crowd"]
    assert (crowd["agents"], crowd["turns"], crowd["crossings"]) == (4, 12, [])
    assert crowd["turns_per_s"] > 0 and crowd["exact_match"] >= 0.5 and crowd["peak_rss"] > 2**26
    assert (tmp_path / "long_run.png").read_bytes().startswith(b"\x89PNG")
    assert "| told so many turns ago" in done.stdout
    check_rows(tmp_path)


def check_agent(document: dict[str, Any]) -> None:
    """Each turn once, through a kill and a fork; figures that fit each other."""
    verified = document["verified"]
    assert (verified["problems"], verified["turns_in_the_journal_once"]) == ([], 30)
    assert verified["versions"] > verified["on_the_line_of_the_head"]  # the fork's
    assert verified["resets"] == 2  # at the ends of the days but the last
    assert len(document["kills"]) == 1 and len(document["processes"]) == 1 + document["kills"][0]["killed"]
    (fork,) = document["forks"]
    assert fork["from_end_of_turn"] < fork["before_turn"] - 1
    assert len(document["state_bytes"]) == 1
    for name in ("wall_s", "cpu_s"):
        times = document["turn"][name]
        assert times["ratio"] == pytest.approx(times["last"] / times["first"], abs=1e-3)
    recall = document["recall"]
    assert 0 <= document["small_talk"]["exact_match"] <= 1
    assert recall["questions"] == sum(row["questions"] for row in recall["by_age"]) > 0
    assert [row["first_turn"] for row in document["windows"]] == [0, 10, 20]
    assert sum(row["questions"] for row in document["windows"]) == recall["questions"]
    assert document["memory"]["most"] >= document["memory"]["last_process"] > 2**26
    assert document["files"]["memory_db"]["last"] > document["state_bytes"][0]


def check_rows(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    turns = [row for row in rows if row["row"] == "turn"]
    assert [row["turn"] for row in turns] == list(range(30))
    assert all(row["answer"] for row in turns)
    told = [row for row in turns if row["kind"] == "new"]
    assert [row["answer"] for row in told] == ["Noted."] * 6


def test_the_script_is_the_same_for_every_process(plan: ModuleType) -> None:
    assert plan.script(settings(plan)) == plan.script(settings(plan))
    assert plan.script(settings(plan)) != plan.script(settings(plan, seed=4))


def test_forks_have_turns_to_go_back_to(plan: ModuleType) -> None:
    known = settings(plan, forks=200)
    forks = plan.fork_points(known)
    assert forks == plan.fork_points(known) and len(forks) == 200
    assert all(plan.thread_of(known, forks, fork - 1)[1] <= fork - 3 for fork in forks)


def test_questions_ask_for_what_was_told_last(plan: ModuleType) -> None:
    turns = plan.script(settings(plan))
    ages = []
    for turn in turns:
        known = plan.facts_at(turns[: turn.number])
        assert len(known) == min(turn.number, 50)
        if turn.kind == "ask":
            assert turn.answer == known[turn.fact.key].value
            teller = turns[turn.number - turn.age]
            assert teller.kind in ("new", "again", "update", "lookup") and teller.fact == turn.fact
            ages.append(turn.age)
        if turn.kind == "update":
            assert turn.fact.value != known[turn.fact.key].value and turn.fact.value in turn.text
    assert min(ages) <= 10 and max(ages) > 200
    assert {turn.kind for turn in turns} == {"new", "again", "update", "lookup", "ask", "talk"}


def test_threads_begin_each_day_and_after_each_fork(plan: ModuleType) -> None:
    found = [plan.thread_of(settings(plan), [73], turn)[1] for turn in (0, 49, 50, 72, 73, 99, 100)]
    assert found == [0, 0, 50, 50, 73, 73, 100]


def test_half_a_line_is_cut_off(plan: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / plan.ROWS
    path.write_text('{"row": "turn", "turn": 0}\n{"row": "tu', encoding="utf-8")
    assert plan.read_rows(tmp_path) == [{"row": "turn", "turn": 0}]
    assert path.read_text(encoding="utf-8") == '{"row": "turn", "turn": 0}\n'


@pytest.mark.parametrize(
    ("options", "said"), [({"turns": 6}, "at least 10"), ({"facts": 30}, "ask for more turns"), ({"forks": 99}, "room")]
)
def test_options_that_do_not_fit_are_refused(
    driver: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, int],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", command(tmp_path / "out", **options)[1:])
    with pytest.raises(SystemExit) as refused:
        driver.main()
    assert said in f"{refused.value} {capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_refused(driver: ModuleType, plan: ModuleType, tmp_path: Path) -> None:
    driver.prepare(settings(plan), tmp_path)
    driver.prepare(settings(plan), tmp_path)
    with pytest.raises(SystemExit, match="holds a run with other options"):
        driver.prepare(settings(plan, seed=4), tmp_path)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(command(tmp_path), capture_output=True, env=ENV, timeout=9)
    before = (tmp_path / "rows.jsonl").read_text(encoding="utf-8") if (tmp_path / "rows.jsonl").exists() else ""
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, env=ENV, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8").startswith(before[: before.rfind("\n") + 1])
    check_rows(tmp_path)
    document = json.loads((tmp_path / "long_run.json").read_text(encoding="utf-8"))
    assert document["verified"]["turns_in_the_journal_once"] == 30
