"""Embeddings and judges named on a command line, and adapters of several write modes, in one run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import build_adapter_folder
from typer.testing import CliRunner, Result

from deltamem_agents.cli.app import app
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals.agents import EngineAgent
from deltamem_agents.evals.contract import Answer
from deltamem_agents.evals.foreign import identity, open_embeddings, open_judge
from deltamem_agents.evals.report import Plan, run_report
from deltamem_agents.evals.report.data import load
from deltamem_agents.evals.report.words import limits

MINE = """
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel

class Other(FakeListChatModel): pass

def vectors(): return DeterministicFakeEmbedding(size=4)
def yes(): return FakeListChatModel(responses=["yes"])
def other(): return Other(responses=["no"])
def nothing(): return 3
def broken(): raise KeyError("no key")
"""
ROW = {
    "context": "The tank holds rice. Otto is in the blue room.",
    "questions": ["Where is Otto?", "What is in the tank?"],
    "answers": [["blue room"], ["rice"]],
    "metadata": {"source": "longmemeval_s*"},
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def row(tmp_path: Path) -> Path:
    path = tmp_path / "Accurate_Retrieval.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


def deltamem(*words: str | Path) -> Result:
    done = CliRunner().invoke(app, ["eval", *map(str, words)])
    if isinstance(done.exception, DeltaMemError):
        raise done.exception
    return done


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_vectors_and_a_judge_from_the_command_line(tiny_adapter: Path, tmp_path: Path, mine: Path, row: Path) -> None:
    out = tmp_path / "out"
    common = ("mab", row, "--adapter", tiny_adapter, "--device", "cpu", "--out", out, "--agent", "none")
    done = deltamem(*common, "--embeddings", f"{mine}:vectors", "--judge", f"{mine}:yes")
    assert done.exit_code == 0 and "longmemeval_s*: judge_accuracy (2)" in done.stdout, done.output
    folder = out / "MemoryAgentBench"
    assert [line["scores"]["judge_accuracy"] for line in answers(folder / "dense.jsonl")] == [1.0, 1.0]
    head = json.loads((folder / "dense.json").read_text())
    assert head["config"]["embeddings"] == ["DeterministicFakeEmbedding", "None"]
    assert head["scoring"] == {"judge": ["FakeListChatModel", "None"]}
    with pytest.raises(DeltaMemError, match=r"made with judge=\['FakeListChatModel', 'None'\].*'Other'"):
        deltamem(*common, "--judge", f"{mine}:other")
    with (
        pytest.warns(UserWarning, match="not judged"),
        pytest.raises(DeltaMemError, match=r"made with judge=.*now it is None"),
    ):
        deltamem(*common)


def test_a_report_with_vectors_and_a_judge(
    tiny_adapter: Path, tmp_path: Path, mine: Path, row: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineAgent, "ask", lambda _, questions, __: [Answer("rice", 9, 1)] * len(questions))
    settings: dict[str, Any] = {"adapter": str(tiny_adapter), "device": "cpu", "agents": ("none",)}
    settings |= {"lengths": ("short",), "examples": 1, "curves_questions": 0, "perplexity_tokens": 0}
    settings |= {"embeddings": f"{mine}:vectors"}
    with pytest.raises(DeltaMemError, match="judge is for MemoryAgentBench alone"):
        run_report(tmp_path / "out", Plan(**settings, judge=f"{mine}:yes"))
    run_report(tmp_path / "out", Plan(**settings, judge=f"{mine}:yes", mab=str(row)), say=lambda _: None)
    found = load(tmp_path / "out")
    assert [list(agents) for agents in found.benchmarks.values()] == [["no memory", "dense"]] * 2
    assert {line["headline"] for line in found.benchmarks["MemoryAgentBench"]["dense"].lines} == {"judge_accuracy"}
    assert "judged by a model" in limits(found) and "Retrieval by vectors" in limits(found)
    commands = found.settings["commands"]
    assert all(f"--embeddings {mine}:vectors" in commands[part] for part in ("report", "world", "mab"))
    assert f"--judge {mine}:yes" in commands["report"] and f"--judge {mine}:yes" in commands["mab"]
    assert "--judge" not in commands["world"]


def test_adapters_of_every_write_mode_in_one_run(tiny_adapter: Path, tmp_path: Path) -> None:
    modes: dict[str, dict[str, Any]] = {
        "TSW": {"num_state_heads": 1},
        "SSW": {"num_state_heads": 1, "memory_write_granularity": "sentence_mean"},
        "MSW": {"num_state_heads": 4},
    }
    more = []
    for name, config in modes.items():
        more += ["--more-adapter", f"{name}={build_adapter_folder(tmp_path / name, **config, sub_states={})}"]
    talk = {
        "sample_id": "talk-1",
        "conversation": {"session_1_date_time": "8 am", "session_1": [{"speaker": "Ada", "text": "I keep bees."}]},
        "qa": [{"question": "What does Ada keep?", "answer": "bees", "category": 4}],
    }
    (tmp_path / "talks.json").write_text(json.dumps([talk]))
    common = ("--adapter", tiny_adapter, "--device", "cpu", "--out", tmp_path / "out")
    agents = ("--agent", "delta", "--agent", "delta-unrouted")
    done = deltamem("locomo", tmp_path / "talks.json", *common, *agents, *more)
    assert done.exit_code == 0, done.output
    heads = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out" / "LoCoMo").glob("*.json")}
    assert set(heads) == {"δ-mem", "δ-mem_unrouted", *modes}
    sizes = {name: heads[name]["measured"]["state_bytes"] for name in heads}
    assert sizes["TSW"] == sizes["SSW"] == sizes["MSW"] / 4 and sizes["MSW"] == sizes["δ-mem"]
    assert len({heads[name]["config"]["engine"] for name in ("δ-mem", *modes)}) == 4
    assert all(name in done.stdout for name in modes)


def test_a_model_of_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("langchain_openai")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    judge = open_judge("openai:gpt-4o")
    assert (identity(judge), judge.temperature) == (["ChatOpenAI", "gpt-4o"], 0)
    assert identity(open_embeddings("openai:text-embedding-3-small")) == ["OpenAIEmbeddings", "text-embedding-3-small"]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(DeltaMemError, match=r"judge 'openai:gpt-4o' cannot be made \(.*check the name, the key"):
        open_judge("openai:gpt-4o")


def test_a_function_of_a_module(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mine.parent / "borrowed_models"
    package.mkdir()
    (package / "__init__.py").touch()
    mine.rename(package / "all.py")
    monkeypatch.syspath_prepend(str(mine.parent))
    assert len(open_embeddings("borrowed_models.all:vectors").embed_query("x")) == 4
    assert open_judge("borrowed_models.all:yes").invoke("?").text == "yes"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("gpt", r"judge 'gpt': give PROVIDER:MODEL\|FILE\.py:FUNCTION"),
        ("mine.py:", "give PROVIDER:MODEL"),
        ("mine.py:nix", r"mine\.py has no function 'nix'"),
        ("mine.py:nothing", "is a int without invoke"),
        ("mine.py:vectors", "is a DeterministicFakeEmbedding without invoke"),
        ("mine.py:broken", r"cannot be made \(KeyError: 'no key'\)"),
        ("gone.py:yes", r"no file gone\.py"),
        ("no_such.module:make", r"No module named 'no_such'; install it, or give the path of a file"),
        ("no_such_provider:x", r"judge 'no_such_provider:x' cannot be made \(ValueError"),
    ],
)
def test_what_is_no_model_is_named(spec: str, error: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    with pytest.raises(DeltaMemError, match=error):
        open_judge(spec)


def test_a_provider_needs_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("langchain.chat_models", "langchain.embeddings"):
        monkeypatch.setitem(sys.modules, module, None)
    for make in (open_judge, open_embeddings):
        with pytest.raises(DeltaMemError, match=r'needs langchain .*pip install "deltamem-agents\[langchain\]"'):
            make("openai:x")
