"""The harness of MemoryAgentBench: a small stand-in for its checkout is run as it is, with our agent in it.

tiny_harness/ has the arguments, files and calls of the real one, and an agent.py that may not be imported.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import build_adapter_folder

from deltamem_agents.errors import ContextOverflow, DeltaMemError, FingerprintMismatch
from deltamem_agents.evals.harness import agent_configs, run_harness
from deltamem_agents.evals.harness_agent import AgentOptions, AgentWrapper
from deltamem_agents.store import open_store

STAND_IN = Path(__file__).parent / "tiny_harness"
NAME = "tiny_Agentic_memory"
FIELDS = {"output", "input_len", "output_len", "memory_construction_time", "query_time_len"}
ROOMS = ["stamped_rooms/exp_0", "stamped_rooms/exp_1"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("tiny"))


def checkout(folder: Path) -> Path:
    return Path(shutil.copytree(STAND_IN, folder / "checkout", ignore=shutil.ignore_patterns("__pycache__")))


def config_of(adapter: Path) -> dict[str, Any]:
    return {
        "agent_name": NAME,
        "model": "tiny",
        "temperature": 0.0,
        "input_length_limit": 512,
        "buffer_length": 0,
        "output_dir": "outputs/tiny",
        "deltamem": {"adapter": str(adapter), "device": "cpu"},
    }


def play(root: Path, config: dict[str, Any], dataset: str = "stamped", **options: Any) -> dict[str, Any]:
    """Run the stand-in, in a process that has imported the large libraries; the harness' results."""
    file = root / "agent.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", lambda command: warm.python(*command[1:]))
        done = run_harness(root, file, f"configs/{dataset}.yaml", **options)
    document = json.loads(done.results.read_text())
    assert (done.queries, done.averages) == (len(document["data"]), document["averaged_metrics"])
    return dict(document)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return checkout(tmp_path)


@pytest.fixture
def config(adapter: Path) -> dict[str, Any]:
    return config_of(adapter)


@pytest.fixture(scope="module")
def finished(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that was run twice, for one question and for all; the agent of the first run is as old as it was."""
    root = checkout(tmp_path_factory.mktemp("finished"))
    first = play(root, config_of(adapter), max_test_queries=1)
    kept = [folder / name for folder in folders(root) for name in ("memory.db", "deltamem.json")]
    made = {file: file.stat().st_mtime_ns for file in kept}
    rows = play(root, config_of(adapter))["data"]
    assert (len(first["data"]), rows[:1]) == (1, first["data"])  # not scored again, by the letters of "seven"
    assert len(made) == 2 and made == {file: file.stat().st_mtime_ns for file in made}
    return root


def results(root: Path) -> list[dict[str, Any]]:
    (file,) = (root / "outputs" / "tiny" / "Rooms").iterdir()
    return list(json.loads(file.read_text())["data"])


@pytest.fixture
def agent(root: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AgentWrapper]]:
    """Agents in this process, which reads the stand-in's templates."""
    monkeypatch.syspath_prepend(str(root))
    dataset = yaml.safe_load((root / "configs" / "stamped.yaml").read_text())

    def make(name: str = "exp_0", **changed: Any) -> AgentWrapper:
        return AgentWrapper(config, dataset | changed, root / "agents" / name)

    yield make
    for name in ("utils.templates", "utils"):
        sys.modules.pop(name, None)


def folders(root: Path) -> list[Path]:
    return sorted((root / "agents" / f"{NAME}_stamped_rooms").iterdir())


def memory(folder: Path, agent_id: str) -> tuple[list[str], dict[str, bytes]]:
    """What the journal of a saved agent says, and the bytes of its state."""
    with open_store(folder / "memory.db") as store:
        head = store.head(agent_id)
        assert head is not None
        said = [record.entry.content or "" for record in store.journal(agent_id, head)]
        return said, {name: bytes(part) for name, part in store.load(agent_id, head).parts.items()}


def memories(root: Path) -> list[tuple[list[str], dict[str, bytes]]]:
    return [memory(folder, name) for folder, name in zip(folders(root), ROOMS, strict=True)]


def test_the_embedded_agent_is_told_chunks_and_answers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "utils.py").write_text("raise RuntimeError('these are not the utils of the harness')")
    monkeypatch.chdir(here)
    done = run_harness(root, "embedded", "configs/plain.yaml")
    document = json.loads(done.results.read_text())
    assert [row["output"] for row in document["data"]] == ["48213", "7204"]
    assert done.results.is_relative_to(root / "outputs") and done.queries == 2
    assert done.averages["substring_exact_match"] == 100.0


