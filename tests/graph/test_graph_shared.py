"""Several agents in one graph that share one memory on purpose, beside agents with a memory each."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
import torch
from graph.killing import Compiled
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph, add_messages

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.chat_model.replay import replay
from deltamem_agents.graph import create_deltamem_agent

WORKERS = ("services", "people")
TOLD = {"services": "The port of atlas is 4821.", "people": "My favourite drink is green tea."}
ASKED = {"services": "What is my favourite drink?", "people": "What is the port of atlas?"}
Team = Callable[..., Compiled]


class Errand(TypedDict):
    """What each worker is asked now; what they answered."""

    errands: dict[str, str]
    messages: Annotated[list[BaseMessage], add_messages]


def team(model: DeltaMemChatModel, shared: bool, threads: bool = False) -> Compiled:
    """A supervisor that sends errands to two workers at once, with one memory or with one each.

    Args:
        threads: each worker keeps a thread of its own, over all of its errands.
    """
    agent = create_deltamem_agent(model, checkpointer=InMemorySaver() if threads else None)

    def worker(name: str) -> Any:
        def work(state: Errand) -> dict[str, Any]:
            asked = {"messages": [HumanMessage(state["errands"][name], id=state["errands"][name])]}
            serves = {"agent_id": "team" if shared else name, "thread_id": name}
            reply = agent.invoke(asked, {"configurable": serves})["messages"][-1]
            return {"messages": [reply.model_copy(update={"name": name, "id": None})]}

        return work

    def supervisor(state: Errand) -> dict[str, Any]:
        return {}

    graph = StateGraph(Errand)
    graph.add_node("supervisor", supervisor)
    for name in WORKERS:
        graph.add_node(name, worker(name))
    graph.add_edge(START, "supervisor")
    graph.add_conditional_edges("supervisor", lambda state: list(state["errands"]), list(WORKERS))
    return graph.compile()


def sent(graph: Compiled, **errands: str) -> dict[str, str]:
    """Send workers on errands, all of them in one super-step; returns what each answered."""
    done = graph.invoke({"errands": errands, "messages": []})
    return {message.name: message.text for message in done["messages"]}


def texts(model: DeltaMemChatModel, agent_id: str) -> list[tuple[str | None, str | None]]:
    """Who brought what people said to an agent: thread and words, in the order in which it was written."""
    journal = [record.entry for record in model.opened_store.journal(agent_id)]
    return [(entry.thread_id, entry.content) for entry in journal if entry.role == "user"]


@pytest.mark.parametrize("shared", [True, False], ids=["one memory", "a memory each"])
def test_what_one_worker_was_told_the_other_knows_if_they_share(tmp_path: Path, shared: bool) -> None:
    model = DeltaMemChatModel(store=str(tmp_path / "memory.db"))  # the embedded adapter, which does recall
    graph = team(model, shared)
    for name, text in TOLD.items():
        sent(graph, **{name: text})
    answers = {name: sent(graph, **{name: text})[name] for name, text in ASKED.items()}
    own = {name: sent(graph, **{name: ASKED[other]})[name] for name, other in zip(WORKERS, WORKERS[::-1], strict=True)}
    assert own == {"services": "4821", "people": "green tea"}
    unknown = dict.fromkeys(WORKERS, "I don't know.")
    assert answers == ({"services": "green tea", "people": "4821"} if shared else unknown)


@pytest.mark.parametrize("threads", [False, True], ids=["one turn each", "threads of their own"])
def test_workers_that_share_write_at_once_and_nothing_is_lost(model: DeltaMemChatModel, threads: bool) -> None:
    graph = team(model, shared=True, threads=threads)
    for number in range(3):
        sent(graph, **{name: f"the tank {number} of {name}" for name in WORKERS})
    told = texts(model, "team")
    assert sorted(told) == sorted((name, f"the tank {number} of {name}") for number in range(3) for name in WORKERS)
    for name in WORKERS:  # each worker's own turns are in their order
        assert [text for who, text in told if who == name] == [f"the tank {number} of {name}" for number in range(3)]
    assert list(replay(model.memories, "team")) == []  # the tensors are those of this journal, bit for bit
    versions = model.opened_store.tree("team")
    parents = [version.parent for version in versions]
    assert len(versions) == 6 and len(set(parents)) == 6  # one line: nobody's turn became a branch


def test_workers_that_do_not_share_leave_each_others_tensors_alone(model: DeltaMemChatModel) -> None:
    graph = team(model, shared=False)
    sent(graph, services="the rice is in room seven", people="Mila opens the door")
    before = model.load_state("people").tensors
    sent(graph, services="the tank is blue")
    after = model.load_state("people").tensors
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert [texts(model, name)[0][1] for name in WORKERS] == ["the rice is in room seven", "Mila opens the door"]
    assert [len(texts(model, name)) for name in WORKERS] == [2, 1]


def test_the_next_worker_in_the_same_run_reads_what_the_first_wrote(model: DeltaMemChatModel) -> None:
    agent = create_deltamem_agent(model)
    graph = StateGraph(Errand)

    def worker(name: str) -> Any:
        async def work(state: Errand) -> dict[str, Any]:
            asked = {"messages": [HumanMessage(state["errands"][name])]}
            config: Any = {"configurable": {"agent_id": "team", "thread_id": name}}
            done = await agent.ainvoke(asked, config)
            return {"messages": [done["messages"][-1]]}

        return work

    for name in WORKERS:
        graph.add_node(name, worker(name))
    graph.add_edge(START, WORKERS[0])
    graph.add_edge(*WORKERS)
    done = asyncio.run(graph.compile().ainvoke({"errands": {name: f"for {name}" for name in WORKERS}, "messages": []}))
    first, second = (message.response_metadata["memory_version"] for message in done["messages"])
    assert first is None and second == model.opened_store.history("team")[-1].version_id
