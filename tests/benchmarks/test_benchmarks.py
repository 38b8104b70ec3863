"""The benchmarks run: each of them once, on a toy, as the command that its docstring gives."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
MODES = ["tsw", "msw4", "msw8"]
SCRIPTS = ("gpu_prefill", "gpu_sft", "gpu_decode", "gpu_cold", "cpu")


def run(script: str, out: Path, *options: str, name: str | None = None) -> dict[str, Any]:
    """The results of ``benchmarks/script.py --tiny``, whose environment and plot are looked at here."""
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--tiny", "--repeats", "5", "--out", str(out), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (out / f"{script}.png").is_file()
    document: dict[str, Any] = json.loads((out / f"{name or script}.json").read_text(encoding="utf-8"))
    environment = document["environment"]
    assert environment["command"].startswith(f"python benchmarks/{script}.py --tiny")
    assert str(out) not in json.dumps(document)
    assert {"date", "device", "torch", "transformers", "triton", "python", "deltamem_agents"} <= set(environment)
    assert document["tiny"] is True
    return document


def check_times(row: dict[str, Any], *sides: str) -> None:
    for side in sides:
        assert len(row[side]["samples_s"]) == 5
        assert min(row[side]["samples_s"]) <= row[side]["median_s"] <= max(row[side]["samples_s"])


@pytest.mark.slow
def test_prefill(tmp_path: Path) -> None:
    document = run("gpu_prefill", tmp_path, "--profile")
    assert [row["mode"] for row in document["rows"]] == [mode for mode in MODES for _ in range(3)]
    for row in document["rows"]:
        check_times(row, "frozen", "memory")
        assert row["ratio"] == pytest.approx(row["frozen"]["median_s"] / row["memory"]["median_s"], abs=1e-3)
        assert {"batch", "tokens", "peak_frozen_bytes", "peak_memory_bytes", "peak_ratio"} <= set(row)
    scan = document["scan"]
    assert scan["layer_share_of_prefill"] > 0 and scan["recurrence_share_of_prefill"] > 0
    assert "frozen, 1 x 64 tokens" in (tmp_path / "profile.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--checkpointing",)])
def test_sft(tmp_path: Path, options: tuple[str, ...]) -> None:
    document = run("gpu_sft", tmp_path, *options)
    graph = json.loads((tmp_path / "gpu_sft_graph.json").read_text(encoding="utf-8"))
    for found, way in ((document, "python"), (graph, "graph")):
        assert (found["checkpointing"], found["way"]) == (bool(options), way)
        assert set(found["tokens"]) == {"written", "seen", "learnt"}
        assert [row["mode"] for row in found["rows"]] == MODES
        for row in found["rows"]:
            check_times(row, "frozen", "memory")
            assert row["ratio"] > 0 and row["parameters"] > 0


@pytest.mark.slow
def test_a_step_is_measured_one_way_alone(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu_sft.py"), "--tiny", "--ways", "graph", "--modes", "tsw"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--out", str(tmp_path)], env=env, check=True, timeout=100)
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_sft_graph.json", "gpu_sft_graph.png"}


@pytest.mark.slow
def test_decode(tmp_path: Path) -> None:
    document = run("gpu_decode", tmp_path, "--decode", "graph", "eager", name="graph")
    assert [(row["mode"], row["batch"]) for row in document["rows"]] == [(m, n) for m in MODES for n in (1, 4)]
    eager = json.loads((tmp_path / "eager.json").read_text(encoding="utf-8"))
    assert [(row["mode"], row["batch"]) for row in eager["rows"]] == [(m, 1) for m in MODES]
    assert document["copy_bytes_per_s"] > 0
    for row in document["rows"] + eager["rows"]:
        assert row["ratio"] > 0 and row["whole_ratio"] > 0
        for side in (row["memory"], row["frozen"]):
            check_times(side, "whole", "one_token")
            assert side["step_s"] * side["tokens_per_s"] == pytest.approx(row["batch"], rel=1e-3)
            assert set(side["first_call"]) == {"seconds", "peak_bytes"} and side["floor_share"] > 0


@pytest.mark.slow
def test_cold(tmp_path: Path) -> None:
    (row,) = run("gpu_cold", tmp_path)["rows"]
    assert (row["mode"], row["decode"]) == ("msw4", "compile")
    for run_ in (row["empty_cache"], row["warm_cache"]):
        phases = run_["phases_s"]
        assert list(phases) == ["start and import", "weights", "attach", "first token", "8 tokens"]
        assert sum(phases.values()) == pytest.approx(run_["whole_s"], abs=0.01)
        assert run_["to_first_token_s"] < run_["whole_s"]


@pytest.mark.slow
def test_cpu(tmp_path: Path) -> None:
    document = run("cpu", tmp_path, "--threads", "1")
    assert document["environment"]["threads"] == 1
    assert set(document["targets"]) == {"first_token_s", "tokens_per_s", "turn_s"}
    for side in ("memory", "frozen"):
        check_times(document["answers"][side], "first", "whole")
        assert document["answers"][side]["tokens_per_s"] > 0
    check_times(document["answers"], "stream")
    assert document["answers"]["stream_ratio"] > 0
    assert 120 <= document["turn"]["tokens"] <= 128
    assert [row["tokens"] for row in document["writes"]] == sorted(row["tokens"] for row in document["writes"])
    check_times({"turn": document["turn"]}, "turn")
    assert isinstance(document["exponent"], float)


def test_too_few_repeats_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu_sft.py"), "--tiny", "--repeats", "4", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode != 0 and "at least 5" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_are_written_down(script: str) -> None:
    command = f"python benchmarks/{script}.py"
    tree = ast.parse((FOLDER / f"{script}.py").read_text(encoding="utf-8"))
    assert f"    {command}" in (ast.get_docstring(tree) or "")
    assert f"`{command}" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [*SCRIPTS, "measuring", "qwen3_shape", "engines"])
def test_few_libraries_are_needed(script: str) -> None:
    """The machines with a GPU have little installed."""
    allowed = {"torch", "transformers", "numpy", "matplotlib", "deltamem_agents", "measuring", "qwen3_shape", "engines"}
    tree = ast.parse((FOLDER / f"{script}.py").read_text(encoding="utf-8"))
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    parts = {str(name).partition(".")[0] for name in names}
    assert parts - allowed <= set(sys.stdlib_module_names)
    own = {str(name).split(".")[1] for name in names if str(name).startswith("deltamem_agents.")}
    assert own <= {"ops", "memory", "engine", "training", "config"}
