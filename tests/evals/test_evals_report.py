"""A report is made of the files in its folder, says what it is of, and refuses what does not belong together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evals.ablated import made_up
from tiny import build_adapter_folder

from deltamem_agents.engine import Engine
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals.ablation_report import table as ablation_tables
from deltamem_agents.evals.agents import EngineAgent
from deltamem_agents.evals.contract import Answer
from deltamem_agents.evals.report import AGENTS, Plan, compare, make_agents, render, run_report, write_report
from deltamem_agents.evals.report import run as running
from deltamem_agents.evals.report.data import load, mean
from deltamem_agents.evals.report.tables import percent, size, table
from deltamem_agents.evals.statistics import Interval

TALK = {
    "sample_id": "talk-1",
    "conversation": {
        "session_1_date_time": "8:00 am on 2 June, 2030",
        "session_1": [{"speaker": "Ada", "text": "I keep bees."}],
    },
    "qa": [
        {"question": "What does Ada keep?", "answer": "bees", "category": 4},
        {"question": "When was that?", "answer": "2030", "category": 2},
    ],
}


def quiet(_: str) -> None: ...


@pytest.fixture(scope="module")
def plan(tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "talks.json").write_text(json.dumps([TALK]))
    (folder / "text.txt").write_text("the tank holds rice. " * 9)
    return Plan(
        adapter=str(tiny_adapter),
        device="cpu",
        agents=("none", "bm25", "delta"),
        lengths=("short",),
        examples=2,
        curves_questions=0,
        perplexity_tokens=40,
        text=folder / "text.txt",
        locomo=folder / "talks.json",
    )


@pytest.fixture(scope="module")
def made(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished report; all agents give one answer. The command line's test lets them think."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineAgent, "ask", lambda _, questions, __: [Answer("rice", 9, 1)] * len(questions))
        assert write_report(out, plan, say=quiet) == out / "report.md"
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(made, tmp_path / "copy")


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the first table below a title."""
    lines = iter(page.partition(f"# {title}\n")[2].splitlines())
    found: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
        elif found:
            break
    return found


def rescore(folder: Path, agent: str, metric: str, value: float, benchmark: str = "World-MAB") -> None:
    """Change a score of all answers that have it."""
    path = folder / benchmark / f"{agent}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if metric in line["scores"] and (metric != "exact_match" or line["group"] != "never_told"):
            line["scores"][metric] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_report_has_all_of_its_parts(made: Path) -> None:
    page = (made / "report.md").read_text()
    titles = [line.lstrip("# ") for line in page.splitlines() if line.startswith("## ")]
    assert titles == ["In short", "World-MAB", "LoCoMo", "Perplexity", "What this does not show", "Commands"]
    settings = json.loads((made / "report.json").read_text())
    assert settings["fingerprint"] in page and settings["environments"][0]["torch"] in page
    assert all(command in page for command in settings["commands"].values())
    assert set(settings["commands"]) == {"report", "world", "locomo", "perplexity"}
    assert (made / "world_mab.png").read_bytes()[1:4] == b"PNG" and "(world_mab.png)" in page
    assert [row[0] for row in rows(page, "In short")[2:]] == ["no memory", "BM25", "δ-mem"]
    assert [row[0] for row in rows(page, "Perplexity")[2:]] == ["sessions of unseen seeds", "text.txt"]
    assert rows(page, "LoCoMo")[0][1:] == ["single_hop: f1 (1)", "temporal: f1 (1)", "all (2)"]


def test_every_number_is_read_from_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "load_engine", None)  # nothing is run
    rescore(folder, "BM25", "exact_match", 1.0)
    rescore(folder, "δ-mem", "exact_match", 0.0)
    rescore(folder, "δ-mem", "hallucinated", 1.0)
    rescore(folder, "δ-mem", "old_value", 1.0)
    head = folder / "World-MAB" / "BM25.json"
    document = json.loads(head.read_text())
    document["measured"] |= {"latency_seconds": 1.25, "state_bytes": 3 * 1024}
    head.write_text(json.dumps(document))
    page = render(folder).read_text()
    short = {row[0]: row[1:] for row in rows(page, "In short")}
    assert short["BM25"][0] == "100.0 [100.0, 100.0]" and short["BM25"][3] == "3.0 KiB"
    assert short["δ-mem"][:2] == ["0.0 [0.0, 0.0]", "100.0 [100.0, 100.0]"]
    assert rows(page, "Old values")[-1] == ["δ-mem", "100.0 [100.0, 100.0]", "100.0 [100.0, 100.0]"]
    assert rows(page, "Conflict_Resolution")[3][1] == "100.0 [100.0, 100.0]"
    gap = {row[0]: row[1:] for row in rows(page, "Difference to δ-mem")[2:]}
    assert set(gap) == {"no memory", "BM25"} and set(gap["BM25"]) == {"+100.0 [+100.0, +100.0]"}
    assert {row[0]: row[4] for row in rows(page, "World-MAB: what it costs")}["BM25"] == "1.250"