def test_results_have_every_field_and_memories_the_chunks_alone(finished: Path) -> None:
    rows = results(finished)
    assert all(row.keys() >= FIELDS for row in rows) and [row["query_id"] for row in rows] == [0, 1, 2]
    assert all(row["query"].startswith("From your archive, answer: ") for row in rows)
    assert all(row["input_len"] > 10 and 1 <= row["output_len"] <= 6 and row["query_time_len"] > 0 for row in rows)
    times = [row["memory_construction_time"] for row in rows]
    assert times[0] > 0 and times[1] == 0 and times[2] > 0  # the second question was asked of a loaded agent
    assert [folder.name for folder in folders(finished)] == ["exp_0", "exp_1"]
    told = [said for said, _ in memories(finished)]
    assert [len(chunks) for chunks in told] == [2, 2]
    assert told[1][1] == "Read on 2025-01-01 00:00:00: Otto is in the tank."


def test_a_killed_run_leaves_no_agent_and_the_next_one_makes_the_same_memory(
    root: Path, finished: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "outputs", root / "outputs")
    monkeypatch.setenv("TINY_HARNESS_KILL", "1")
    with pytest.raises(DeltaMemError, match=r"ended with code -9.*started again"):
        play(root, config, force=True)
    assert [folder.name for folder in folders(root)] == ["exp_0.partial"]
    assert len(memory(folders(root)[0], ROOMS[0])[0]) == 1
    monkeypatch.delenv("TINY_HARNESS_KILL")
    rows = play(root, config, force=True)["data"]
    assert memories(root) == memories(finished)
    assert memories(root)[0][1] != memories(root)[1][1]
    old = results(finished)
    assert [row["output"] for row in rows] == [row["output"] for row in old]
    times = ([row["query_time_len"] for row in rows], [row["query_time_len"] for row in old])
    assert set(times[0]).isdisjoint(times[1])  # asked again, as --force says


def test_the_harness_ends_with_the_process_that_started_it() -> None:
    """Its stderr is closed when both have ended."""
    child = (
        "import time; from deltamem_agents.evals import harness as h; h._end_with_parent(); print(1); time.sleep(99)"
    )
    popen = f"subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)"
    parent = f"import subprocess, sys; sys.exit({popen}.stdout.readline() != b'1\\n')"
    subprocess.run([sys.executable, "-c", parent], stderr=subprocess.PIPE, timeout=60, check=True)


def test_results_of_another_config_are_refused(finished: Path, config: dict[str, Any]) -> None:
    with pytest.raises(DeltaMemError, match=r"another dataset_config: chunk_size was 12, is 99; .*output_dir.*--force"):
        play(finished, config, chunk_size=99)
    with pytest.raises(DeltaMemError, match=rf"remove {finished}/agents/.*/exp_0"):
        play(finished, config, chunk_size=99, force=True)
    config["deltamem"]["recall"] = 3
    with pytest.raises(DeltaMemError, match=r"another agent_config: deltamem was .*output_dir.*--force"):
        play(finished, config)


def test_an_agent_of_another_adapter_is_refused(
    tmp_path: Path, adapter: Path, config: dict[str, Any], agent: Callable[..., AgentWrapper]
) -> None:
    told = agent()
    told.send_message("The tank is blue.", memorizing=True)
    told.save_agent()
    other = build_adapter_folder(tmp_path / "other", seed=1)
    config["deltamem"]["adapter"] = str(other)
    message = rf"exp_0 was made by adapter {adapter} .*this is adapter {other} .*remove .*agent_name"
    with pytest.raises(FingerprintMismatch, match=message):
        agent().load_agent()


def test_results_that_are_not_whole_are_refused(root: Path, config: dict[str, Any]) -> None:
    file = root / "outputs" / "tiny" / "Rooms" / "stamped_rooms_100_6_2_results.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"data": [')
    with pytest.raises(DeltaMemError, match=r"holds no whole results .*--force"):
        play(root, config)


def test_an_agent_that_was_told_something_else_is_refused(agent: Callable[..., AgentWrapper]) -> None:
    told = agent()
    told.send_message("The tank is blue.", memorizing=True)
    told.save_agent()
    with pytest.raises(DeltaMemError, match=r"exp_0 was made with told .*'chunk_size': 12.*'chunk_size': 24.*remove"):
        agent(chunk_size=24).load_agent()
    with pytest.raises(DeltaMemError, match="tell a new AgentWrapper"):
        told.send_message("The door is blue.", memorizing=True)
    (told.folder / "deltamem.json").unlink()
    with pytest.raises(DeltaMemError, match=r"exp_0 holds no agent of deltamem-agents"):
        agent().load_agent()


