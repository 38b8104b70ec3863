"""The command line as users run it: a process for each command; and a small store without a model."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import warm

from deltamem_agents.memory import MemoryState
from deltamem_agents.memory.state import Fingerprint
from deltamem_agents.store import Entry, Store, open_store

ROOT = Path(__file__).parents[2]
FACT = "The port of atlas is 4821."
SAID = (FACT, "My favourite drink is cocoa.", "The desk of Mira is 4F-27.")


def deltamem(*arguments: str | Path, say: str = "", **more: str) -> "subprocess.CompletedProcess[str]":
    """A command in a process that has imported the large libraries; ``more`` are environment variables."""
    return warm.python("-m", "deltamem_agents.cli", *arguments, say=say, env=_environment(more))


def cold(
    *arguments: str | Path, say: str = "", program: tuple[str, ...] = (sys.executable, "-m", "deltamem_agents.cli")
) -> "subprocess.CompletedProcess[str]":
    """The same in a new interpreter, or by another program."""
    command = [*program, *map(str, arguments)]
    environment = _environment({"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    return subprocess.run(command, input=say, capture_output=True, text=True, timeout=120, env=environment)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return os.environ | {"COLUMNS": "160"} | more


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> bool:
    """Exit code 1 and one clear line on stderr."""
    lines = done.stderr.strip().splitlines()
    return done.returncode == 1 and len(lines) == 1 and all(word in lines[0] for word in ("deltamem: ", *words))


def told(*arguments: str | Path, **more: str) -> Any:
    """The JSON that a command prints."""
    done = deltamem(*arguments, "--json", **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def state(value: float, name: str = "facts") -> bytes:
    """The bytes of a sub-state of two layers, 1 × 1 × 2 × 2 each, all numbers alike."""
    tensors = {f"layer.{i}": torch.full((1, 1, 2, 2), float(value)) for i in range(2)}
    return MemoryState(tensors, {name: (0,)}, Fingerprint("a", "b")).to_bytes()


def make_store(path: Path, agent: str = "otto", tenant: str = "default") -> list[str]:
    """Three versions, a message each; returns their ids, the oldest first."""
    with open_store(path, tenant=tenant) as store:
        versions = [add(store, agent, i, None if i == 0 else store.head(agent)) for i in range(3)]
        assert store.head(agent) == versions[-1]
        return versions


def add(store: Store, agent: str, number: int, parent: str | None, move_head: bool = True) -> str:
    gate, moved = {"facts": 0.25 * (number + 1)}, {"facts": 1.0 + number}
    entry = Entry("user", SAID[number], ("facts",), f"m{number}", "mila", tokens=10 + number, gate=gate, moved=moved)
    return store.commit(
        agent,
        parent=parent,
        parts={"facts": state(number)},
        entries=[entry],
        fingerprint="a/b",
        move_head=move_head,
    ).version_id
