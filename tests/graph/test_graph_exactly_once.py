"""A turn that is disturbed leaves the same memory, bit for bit, as one that is not: in one process, on SQLite."""

import asyncio
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from graph.killing import (
    TEXT,
    Calling,
    Memory,
    agent_of,
    call,
    calling,
    config,
    look_up,
    memory,
    said,
    undisturbed,
)
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import CachePolicy, Command, RetryPolicy, interrupt

from deltamem_agents.graph import DeltaMemReader, DeltaMemState, DeltaMemWriter

EARLIER, OTHER, LATER = "Mila opens the door", "the report is blue", "the second bell"
both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture
def calls(tiny_adapter: Path, tmp_path: Path) -> Calling:
    return calling(tiny_adapter, tmp_path)


@pytest.fixture
def expect(tiny_adapter: Path, tmp_path: Path) -> Any:
    """What is remembered of some turns when nothing happens."""
    return lambda *texts: undisturbed(tiny_adapter, tmp_path / "undisturbed", *texts)


class Breaking(DeltaMemWriter):
    """Fails once, after its commit."""

    broken = False

    def __call__(self, state: DeltaMemState, config: RunnableConfig) -> dict[str, Any]:
        written = super().__call__(state, config)
        if not self.broken:
            self.broken = True
            raise ConnectionError("after the commit")
        return written


@both
def test_a_retried_writer(calls: Calling, tmp_path: Path, asynchronous: bool) -> None:
    def make(kind: type[DeltaMemWriter], saver: Any) -> Any:
        graph = StateGraph(DeltaMemState)
        writer = kind(calls)
        graph.add_node("recall", DeltaMemReader(calls))
        graph.add_node("model", lambda state: {"messages": [AIMessage("noted", id="a")]})
        retry = RetryPolicy(initial_interval=0.01, retry_on=ConnectionError)
        graph.add_node("remember", writer.awrite if asynchronous else writer, retry_policy=retry)
        for one, two in zip([START, "recall", "model", "remember"], ["recall", "model", "remember", END], strict=True):
            graph.add_edge(one, two)
        return graph.compile(checkpointer=saver)

    call(partial(make, Breaking), tmp_path, said(TEXT), config(), asynchronous)
    disturbed = memory(calls)
    assert [role for role, _, _ in disturbed.journal] == ["user", "assistant"]
    assert calls.opened_store.agent("otto").versions == 1
    other = tmp_path / "other"
    other.mkdir()
    calls = calling(calls.adapter, other)
    call(partial(make, DeltaMemWriter), other, said(TEXT), config(), asynchronous)
    assert memory(calls) == disturbed


class Losing(SqliteSaver):
    """Keeps nothing from some moment on: what a process that is killed may leave with durability "async" or "exit"."""

    since = "messages"  # a channel: from the first write of a node to it on
    lost = False

    def put_writes(self, config: Any, writes: Any, *args: Any, **kwargs: Any) -> None:
        self.lost = self.lost or any(name == self.since for name, _ in writes)
        if not self.lost:
            super().put_writes(config, writes, *args, **kwargs)

    def put(self, config: Any, *args: Any, **kwargs: Any) -> Any:
        return config if self.lost else super().put(config, *args, **kwargs)


class LosingEverything(Losing):
    """Keeps nothing of the turn: not what was said either."""

    lost = True


class LosingAfterTheInput(Losing):
    """Keeps what was said, and not which version of the memory it was to read."""

    since = "memory_version"


@pytest.mark.parametrize("earlier", [(), (EARLIER,)], ids=["first turn", "second turn"])
@pytest.mark.parametrize("saver", [Losing, LosingAfterTheInput, LosingEverything])
def test_a_turn_whose_checkpoints_were_lost(
    calls: Calling,
    tmp_path: Path,
    expect: Any,
    monkeypatch: pytest.MonkeyPatch,
    saver: type[Losing],
    earlier: tuple[str, ...],
) -> None:
    make, original, path = partial(agent_of, calls), DeltaMemWriter.__call__, str(tmp_path / "threads.db")
    for text in earlier:
        call(make, tmp_path, said(text), config(), False)

    def breaks(self: DeltaMemWriter, state: DeltaMemState, config: RunnableConfig) -> Any:
        original(self, state, config)
        raise ConnectionError("after the commit")

    for start in (said(TEXT), said(TEXT) if saver is LosingEverything else None):  # the second time, further on
        with monkeypatch.context() as patched, saver.from_conn_string(path) as losing:
            patched.setattr(DeltaMemWriter, "__call__", breaks)
            with pytest.raises(ConnectionError):
                make(losing).invoke(start, config(), durability="async")
    assert calls.opened_store.agent("otto").versions == 2 * len(earlier) + 1
    call(make, tmp_path, start, config(), False)
    assert memory(calls) == expect(*earlier, TEXT)
    assert calls.opened_store.agent("otto").versions == 2 * len(earlier) + 2


