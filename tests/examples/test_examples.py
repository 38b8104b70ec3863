"""The examples run as they stand, with the embedded model; that for a GPU with a tiny backbone of the same kind."""

import os
from pathlib import Path

import pytest
import warm
from tiny import build_adapter_folder

FOLDER = Path(__file__).parents[2] / "examples"
SAYS = {
    "01_chain": ["48213", "green tea", "I don't know."],
    "02_graph_from_nodes": ["atlas? 4821", "drink? green tea", "Aurora? I don't know.", "> The port of atlas is 4821."],
    "03_agent_across_restarts": ["tuesday     7204", "tuesday     Rotate the keys."],
    "04_middleware": ["approved: get_service", "beacon? 7204", "drink? green tea", "Aurora? I don't know."],
    "05_supervisor": [
        "services: 4821",
        "people: green tea",
        "apart: people, of atlas: I don't know.",
        "apart: services, of the drink: I don't know.",
        "shared: people, of atlas: 4821",
        "shared: services, of the drink: green tea",
        "  services: user: The port of atlas is 4821.",
    ],
    "06_time_travel": ["now: 7204", "then: 4821", "the head stayed: True", "fork of it: 4821", "rolled back: 4821"],
    "07_forget_a_person": ["green tea", "I don't know.", "4821", "found by words: []", "in the file: False"],
    "09_langgraph_server": ["green tea", "memory in: "],
}


def run(name: str, folder: Path, *words: str) -> str:
    env = os.environ | {"DELTAMEM_STORE": str(folder / "memory.db")}
    done = warm.python(FOLDER / f"{name}.py", *words, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_says_what_it_shows(name: str, tmp_path: Path) -> None:
    said = run(name, tmp_path).splitlines()
    for line in SAYS[name]:
        assert any(line in one for one in said), (line, said)


def test_another_backbone(tmp_path: Path) -> None:
    folder = build_adapter_folder(tmp_path / "tiny")
    where = ["--adapter", str(folder / "adapter"), "--backbone", str(folder / "backbone")]
    said = run("08_qwen3_on_a_gpu", tmp_path, *where, "--device", "cpu", "--decode", "eager")
    assert "on cpu" in said and said.count("tokens in") == 3


def test_all_examples_are_short_and_tested() -> None:
    found = {path.stem: path for path in FOLDER.glob("*.py")}
    assert set(SAYS) | {"08_qwen3_on_a_gpu"} == set(found)
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 80 for path in found.values())