def test_queries_leave_the_memory_as_it_is_and_must_fit(agent: Callable[..., AgentWrapper]) -> None:
    one = agent()
    with pytest.raises(DeltaMemError, match="save_agent or load_agent first"):
        one.send_message("What is blue?")
    one.send_message("The tank is blue.", memorizing=True)
    one.save_agent()
    head = one.model.opened_store.head(one.agent_id)
    first = one.send_message("What is blue?", query_id=0, context_id=0)
    again = one.send_message("What is blue?", query_id=1, context_id=0)
    assert isinstance(first, dict) and isinstance(again, dict)
    assert first["output"] == again["output"] and first["memory_construction_time"] > 0
    assert one.model.opened_store.head(one.agent_id) == head
    with pytest.raises(ContextOverflow, match=r"query 3 of context 0: the prompt has \d+ tokens, .* window 512"):
        one.send_message("room " * 600, query_id=3, context_id=0)


def test_options_reach_the_memory(agent: Callable[..., AgentWrapper], config: dict[str, Any]) -> None:
    lengths = []
    for name, changed in (("a", {}), ("b", {"sub_states": ["task_progress"], "time_stamp": "noon", "recall": 1})):
        config["deltamem"] |= changed
        one = agent(name)
        one.send_message("The tank is blue.", memorizing=True)
        one.save_agent()
        answer = one.send_message("The tank?")
        assert isinstance(answer, dict)
        lengths.append(answer["input_len"])
        (record,) = one.model.opened_store.journal(one.agent_id, one.model.opened_store.head(one.agent_id) or "")
    assert record.entry.sub_states == ("task_progress",)
    assert record.entry.content == "Read on noon: The tank is blue."
    assert lengths[1] > lengths[0] + 20  # the quotation


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"deltamem": {"adaptor": "x"}}, r"unknown key 'adaptor' under deltamem; known are .*'adapter'"),
        ({"deltamem": "x"}, "deltamem must be a mapping"),
        ({"deltamem": {"time_stamp": 2025}}, "time_stamp must be text"),
        ({"deltamem": {"sub_states": 3}}, "sub_states must be a name or a list"),
        ({"agent_name": "tiny"}, "must contain 'Agentic_memory'"),
        ({"agent_name": "storage_Agentic_memory"}, "contains 'rag'"),
        ({"agent_chunk_size": 512}, "remove agent_chunk_size"),
    ],
)
def test_wrong_configs_are_refused(root: Path, config: dict[str, Any], change: dict[str, Any], error: str) -> None:
    config |= change
    with pytest.raises(DeltaMemError, match=error):
        play(root, config)


def test_values_and_missing_keys_are_named(config: dict[str, Any], agent: Callable[..., AgentWrapper]) -> None:
    config["deltamem"]["recall"] = -1
    with pytest.raises(DeltaMemError, match=r"(?s)agent config of tiny_Agentic_memory.*recall"):
        agent()
    del config["buffer_length"]
    with pytest.raises(DeltaMemError, match="the key 'buffer_length' is missing"):
        agent()


def test_what_is_missing_is_named(root: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(DeltaMemError, match=r"no checkout of MemoryAgentBench \(main.py is missing\): git clone"):
        run_harness(tmp_path, "embedded", "configs/plain.yaml")
    with pytest.raises(DeltaMemError, match=r"no config nix.yaml here or in"):
        run_harness(root, "embedded", "nix.yaml")
    with pytest.raises(DeltaMemError, match=r"no config qwen .*embedded.*qwen3-4b.*smollm3-3b"):
        run_harness(root, "qwen", "configs/plain.yaml")
    main = root / "main.py"
    main.write_text("import not_to_be_found\n" + main.read_text())
    with pytest.raises(DeltaMemError, match=r"needs the module 'not_to_be_found'.*pip install -r .*requirements.txt"):
        play(root, config)


def test_the_configs_that_come_along_fit_the_harness() -> None:
    files = agent_configs()
    assert set(files) == {"embedded", "qwen3-4b", "smollm3-3b"}
    documents = {name: yaml.safe_load(path.read_text()) for name, path in files.items()}
    assert len({document["output_dir"] for document in documents.values()}) == 3
    options = {name: AgentOptions.read(document) for name, document in documents.items()}
    assert len({one.name for one in options.values()}) == 3
    assert options["qwen3-4b"].model["backbone"] == "Qwen/Qwen3-4B-Instruct-2507"
