"""A turn that runs out of steps or whose tool raises leaves the memory whole, and can be gone on with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from graph.killing import (
    TEXT,
    Calling,
    Compiled,
    Make,
    Memory,
    call,
    calling,
    config,
    look_up,
    memory,
    said,
    undisturbed,
)
from langchain_core.tools import StructuredTool, ToolException
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode

from deltamem_agents.graph import (
    DeltaMemReader,
    DeltaMemState,
    DeltaMemWriter,
    awith_result_id,
    create_deltamem_agent,
    with_result_id,
)

EARLIER, LATER = "Mila opens the door", "the second bell"
STEPS = ["recall", "model", "tools", "remember_results", "model", "remember"]
both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture
def calls(tiny_adapter: Path, tmp_path: Path) -> Calling:
    return calling(tiny_adapter, tmp_path)


@pytest.fixture
def expect(tiny_adapter: Path, tmp_path: Path) -> Callable[..., Memory]:
    """What is remembered of some turns when nothing happens."""
    return lambda *texts: undisturbed(tiny_adapter, tmp_path / "undisturbed", *texts)


class Flaky:
    """A tool that raises when it looks up the tank, the first time; ``done`` is what it looked up in all."""

    def __init__(self, error: type[Exception] = ConnectionError) -> None:
        self.error, self.done = error, list[str]()

    def look_up(self, item: str) -> str:
        """Look an item up."""
        self.done.append(item)
        if item == "tank" and self.done.count("tank") == 1:
            raise self.error("the line is down")
        return look_up(item)


def prebuilt(model: Calling, tool: Any) -> Make:
    return lambda saver: create_deltamem_agent(model, [tool], checkpointer=saver)


def by_hand(model: Calling, tool: Callable[..., str], handles: Any, saver: Any) -> Compiled:
    """The nodes of the prebuilt agent, with a ToolNode that handles errors as it is told."""
    node = ToolNode([tool], handle_tool_errors=handles, wrap_tool_call=with_result_id, awrap_tool_call=awith_result_id)
    graph, writer, bound = StateGraph(DeltaMemState), DeltaMemWriter(model), model.bind_tools([tool])

    def answer(state: DeltaMemState) -> dict[str, Any]:
        return {"messages": [bound.invoke(state["messages"], memory_version=state["memory_version"])]}

    graph.add_node("recall", DeltaMemReader(model))
    graph.add_node("model", answer)
    graph.add_node("tools", node)
    graph.add_node("remember_results", writer)
    graph.add_node("remember", writer)
    graph.add_edge(START, "recall")
    graph.add_edge("recall", "model")
    graph.add_conditional_edges(
        "model", lambda s: bool(s["messages"][-1].tool_calls), {True: "tools", False: "remember"}
    )
    graph.add_edge("tools", "remember_results")
    graph.add_edge("remember_results", "model")
    graph.add_edge("remember", END)
    return graph.compile(checkpointer=saver)


def tool_results(remembered: Memory) -> list[str | None]:
    return [text for role, text, _ in remembered.journal if role == "tool"]


@both
@pytest.mark.parametrize("limit", range(1, len(STEPS)))
def test_out_of_steps(calls: Calling, tmp_path: Path, expect: Any, limit: int, asynchronous: bool) -> None:
    agent = prebuilt(calls, look_up)
    call(agent, tmp_path, said(EARLIER), config(), asynchronous)
    before = memory(calls)
    with pytest.raises(GraphRecursionError):
        call(agent, tmp_path, said(TEXT), config() | {"recursion_limit": limit}, asynchronous)
    wrote = "remember_results" in STEPS[:limit]
    left = memory(calls)
    assert len(left.journal) == len(before.journal) + (4 if wrote else 0)
    assert left.journal[: len(before.journal)] == before.journal and (wrote or left == before)
    call(agent, tmp_path, None, config() | {"recursion_limit": 25}, asynchronous)
    assert memory(calls) == expect(EARLIER, TEXT)


def test_a_turn_that_never_ends_keeps_each_result_once(calls: Calling, tmp_path: Path) -> None:
    class Endless(Calling):
        """Asks for its tools again and again."""

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            human = next(m for m in messages if m.type == "human")
            number = sum(m.type == "ai" for m in messages)
            asked = super()._generate([human], *args, **kwargs)
            reply = asked.generations[0].message
            reply.id, reply.tool_calls = f"{reply.id}/{number}", [c | {"id": f"{number}"} for c in reply.tool_calls[:1]]
            return asked

    model = Endless(adapter=calls.adapter, device="cpu", store=calls.store, max_tokens=4)
    agent = prebuilt(model, look_up)
    start: Any = said(TEXT)
    for rounds in (3, 6):  # of model, tools, remember_results
        with pytest.raises(GraphRecursionError):
            call(agent, tmp_path, start, config() | {"recursion_limit": 10 if start else 9}, False)
        start = None
        assert tool_results(memory(model)) == [look_up("rice")] * rounds
        assert model.opened_store.agent("otto").versions == rounds


@both
def test_a_tool_that_raises_and_is_run_again(calls: Calling, tmp_path: Path, expect: Any, asynchronous: bool) -> None:
    flaky = Flaky()
    agent = prebuilt(calls, flaky.look_up)
    with pytest.raises(ConnectionError, match="the line is down"):
        call(agent, tmp_path, said(TEXT), config(), asynchronous, durability="sync")
    assert calls.opened_store.head("otto") is None  # nothing of the turn is written before its tools have answered
    call(agent, tmp_path, None, config(), asynchronous)
    assert memory(calls) == expect(TEXT)
    assert flaky.done.count("tank") == 2


def test_errors_that_are_not_handled_leave_a_turn_to_go_on_with(calls: Calling, tmp_path: Path, expect: Any) -> None:
    agent = partial(by_hand, calls, Flaky().look_up, False)
    with pytest.raises(ConnectionError):
        call(agent, tmp_path, said(TEXT), config(), False)
    call(agent, tmp_path, None, config(), False)
    assert memory(calls) == expect(TEXT)


def test_a_turn_that_is_given_up_after_its_tool_raised(calls: Calling, tmp_path: Path) -> None:
    flaky = Flaky()
    with pytest.raises(ConnectionError):
        call(prebuilt(calls, flaky.look_up), tmp_path, said(TEXT), config(), False)
    call(prebuilt(calls, flaky.look_up), tmp_path, said(LATER), config(), False)
    told = memory(calls).journal
    assert [role for role, _, _ in told] == ["user", "assistant", "user", "assistant", "tool", "tool", "assistant"]
    assert [text for role, text, _ in told if role == "user"] == [TEXT, LATER]


def test_an_error_that_the_tool_node_handles_is_a_result(calls: Calling, tmp_path: Path) -> None:
    flaky = Flaky()
    agent = partial(by_hand, calls, flaky.look_up, True)
    done = call(agent, tmp_path, said(TEXT), config(), False)
    assert [m.status for m in done["messages"] if m.type == "tool"] == ["success", "error"]
    first = memory(calls)
    rice, failed = tool_results(first)
    assert rice == look_up("rice") and failed is not None and "the line is down" in failed
    call(agent, tmp_path, said(LATER), config(), False)
    later = memory(calls)
    assert later.journal[: len(first.journal)] == first.journal
    assert tool_results(later) == [rice, failed, look_up("rice"), look_up("tank")]


@both
def test_an_error_that_the_tool_handles_is_a_result(calls: Calling, tmp_path: Path, asynchronous: bool) -> None:
    flaky = Flaky(ToolException)
    tool = StructuredTool.from_function(flaky.look_up, handle_tool_error=True)
    agent = prebuilt(calls, tool)
    call(agent, tmp_path, said(TEXT), config(), asynchronous)
    assert tool_results(memory(calls)) == [look_up("rice"), "the line is down"]
    assert [role for role, _, _ in memory(calls).journal] == ["user", "assistant", "tool", "tool", "assistant"]
