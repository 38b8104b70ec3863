"""The command line as users run it: a process for each command."""

import json
import re
import sysconfig
from pathlib import Path

import pytest
from cli.running import FACT, cold, deltamem, refused

import deltamem_agents
from deltamem_agents.config import ADAPTER_CONFIG, STORE_VARIABLE
from deltamem_agents.store import Entry, open_store

RECIPE = """
name: tiny
tokenizer: {vocab_size: 400, sessions: 20}
backbone:
  architecture: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16,
    intermediate_size: 48}
  train: {steps: 500, rows: 2, length: 256, dtype: fp32, compile: false, warmup: 1}
adapter:
  config: {rank: 4, num_state_heads: 2, sub_states: {facts: [0], task_progress: [1]}}
  train: {steps: 500, rows: 2, memory_tokens: [1024], asked_tokens: 640, dtype: fp32, compile: false, warmup: 1}
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one agent, otto, who has two versions."""
    path = tmp_path / "memory.db"
    with open_store(path) as opened:
        first = opened.commit(
            "otto", parent=None, parts={"facts": b"1"}, entries=[Entry("user", FACT, ("facts",))], fingerprint="a/b"
        )
        call = {"tool_calls": [{"name": "get_service", "arguments": {"name": "atlas"}}]}
        entry = Entry("assistant", "", ("task_progress",), payload=call)
        opened.commit(
            "otto", parent=first.version_id, parts={"task_progress": b"2"}, entries=[entry], fingerprint="a/b"
        )
    return path


@pytest.mark.parametrize("command", ["", "demo", "chat", "train", "eval recall", "agents delete", "adapters show"])
def test_every_help_ends_in_commands_to_copy(command: str) -> None:
    done = deltamem(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    examples = done.stdout.partition("Examples")[2].split("\n\n")
    assert any(line.strip().startswith(f"deltamem {command}".strip()) for line in examples), done.stdout


def test_version_and_unknown_commands() -> None:
    assert cold("--version").stdout == f"deltamem {deltamem_agents.__version__}\n"
    assert deltamem("remember").returncode == 2


def test_the_program_that_is_installed() -> None:
    program = Path(sysconfig.get_path("scripts"), "deltamem")
    if not program.exists():
        pytest.skip("deltamem-agents is not installed")
    shown = cold("adapters", "show", program=(str(program),))
    assert shown.returncode == 0 and "fingerprint" in shown.stdout, shown.stderr
    assert refused(cold("adapters", "show", "nothing-here", program=(str(program),)), "nothing-here")


def test_agents_are_listed_shown_and_deleted(store: Path) -> None:
    assert cold("agents", "list", "--store", store).stdout == deltamem("agents", "list", "--store", store).stdout
    listed = deltamem("agents", "list", **{STORE_VARIABLE: str(store)})
    assert re.search(r"otto\W+[\d: -]+\W+2\W+2\W", listed.stdout), listed.stdout
    shown = deltamem("agents", "show", "otto", "--store", store).stdout
    assert FACT in shown and 'calls get_service {"name": "atlas"}' in shown and "head" in shown
    assert refused(deltamem("agents", "delete", "otto", "--store", store), "otto", "--yes")
    assert deltamem("agents", "delete", "otto", "--store", store, "--yes").stdout == "deleted otto\n"
    assert deltamem("agents", "list", "--store", store).stdout == "No agents yet.\n"
    assert refused(deltamem("agents", "show", "otto", "--store", store), "otto")


def test_looking_at_a_store_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    assert refused(deltamem("agents", "list", "--store", path), str(path))
    assert not path.exists()


def test_adapters_are_listed_and_shown(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ADAPTER_CONFIG).write_text(json.dumps({"rank": 3, "num_state_heads": 2}))
    listed = deltamem("adapters", "list", DELTAMEM_ADAPTERS=str(tmp_path)).stdout
    assert "worldops-msw (default)" in listed and "task_progress" in listed
    assert re.search(r"mine\W+3\W+shared \(2 heads\)", listed)
    shown = deltamem("adapters", "show").stdout
    assert all(word in shown for word in ("fingerprint", "num_state_heads", "qwen3"))


@pytest.mark.parametrize(
    "command",
    ["adapters show nothing-here", "chat --adapter /nothing/here", "train /nothing.yaml --out {folder}"],
)
def test_errors_are_one_line(command: str, tmp_path: Path) -> None:
    done = deltamem(*command.format(folder=tmp_path).split(), HF_HUB_OFFLINE="1")
    assert refused(done, "nothing"), done.stderr
    assert "Traceback" not in done.stderr


def test_chat_remembers_across_processes(tmp_path: Path) -> None:
    chat = ("chat", "--agent", "otto", "--store", tmp_path / "memory.db")
    told = cold(*chat, say=f"{FACT}\nMy favourite drink is cocoa.\nThe desk of Mira is 4F-27.\n/memory\n")
    assert told.returncode == 0 and not told.stderr, told.stderr  # with no progress bars of loading
    assert FACT in told.stdout and "facts" in told.stdout
    question = "What is my favourite drink?\n"
    done = deltamem(*chat, say=f"{question}/reset facts\n{question}/agents\n/reset nix\n/what\n/quit\n{question}")
    answers = done.stdout.splitlines()
    assert answers[0] == "cocoa"
    assert answers[1].startswith("facts is empty now")
    assert answers[2] != "cocoa"
    assert "otto" in done.stdout and "cocoa" not in "".join(answers[2:])
    assert "nix" in done.stderr and "/what" in done.stderr
    without = deltamem(*chat, "--no-memory", say=f"{question}/reset\n")
    assert "cocoa" not in without.stdout and "--no-memory" in without.stderr


def test_a_tiny_training(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = tmp_path / "out"
    steps = ["--set", "backbone.train.steps=2", "--set", "adapter.train.steps=2"]
    done = deltamem("train", tmp_path / "recipe.yaml", "--out", out, "--device", "cpu", *steps)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "adapter" / ADAPTER_CONFIG).is_file() and (out / "backbone" / "config.json").is_file()
    assert (out / "recipe.yaml").read_text().count("steps: 2\n") == 2
    wrong = deltamem("train", tmp_path / "recipe.yaml", "--out", out, "--set", "adapter.train.stepz=2")
    assert refused(wrong, "stepz")
    assert deltamem("train", tmp_path / "recipe.yaml", "--out", out, "--set", "steps").returncode == 2
    assert deltamem("train", tmp_path / "recipe.yaml", "--out", out, "--stage", "roof").returncode == 2


def test_recall_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = deltamem("eval", "recall", "--cell", "facts_4", "--questions", "8", "--no-baselines", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Exact answers" in done.stdout and "facts_4" in json.loads(out.read_text())["cells"]
    assert deltamem("eval", "table", out).stdout.splitlines()[2].startswith("| 4 facts told | 0.970 |")
    assert refused(deltamem("eval", "recall", "--cell", "nix"), "nix")
    assert refused(deltamem("eval", "table", tmp_path / "none.json"), "none.json")
