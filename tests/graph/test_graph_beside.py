"""Others beside the agent: LangGraph's stores with langmem's tools, and LangSmith's traces."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from graph.killing import AGENT, TEXT, Calling, agent_of, calling, config, memory, said
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langsmith import Client, tracing_context
from tiny import build_adapter_folder

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.graph import DeltaMemState, create_deltamem_agent

NOTE, EARLIER = "rice: room seven", "Mila opens the door"


class Told(DeltaMemChatModel):
    """Calls the tools that the human message names in its ``additional_kwargs["calls"]``; then answers by itself."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        last = messages[-1]
        wanted = last.additional_kwargs.get("calls", ()) if isinstance(last, HumanMessage) else ()
        if not wanted:
            return super()._generate(messages, *args, **kwargs)
        calls = [{"name": name, "args": given, "id": f"{last.id}-{i}"} for i, (name, given) in enumerate(wanted)]
        reply = AIMessage("", tool_calls=calls, id=f"calls for {last.id}")  # type: ignore[arg-type]
        return ChatResult(generations=[ChatGeneration(message=reply)])


def letters(texts: Sequence[str]) -> list[list[float]]:
    """An embedding without wits: how often each letter comes."""
    return [[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in texts]


def turn(text: str, *calls: tuple[str, dict[str, Any]]) -> Any:
    return {"messages": [HumanMessage(text, id=text, additional_kwargs={"calls": list(calls)})]}


def results(state: Any) -> list[str]:
    return [message.text for message in state["messages"] if message.type == "tool"]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    adapter = build_adapter_folder(tmp_path / "wide", window=2048)  # langmem's schemas are long
    return Told(adapter=str(adapter), device="cpu", store=str(tmp_path / "memory.db"), max_tokens=4)


@pytest.mark.parametrize("nested", [False, True], ids=["store given to the tools", "store of the graph around"])
def test_langmem_and_our_memory_in_one_graph(told: Told, nested: bool) -> None:
    reason = "langmem is not installed: pip install langmem"
    langmem: Any = pytest.importorskip("langmem", reason=reason)
    store = InMemoryStore(index={"dims": 26, "embed": letters})
    given = {} if nested else {"store": store}
    make = (langmem.create_manage_memory_tool, langmem.create_search_memory_tool)
    tools = [one(namespace=("notes", "{agent_id}"), **given) for one in make]
    agent: Any = create_deltamem_agent(told, tools, checkpointer=None if nested else InMemorySaver())
    if nested:
        around = StateGraph(DeltaMemState)
        around.add_node("agent", agent)
        around.add_edge(START, "agent")
        agent = around.compile(checkpointer=InMemorySaver(), store=store)
    agent.invoke(turn("keep it", ("manage_memory", {"content": NOTE})), config("1"))
    (kept,) = store.search(("notes", AGENT))
    assert kept.value == {"content": NOTE}
    found = agent.invoke(turn("where is it", ("search_memory", {"query": "rice"})), config("2"))
    assert NOTE in results(found)[-1]
    assert told.opened_store.agent(AGENT).versions == 4
    roles = ["user", "assistant", "tool", "assistant"]
    assert [role for role, _, _ in memory(told).journal] == roles * 2
    assert [item.value for item in store.search(("notes",))] == [{"content": NOTE}]  # nothing of the turns
    other = {"configurable": {"agent_id": "mila", "thread_id": "3"}}
    assert NOTE not in results(agent.invoke(turn("and mine", ("search_memory", {"query": "rice"})), other))[-1]
    before = memory(told)
    store.delete(("notes", AGENT), kept.key)
    assert memory(told) == before
    told.reset("mila")
    assert memory(told) == before


def test_a_store_that_nodes_use_themselves(told: Told) -> None:
    store, key = InMemoryStore(), ("notes", AGENT)

    def note(state: DeltaMemState, *, store: BaseStore) -> None:
        store.put(key, state["messages"][-1].id, {"of": state["memory_version"]})

    around = StateGraph(DeltaMemState)
    around.add_node("agent", create_deltamem_agent(told))
    around.add_node("note", note)
    around.add_edge(START, "agent")
    around.add_edge("agent", "note")
    done = around.compile(store=store).invoke(said(TEXT), config("1"))
    (item,) = store.search(key)
    assert item.key == done["messages"][-1].id and item.value == {"of": told.opened_store.head(AGENT)}
    assert [text for role, text, _ in memory(told).journal if role == "user"] == [TEXT]


@dataclass
class Traces:
    """What a LangSmith client sent: runs by id, each as it was at its end, and the raw bodies."""

    port: int
    bodies: list[bytes] = field(default_factory=list)

    @property
    def runs(self) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for sent in map(json.loads, filter(None, self.bodies)):
            run = found.setdefault(sent["id"], {})
            run.update({name: value for name, value in sent.items() if value or name not in run})
        return list(found.values())

    def client(self) -> Client:
        return Client(api_url=f"http://127.0.0.1:{self.port}", api_key="none", auto_batch_tracing=False)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """A server that takes what LangSmith's client sends."""

    class Takes(BaseHTTPRequestHandler):
        def take(self) -> None:
            taken.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = do_PATCH = take

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    monkeypatch.delenv("LANGSMITH_HIDE_INPUTS", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Takes) as server:
        taken = Traces(server.server_address[1])
        Thread(target=server.serve_forever, daemon=True).start()
        yield taken
        server.shutdown()


def named(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["name"] == name]


@pytest.mark.parametrize("recall", [0, 4], ids=["", "with quotations"])
def test_traces_have_agent_and_versions_and_nothing_of_other_turns(
    tiny_adapter: Path, tmp_path: Path, traces: Traces, recall: int
) -> None:
    calls: Calling = calling(tiny_adapter, tmp_path).model_copy(update={"recall": recall})
    agent = agent_of(calls, InMemorySaver())
    agent.invoke(said(EARLIER), config("1"))
    before = calls.opened_store.head(AGENT)
    with tracing_context(enabled=True, client=traces.client(), project_name="tests"):
        done = agent.invoke(said(f"{TEXT} door"), config("2"))
    head, runs = calls.opened_store.head(AGENT), traces.runs
    assert all(run["extra"]["metadata"]["agent_id"] == AGENT and not run.get("error") for run in runs)
    (root,) = [run for run in runs if run.get("parent_run_id") is None]
    assert {run["trace_id"] for run in runs} == {root["id"]}
    first, last = named(runs, "Calling")
    (results,) = named(runs, "remember_results")
    (end,) = [run for run in named(runs, "remember") if run["parent_run_id"] == root["id"]]
    assert first["run_type"] == "llm" and first["extra"]["metadata"]["memory_version"] == before
    assert results["inputs"]["memory_version"] == before
    between = results["outputs"]["memory_version"]
    assert last["extra"]["metadata"]["memory_version"] == between == end["inputs"]["memory_version"]
    assert end["outputs"]["memory_version"] == head == root["outputs"]["memory_version"]
    assert len({before, between, head}) == 3
    assert bool(done["messages"][-1].response_metadata.get("recalled")) == bool(recall)
    assert TEXT.encode() in b"".join(traces.bodies) and EARLIER.encode() not in b"".join(traces.bodies)