@both
def test_an_interrupted_turn(calls: Calling, tmp_path: Path, expect: Any, asynchronous: bool) -> None:
    make = partial(agent_of, calls)
    start: Any = said(TEXT)
    for _ in range(6):
        call(make, tmp_path, start, config(), asynchronous, interrupt_before="*")
        start = None
    call(make, tmp_path, None, config(), asynchronous)
    assert memory(calls) == expect(TEXT)


@both
def test_two_interrupts_after_the_write_in_one_node(calls: Calling, tmp_path: Path, asynchronous: bool) -> None:
    writer = DeltaMemWriter(calls)

    def remember(state: DeltaMemState, config: RunnableConfig) -> Any:
        written = writer(state, config)
        return written | {"messages": [HumanMessage(interrupt("one?") + interrupt("two?"), id="approved")]}

    async def aremember(state: DeltaMemState, config: RunnableConfig) -> Any:
        written = await writer.awrite(state, config)
        return written | {"messages": [HumanMessage(interrupt("one?") + interrupt("two?"), id="approved")]}

    def make(saver: Any) -> Any:
        graph = StateGraph(DeltaMemState)
        node: Any = aremember if asynchronous else remember
        graph.add_node("remember", node)
        graph.add_node("again", writer.awrite if asynchronous else writer)
        graph.add_edge(START, "remember")
        graph.add_edge("remember", "again")
        return graph.compile(checkpointer=saver)

    call(make, tmp_path, said(TEXT), config(), asynchronous)
    for answer in ("yes ", "indeed"):
        result = call(make, tmp_path, Command(resume=answer), config(), asynchronous)
    assert result["messages"][-1].content == "yes indeed"
    assert calls.opened_store.agent("otto").versions == 2
    disturbed = memory(calls)
    for text in (TEXT, "yes indeed"):
        calls.remember([HumanMessage(text, id=text)], "straight")
    expected = calls.load_state("straight")
    assert [content for _, content, _ in disturbed.journal] == [TEXT, "yes indeed"]
    assert all(tensor.equal(expected.tensors[name]) for name, tensor in disturbed.tensors.items())


def checkpoint(calls: Calling, folder: Path, turn: int, before: tuple[str, ...], asynchronous: bool) -> Any:
    """The config of a checkpoint of thread 1: the one of a turn that comes before these nodes."""

    def fitting(states: list[Any]) -> Any:
        humans = [sum(m.type == "human" for m in s.values.get("messages", ())) for s in states]
        found = [s for s, n in zip(states, humans, strict=True) if n == turn and s.next == before]
        return found[0].config["configurable"]

    path = str(folder / "threads.db")
    if not asynchronous:
        with SqliteSaver.from_conn_string(path) as saver:
            return fitting(list(agent_of(calls, saver).get_state_history(config())))

    async def run() -> Any:
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            return fitting([s async for s in agent_of(calls, saver).aget_state_history(config())])

    return asyncio.run(run())


