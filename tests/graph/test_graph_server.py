"""LangGraph Server serves the agent of langgraph.json, whose memory outlives the server and its threads.

For the slow test: pip install "langgraph-cli[inmem]", which has langgraph-api, in the environment of the tests.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from langgraph.graph.state import CompiledStateGraph
from langgraph_sdk import get_sync_client

from deltamem_agents.store import open_store

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds


def served() -> dict[str, str]:
    """Graphs of langgraph.json: name to "file:variable"."""
    graphs: dict[str, str] = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))["graphs"]
    return graphs


def test_the_agent_that_is_served_leaves_threads_to_the_server() -> None:
    file, variable = served()["agent"].split(":")
    spec = importlib.util.spec_from_file_location("served", ROOT / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    agent = getattr(module, variable)
    assert isinstance(agent, CompiledStateGraph) and agent.checkpointer is None


@contextmanager
def server(folder: Path, log: Path) -> Iterator[Any]:
    """`langgraph dev` in a folder, and a client of it; killed at the end, as a machine that goes down would."""
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload"]
    env = os.environ | {"DELTAMEM_STORE": str(folder / "memory.db"), "LANGSMITH_TRACING": "false"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command += ["--port", str(free.getsockname()[1])]
    with log.open("wb") as written:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=written, stderr=written, start_new_session=True)
    try:
        with get_sync_client(url=_ready(process, log)) as client:
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server answers, as its log says: it takes another port when somebody was first."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.2)
        if found := re.search(r"API: \S*(http://[\w.:]+)", log.read_text(encoding="utf-8")):
            try:
                with urlopen(f"{found[1]}/ok", timeout=5):
                    return found[1]
            except OSError:  # not yet: what is no answer in the end is raised below
                continue
    raise AssertionError(f"the server does not answer:\n{log.read_text(encoding='utf-8')[-4000:]}")


def say(client: Any, text: str, agent_id: str, thread: str | None = None) -> str:
    """One turn over HTTP, in a new thread if none is given; returns the reply."""
    thread = thread or client.threads.create()["thread_id"]
    said = {"messages": [{"role": "user", "content": text}]}
    state = client.runs.wait(thread, "agent", input=said, config={"configurable": {"agent_id": agent_id}})
    reply: str = state["messages"][-1]["content"]
    return reply


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_is_started_anew_still_remembers(tmp_path: Path) -> None:
    pytest.importorskip("langgraph_api", reason='no LangGraph Server: pip install "langgraph-cli[inmem]"')
    for name in ("langgraph.json", served()["agent"].split(":")[0]):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, target)
    with server(tmp_path, tmp_path / "first.log") as client:
        thread = client.threads.create()["thread_id"]
        say(client, "The port of atlas is 4821.", "ops", thread)
        assert say(client, "What is the port of atlas?", "ops", thread) == "4821"
        assert say(client, "What is the port of atlas?", "ops") == "4821"  # another thread, the same memory
        assert say(client, "What is the port of atlas?", "desk") == "I don't know."
        with pytest.raises(Exception, match="MissingAgentId"):
            said = {"messages": [{"role": "user", "content": "hello"}]}
            client.runs.wait(client.threads.create()["thread_id"], "agent", input=said)
    shutil.rmtree(tmp_path / ".langgraph_api", ignore_errors=True)  # the server's own threads: memory needs none
    with server(tmp_path, tmp_path / "second.log") as client:
        assert say(client, "What is the port of atlas?", "ops") == "4821"
    with open_store(tmp_path / "memory.db") as store:
        told = [record.entry.content for record in store.journal("ops") if record.entry.role == "user"]
    assert told == ["The port of atlas is 4821.", *["What is the port of atlas?"] * 3]
