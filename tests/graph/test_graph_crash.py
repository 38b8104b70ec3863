"""Kills between the commit and the checkpoint, with real processes and real files."""

import signal
import subprocess
from pathlib import Path

import pytest
import warm

from deltamem_agents.store import open_store

PROGRAM = """
import os, signal, sqlite3, sys
from langgraph.checkpoint.sqlite import SqliteSaver
import deltamem_agents.graph.writer as writer
from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.graph import create_deltamem_agent

adapter, folder, mode = sys.argv[1:]
model = DeltaMemChatModel(adapter=adapter, device="cpu", store=folder + "/memory.db", max_tokens=4)
if mode != "resume":
    original = writer.DeltaMemWriter.__call__

    def dies(self, state, config):
        if mode == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, state, config)
        os.kill(os.getpid(), signal.SIGKILL)  # committed, but the node never returns

    writer.DeltaMemWriter.__call__ = dies
with SqliteSaver.from_conn_string(folder + "/threads.db") as saver:
    agent = create_deltamem_agent(model, checkpointer=saver)
    config = {"configurable": {"agent_id": "otto", "thread_id": "1"}}
    start = None if mode == "resume" else {"messages": [("user", "the rice is in room seven")]}
    result = agent.invoke(start, config, durability="sync")
    print(result["memory_version"])
"""


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_killed_turn_is_resumed_and_written_once(tiny_adapter: Path, tmp_path: Path, mode: str) -> None:
    def run(how: str) -> subprocess.CompletedProcess[str]:
        return warm.python("-c", PROGRAM, tiny_adapter, tmp_path, how)

    killed = run(mode)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with open_store(tmp_path / "memory.db") as store:
        assert (store.head("otto") is None) == (mode == "before")
    resumed = run("resume")
    assert resumed.returncode == 0, resumed.stderr
    with open_store(tmp_path / "memory.db") as store:
        assert [r.entry.role for r in store.journal("otto")] == ["user", "assistant"]
        assert resumed.stdout.strip() == store.head("otto") and store.agent("otto").versions == 1
