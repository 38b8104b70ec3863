"""``deltamem eval``: benchmarks, curves, perplexity and reports from the command line."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny import build_adapter_folder
from typer.testing import CliRunner, Result

from deltamem_agents.cli import evals_options
from deltamem_agents.cli.app import app
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals import harness
from deltamem_agents.evals.recall import SEED
from deltamem_agents.evals.report import AGENTS, Plan
from deltamem_agents.evals.report.plan import commands

ROW = {
    "context": "The tank holds rice. Otto is in the blue room.",
    "questions": ["Where is Otto?", "What is in the tank?"],
    "answers": [["blue room"], ["rice"]],
    "metadata": {"source": "ruler_qa1_197K"},
}
TALK = {
    "sample_id": "talk-1",
    "conversation": {"session_1_date_time": "8 am", "session_1": [{"speaker": "Ada", "text": "I keep bees."}]},
    "qa": [{"question": "What does Ada keep?", "answer": "bees", "category": 4}],
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("tiny"))


def deltamem(*words: str | Path) -> Result:
    done = CliRunner().invoke(app, ["eval", *map(str, words)])
    if isinstance(done.exception, DeltaMemError):
        raise done.exception
    return done


def test_a_benchmark_is_asked_of_the_agents_named(adapter: Path, tmp_path: Path) -> None:
    common = ("--adapter", adapter, "--device", "cpu", "--out", tmp_path)
    one = ("--length", "short", "--examples", "1")
    done = deltamem("world", *common, *one, "--agent", "delta", "--more-adapter", f"mine={adapter}")
    assert done.exit_code == 0, done.output
    assert "## World-MAB" in done.stdout and "### World-MAB: what it costs" in done.stdout
    assert {path.stem for path in (tmp_path / "World-MAB").glob("*.jsonl")} == {"δ-mem", "mine"}
    (tmp_path / "Accurate_Retrieval.jsonl").write_text(json.dumps(ROW) + "\n")
    done = deltamem("mab", tmp_path / "Accurate_Retrieval.jsonl", *common, "--agent", "bm25", "--questions", "1")
    assert "ruler_qa1_197K: substring_exact_match (1)" in done.stdout, done.output
    (tmp_path / "talks.json").write_text(json.dumps([TALK]))
    done = deltamem("locomo", tmp_path / "talks.json", *common, "--agent", "none")
    assert "single_hop: f1 (1)" in done.stdout, done.output


def test_what_is_wrong_on_a_command_line_is_named(adapter: Path, tmp_path: Path) -> None:
    common = ("--adapter", adapter, "--device", "cpu", "--out", tmp_path)
    for given in ("tsw", "=runs/tsw", "tsw="):
        done = deltamem("world", *common, "--more-adapter", given)
        assert done.exit_code == 2 and "NAME=PATH" in done.output
    with pytest.raises(DeltaMemError, match="unknown agent 'nix'"):
        deltamem("world", *common, "--agent", "nix")
    with pytest.raises(DeltaMemError, match="unknown length"):
        deltamem("world", *common, "--length", "endless")
    with pytest.raises(DeltaMemError, match=r"gone\.json"):
        deltamem("locomo", tmp_path / "gone.json", *common)


def test_a_report_is_made_made_again_and_compared(adapter: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("the tank holds rice. " * 9)
    few = ("--agent", "none", "--agent", "delta", "--length", "short", "--examples", "1", "--curves-questions", "0")
    made = ("--adapter", adapter, "--device", "cpu", *few, "--perplexity-tokens", "30", "--text", text, "--out", out)
    done = deltamem("report", *made)
    assert done.exit_code == 0 and f"report: {out / 'report.md'}" in done.stdout, done.output
    page = (out / "report.md").read_text()
    (out / "report.md").unlink()
    assert deltamem("report", "--no-run", "--out", out).exit_code == 0
    assert (out / "report.md").read_text() == page
    assert "# Comparison" in deltamem("compare", out, out).stdout
    with pytest.raises(DeltaMemError, match=r"nowhere.*report\.json"):
        deltamem("compare", out, tmp_path / "nowhere")


def test_perplexity_is_measured(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "perplexity.json"
    done = deltamem("perplexity", "--adapter", adapter, "--device", "cpu", "--tokens", "30", "--out", out)
    assert done.exit_code == 0 and "empty memory" in done.stdout, done.output
    assert json.loads(out.read_text())["tokens"] == 30


def test_an_unknown_curve_is_named(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(DeltaMemError, match="unknown curve 'nix'"):
        deltamem("curves", "--adapter", adapter, "--device", "cpu", "--curve", "nix", "--out", tmp_path)


def test_the_harness_is_run_as_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def ran(*arguments: Any, **options: Any) -> harness.HarnessRun:
        asked.update(options, arguments=arguments)
        return harness.HarnessRun(tmp_path / "results.json", 3, {"f1": 12.5})

    monkeypatch.setattr(harness, "run_harness", ran)
    given = ("--harness-root", tmp_path, "--dataset-config", "x.yaml", "--max-test-queries", "3")
    done = deltamem("mab-harness", *given)
    assert done.exit_code == 0 and "12.50" in done.stdout and "3 queries" in done.stdout
    assert asked == {
        "arguments": (tmp_path, "embedded", "x.yaml"),
        "force": False,
        "max_test_queries": 3,
        "chunk_size": None,
    }


def test_what_help_says_is_what_there_is() -> None:
    assert evals_options.AGENTS == AGENTS and evals_options.SEED == SEED


def test_the_commands_of_a_report_can_be_copied(tmp_path: Path) -> None:
    plan = Plan(
        device="cpu", more_adapters={"TSW": "runs/a b"}, text=tmp_path / "t", locomo=tmp_path / "l", mab="a/b", limit=2
    )
    parts = commands(plan, tmp_path)
    assert list(parts) == ["report", "world", "locomo", "mab", "curves", "perplexity"]
    program: Any = typer.main.get_command(app)
    for line in parts.values():
        _, group, name, *words = shlex.split(line)
        context = program.commands[group].commands[name].make_context(name, words)
        assert str(context.params["out"]).startswith(str(tmp_path))
