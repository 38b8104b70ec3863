"""Every command says how it is used, in commands that can be copied; and what needs no model loads none."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from cli.running import ROOT, make_store

from deltamem_agents.cli.app import app
from deltamem_agents.cli.options import agree
from deltamem_agents.errors import StoreError

PROGRAM = typer.main.get_command(app)


def commands(of: Any, name: str = "deltamem") -> Iterator[tuple[str, str]]:
    """Name and examples of each command and group."""
    yield name, of.epilog or ""
    for word, inner in getattr(of, "commands", {}).items():
        yield from commands(inner, f"{name} {word}")


@pytest.mark.parametrize(("name", "epilog"), commands(PROGRAM), ids=lambda value: value if "\n" not in value else "")
def test_examples_can_be_copied(name: str, epilog: str) -> None:
    title, *examples = epilog.split("\n\n")
    assert "Examples" in title and any(name in example for example in examples)
    for line in (part for example in examples for part in example.split("&&")):
        words = shlex.split(line.rpartition("|")[2], comments=True)
        words = words[words.index("deltamem") + 1 :]
        inner: Any = PROGRAM
        while words and words[0] in getattr(inner, "commands", {}):
            inner = inner.commands[words.pop(0)]
        inner.make_context(name, words)  # raises when an option or argument is wrong or missing


LOOKING = """
import sys
from deltamem_agents.cli.app import app
store, version, file = sys.argv[1:]
for line in (
    "agents list", "agents show otto", "agents history otto --json", "agents history otto --all",
    "agents search otto atlas", f"agents rollback otto {version} --yes", f"agents pin otto {version} kept",
    "agents fork otto mila", f"agents diff otto {version}", f"agents export otto {file}",
    f"agents import {file} --as x", "agents forget otto --text atlas --dry-run", "agents delete otto --yes",
    "store info", "store verify", "store verify --repair", "store prune", "store scrub", "store upgrade",
    "store prune --branches-older-than 1 --yes",
):
    app([*line.split(), "--store", store], standalone_mode=False)
    heavy = {"torch", "transformers", "langchain_core", "langgraph"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


def test_what_needs_no_model_loads_none(tmp_path: Path) -> None:
    versions = make_store(tmp_path / "memory.db")
    arguments = [str(tmp_path / "memory.db"), versions[1], str(tmp_path / "otto.deltamem")]
    done = subprocess.run([sys.executable, "-c", LOOKING, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"not done: .*--yes"):
        agree("Really?", False, "not done")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    monkeypatch.setattr(typer, "confirm", lambda question, **_: asked.append(question))
    agree("Really?", True, "not done")
    assert asked == []
    agree("Really?", False, "not done")
    assert asked == ["Really?"]