def test_questions_about_what_was_never_told_stand_apart(made: Path) -> None:
    page = (made / "report.md").read_text()
    lines = load(made).benchmarks["World-MAB"]["BM25"].lines
    never = [line for line in lines if line["group"] == "never_told"]
    assert never and rows(page, "In short")[3][1] == percent(mean([line for line in lines if line not in never]))
    assert rows(page, "Never told")[0][2] == f"all ({len(never)})"


def test_a_second_run_asks_nothing_and_another_one_is_refused(
    folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    monkeypatch.setattr(EngineAgent, "ask", None)
    monkeypatch.setattr(running, "run_perplexity", None)
    write_report(folder, plan, say=quiet)
    assert {path: path.read_bytes() for path in folder.rglob("*.jsonl")} == before
    assert len(json.loads((folder / "report.json").read_text())["environments"]) == 1
    with pytest.raises(DeltaMemError, match=r"report with seed=20000, now it is 5: give another folder"):
        run_report(folder, Plan(**{**vars(plan), "seed": 5}), say=quiet)


def test_what_is_not_finished_is_not_shown(folder: Path) -> None:
    path = folder / "World-MAB" / "BM25.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(DeltaMemError, match=r"World-MAB: 'BM25' has not answered .* 2 more questions"):
        render(folder)
    with pytest.raises(DeltaMemError, match=r"report\.json cannot be read.*deltamem eval report"):
        render(folder / "nowhere")


def test_curves_are_shown_point_by_point(folder: Path) -> None:
    points: list[dict[str, Any]] = [
        {"x": 4, "routing": "routed", "right": 0.75, "interval": [0.5, 0.9], "unknown": 0.1},
        {"x": 1, "routing": "routed", "right": 1.0, "interval": [0.8, 1.0], "unknown": 0.0},
        {"x": 4, "routing": "unrouted", "right": 0.5, "interval": [0.3, 0.7], "unknown": 0.1},
    ]
    curve = {"title": "Capacity", "xlabel": "facts told", "measure": "right", "points": points}
    (folder / "curves").mkdir()
    (folder / "curves" / "curves.json").write_text(json.dumps({"questions": 20, "seed": 1, "curves": {"facts": curve}}))
    assert rows(render(folder).read_text(), "Capacity") == [
        ["facts told", "1", "4"],
        ["---", "---:", "---:"],
        ["right, routed", "100.0 [80.0, 100.0]", "75.0 [50.0, 90.0]"],
        ["right, unrouted", "-", "50.0 [30.0, 70.0]"],
    ]
    assert (folder / "curves" / "curves.png").read_bytes()[1:4] == b"PNG"
    other = shutil.copytree(folder, folder.parent / "other")
    points[0] |= {"right": 0.25, "interval": [0.1, 0.4]}
    path = other / "curves" / "curves.json"
    path.write_text(json.dumps({"questions": 20, "seed": 1, "curves": {"facts": curve}}))
    row = next(row for row in rows(compare(folder, other), "Curves") if row[1:3] == ["routed", "4 facts told"])
    assert row[3:] == ["75.0 [50.0, 90.0]", "25.0 [10.0, 40.0]", "-50.0", "no"]
    path.write_text(json.dumps({"questions": 30, "seed": 1, "curves": {"facts": curve}}))
    with pytest.raises(DeltaMemError, match=r"curves: questions is 20 in .* and 30 in"):
        compare(folder, other)


def test_ablations_are_shown_as_their_tables(folder: Path) -> None:
    ablated = made_up(lambda variant, seed: len(variant) / 20 + seed / 100)
    (folder / "ablations.json").write_text(json.dumps(ablated))
    page = render(folder).read_text()
    assert "## Ablations" in page and ablation_tables(ablated).rstrip() in page and "Made by" not in page
    assert "](ablations.png)" in page and (folder / "ablations.png").stat().st_size > 5000
    (folder / "ablations.json").write_text(json.dumps(ablated | {"command": "python -m ours --out here"}))
    assert "Made by\n\n```bash\npython -m ours --out here\n```" in render(folder).read_text()
    (folder / "ablations.json").write_text('{"groups": [], "settings": {}, "runs": []}')
    with pytest.raises(DeltaMemError, match=r"ablations\.json: not the document of ablations"):
        render(folder)


def test_two_reports_side_by_side(made: Path, folder: Path) -> None:
    assert "the same settings, versions and agents" in compare(made, folder)
    rescore(folder, "BM25", "exact_match", 1.0)
    rescore(folder, "BM25", "hallucinated", 0.0)
    shutil.move(folder / "World-MAB" / "no_memory.json", folder / "World-MAB" / "x.txt")
    (folder / "World-MAB" / "no_memory.jsonl").unlink()
    settings = json.loads((folder / "report.json").read_text())
    settings["environments"][-1]["torch"] = "9.9"
    (folder / "report.json").write_text(json.dumps(settings))
    page = compare(made, folder)
    assert page.index("Settings that differ") < page.index("## World-MAB")
    differing = {row[0]: row[1:] for row in rows(page, "Settings that differ")[2:]}
    assert differing["environment: torch"][1] == "9.9"
    assert differing["World-MAB, no memory: agent"] == ["NoMemory", "not there"]
    cells = {(row[0], row[1]): row[2:] for row in rows(page, "World-MAB")[2:]}
    assert {agent for agent, _ in cells} == {"BM25", "δ-mem"}
    assert cells["BM25", "world_facts_short"][1:] == ["100.0 [100.0, 100.0]", "+100.0 [+100.0, +100.0]"]
    assert cells["δ-mem", "all"][2:] == ["+0.0 [+0.0, +0.0]"]
    assert ("BM25", "never told: invented") in cells and ("δ-mem", "changed: old value") in cells


def test_two_reports_are_compared_answer_by_answer(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    for place, more in ((folder, 0.0), (other, 0.25)):
        path = place / "World-MAB" / "BM25.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["scores"]["exact_match"] = (int(line["example"][-1]) % 2) / 2 + more
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cells = {(row[0], row[1]): row[2:] for row in rows(compare(folder, other), "World-MAB")[2:]}
    one, two, gap = cells["BM25", "world_facts_short"]  # of two examples with 0 and 0.5, or 0.25 and 0.75
    assert (one, two) == ("25.0 [0.0, 50.0]", "50.0 [25.0, 75.0]")
    assert gap == "+25.0 [+25.0, +25.0]"  # the same for every answer, though the intervals overlap


def test_answers_with_and_without_a_judge_are_not_compared(made: Path, folder: Path) -> None:
    path = folder / "LoCoMo" / "BM25.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"headline": "judged"}) + "\n" for line in lines))
    for other in ("no_memory", "δ-mem"):
        (folder / "LoCoMo" / f"{other}.jsonl").unlink()
    with pytest.raises(DeltaMemError, match=r"LoCoMo: talk-1/0 is scored by f1 in .* and by judged in .*same judge"):
        compare(made, folder)


def test_other_examples_are_not_compared(made: Path, folder: Path) -> None:
    path = folder / "World-MAB" / "δ-mem.json"
    document = json.loads(path.read_text())
    document["examples"]["world_facts_short_0"]["sha256"] = "0"
    path.write_text(json.dumps(document))
    with pytest.raises(DeltaMemError, match=r"World-MAB: .*different examples \('world_facts_short_0'"):
        compare(made, folder)


def test_agents_by_name(engine: Engine, tmp_path: Path, tiny_adapter: Path) -> None:
    agents = make_agents(engine, more={"mine": str(tiny_adapter)}, device="cpu")
    assert len(agents) == len(AGENTS) + 1 == len({agent.name for agent in agents})
    assert agents[-1].name == "mine"
    with pytest.raises(DeltaMemError, match=r"unknown agent 'nix'.*delta-bm25"):
        make_agents(engine, ["nix"])
    with pytest.raises(DeltaMemError, match="no agents"):
        make_agents(engine, [])
    other = build_adapter_folder(tmp_path, seed=1)
    with pytest.raises(DeltaMemError, match="'other' has another backbone"):
        make_agents(engine, ["none"], {"other": str(other)}, "cpu")


def test_cells() -> None:
    assert percent(Interval(0.5, 0.25, 0.75, 8, 2)) == "50.0 [25.0, 75.0]"
    assert percent(Interval(-0.5, -0.75, 0.25, 8, 2), sign=True) == "-50.0 [-75.0, +25.0]"
    assert percent(Interval(0.5, 0.5, 0.5, 8, 1)) == "50.0 (1 example)"
    assert percent(Interval(-0.0002, -0.5, 0.0, 8, 2), sign=True) == "+0.0 [-50.0, +0.0]"
    assert percent(None) == "-"
    assert [size(x) for x in (0, 1023, 1536, 3 * 2**20)] == ["0 B", "1,023 B", "1.5 KiB", "3.0 MiB"]
    assert table(("a", "b"), [("x|y", "1")]).splitlines()[2] == "| x\\|y | 1 |"
