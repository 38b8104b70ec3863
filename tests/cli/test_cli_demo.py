"""The demonstration: three processes, prompts that hold nothing of what was told, an honest count."""

import os
import re
import subprocess
import sys
from pathlib import Path

from deltamem_agents.cli.demo import Answered
from deltamem_agents.cli.demo_script import Asked, new_script
from deltamem_agents.store import open_store

ROOT = Path(__file__).parents[2]


def test_the_script_is_drawn_from_the_seed() -> None:
    assert new_script(1) == new_script(1)
    assert len({new_script(seed).told for seed in range(20)}) == 20
    for seed in range(50):
        script = new_script(seed)
        questions = "\n".join(q.text for q in script.questions)
        assert all(not Answered(q, questions, "", "").leaked for q in script.questions)


def test_what_stands_in_the_prompt_is_found() -> None:
    asked = Asked(2, "told", "What is the language?", "Go", ("Go",))
    assert Answered(asked, "user: it is go.", "Go", "").leaked == ["Go"]
    assert not Answered(asked, "user: it is go.", "Go", "").right
    assert Answered(asked, "user: the mango", "Go", "").right


def test_the_demonstration(tmp_path: Path) -> None:
    store = tmp_path / "memory.db"
    command = [sys.executable, "-m", "deltamem_agents.cli", "demo", "--seed", "3", "--store", str(store)]
    environment = os.environ | {"COLUMNS": "160", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    pids = re.findall(r"Process \d \(pid (\d+)\)", done.stdout)
    assert len(set(pids)) == 3
    assert "calls:   get_service" in done.stdout and "reports: " in done.stdout
    asked = len(new_script(3).questions)
    right, of = map(int, re.findall(r"Right with memory: (\d+) of (\d+)", done.stdout)[0])
    assert of == asked and right >= 0.8 * asked
    assert f"hold nothing of what was told: {asked} of {asked}" in done.stdout
    without = int(re.findall(r"Right without memory: (\d+) of", done.stdout)[0])
    assert without <= 5 < right
    with open_store(store) as opened:
        agent = opened.agents()[0]
        assert agent.agent_id.startswith("demo-3-")
        journal = [record.entry for record in opened.journal(agent.agent_id)]
    assert {entry.role for entry in journal} == {"user", "assistant", "tool"}
    assert sum(entry.content.startswith("Task: ") for entry in journal) == 3