@both
def test_a_fork_from_an_older_checkpoint(calls: Calling, tmp_path: Path, expect: Any, asynchronous: bool) -> None:
    make = partial(agent_of, calls)
    for text in (EARLIER, TEXT):
        call(make, tmp_path, said(text), config(), asynchronous)
    head, straight = calls.opened_store.head("otto"), memory(calls)
    older = {"configurable": checkpoint(calls, tmp_path, 1, (), asynchronous) | {"agent_id": "otto"}}
    read = call(make, tmp_path, said(OTHER), older, asynchronous, interrupt_after=["recall"])["memory_version"]
    assert memory(calls, read).journal == straight.journal[: len(straight.journal) // 2]
    forked = call(make, tmp_path, None, config(), asynchronous)["memory_version"]
    assert calls.opened_store.head("otto") == head and memory(calls) == straight
    assert memory(calls, forked) == expect(EARLIER, OTHER)


@both
def test_a_replay_of_the_writer(calls: Calling, tmp_path: Path, expect: Any, asynchronous: bool) -> None:
    make = partial(agent_of, calls)
    call(make, tmp_path, said(TEXT), config(), asynchronous)
    versions = calls.opened_store.agent("otto").versions
    for node in ("remember_results", "remember"):
        older = {"configurable": checkpoint(calls, tmp_path, 1, (node,), asynchronous) | {"agent_id": "otto"}}
        call(make, tmp_path, None, older, asynchronous, interrupt_after=[node])
        assert calls.opened_store.agent("otto").versions == versions
    assert memory(calls) == expect(TEXT)


@both
def test_a_replay_of_an_older_writer_reads_that_moment(
    calls: Calling, tmp_path: Path, expect: Any, asynchronous: bool
) -> None:
    make = partial(agent_of, calls)
    for text in (EARLIER, TEXT, LATER):
        call(make, tmp_path, said(text), config(), asynchronous)
    head = calls.opened_store.head("otto")
    older = {"configurable": checkpoint(calls, tmp_path, 2, ("remember",), asynchronous) | {"agent_id": "otto"}}
    replayed = call(make, tmp_path, None, older, asynchronous)["memory_version"]
    assert calls.opened_store.head("otto") == head
    assert memory(calls, replayed) == expect(EARLIER, TEXT)


@both
def test_parallel_tool_calls(calls: Calling, tmp_path: Path, expect: Any, asynchronous: bool) -> None:
    call(partial(agent_of, calls), tmp_path, said(TEXT), config(), asynchronous)
    remembered = memory(calls)
    assert [(role, text) for role, text, _ in remembered.journal if role == "tool"] == [
        ("tool", look_up("rice")),
        ("tool", look_up("tank")),
    ]
    assert calls.opened_store.agent("otto").versions == 2 and remembered == expect(TEXT)


def test_a_cached_writer_gives_one_threads_version_to_another(calls: Calling) -> None:
    """Why a writer must have no CachePolicy: the second agent's message is not written."""
    graph = StateGraph(DeltaMemState)
    graph.add_node("remember", DeltaMemWriter(calls), cache_policy=CachePolicy())
    graph.add_edge(START, "remember")
    agent = graph.compile(cache=InMemoryCache())
    first = agent.invoke(said(TEXT), config("1"))
    second = agent.invoke(said(TEXT), {"configurable": {"agent_id": "mila", "thread_id": "2"}})
    assert second["memory_version"] == first["memory_version"] == calls.opened_store.head("otto")
    assert calls.opened_store.head("mila") is None


@both
@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "debug", "tasks", "checkpoints"])
@pytest.mark.parametrize("nested", [False, True], ids=["alone", "subgraph"])
def test_every_stream_mode(
    calls: Calling, tmp_path: Path, expect: Any, asynchronous: bool, mode: Any, nested: bool
) -> None:
    def make(saver: Any) -> Any:
        if not nested:
            return agent_of(calls, saver)
        graph = StateGraph(DeltaMemState)
        graph.add_node("agent", agent_of(calls, None))
        graph.add_edge(START, "agent")
        return graph.compile(checkpointer=saver)

    options = {"stream_mode": mode, "subgraphs": True}
    path = str(tmp_path / "threads.db")
    if asynchronous:

        async def run() -> list[Any]:
            async with AsyncSqliteSaver.from_conn_string(path) as saver:
                return [part async for part in make(saver).astream(said(TEXT), config(), **options)]

        parts = asyncio.run(run())
    else:
        with SqliteSaver.from_conn_string(path) as saver:
            parts = list(make(saver).stream(said(TEXT), config(), **options))
    assert bool(parts) == (mode != "custom")
    assert memory(calls) == expect(TEXT)


def test_memories_that_differ_are_told_apart(calls: Calling) -> None:
    calls.remember([HumanMessage(TEXT, id="1")], "otto")
    one = memory(calls)
    assert one == memory(calls)
    calls.remember([HumanMessage(TEXT, id="2")], "otto")
    assert one != memory(calls)
    name, tensor = next(iter(one.tensors.items()))
    assert one != Memory(one.tensors | {name: tensor + 1e-6}, one.journal)


def test_the_page_has_the_picture_of_the_graph_and_names_tests_that_are_there(calls: Calling) -> None:
    here = Path(__file__).parent
    page = (here.parents[1] / "docs" / "langgraph.md").read_text(encoding="utf-8")
    assert agent_of(calls, None).get_graph().draw_mermaid().strip() in page
    named = set(re.findall(r"`(test_\w+)`", page))
    there = {name for path in here.glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))}
    assert named and named <= there
