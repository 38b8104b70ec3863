"""A supervisor and two agents in one graph: with a memory each, and with one memory that they share on purpose."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent

folder = tempfile.TemporaryDirectory()
model = DeltaMemChatModel(store=str(Path(folder.name) / "memory.db"), remember=False)  # its graph writes, it does not
agent = create_deltamem_agent(model)  # one graph for all: whose memory it is says the call


def supervisor(state: MessagesState) -> Command[Literal["services", "people"]]:
    """Whose turn is it? Here the words decide; a model with tools can do it as well."""
    words = state["messages"][-1].text.lower()
    return Command(goto="services" if "port" in words or "atlas" in words else "people")


def worker(name: str, agent_id: str) -> Any:
    """A node that lets one worker answer the last message, with this agent's memory and nothing else of the thread."""

    def answer(state: MessagesState) -> dict[str, list[AIMessage]]:
        asked = HumanMessage(state["messages"][-1].text)
        config = {"configurable": {"agent_id": agent_id, "thread_id": name}}  # the journal says which worker it was
        return {"messages": [AIMessage(agent.invoke({"messages": [asked]}, config)["messages"][-1].text, name=name)]}

    return answer


def team(memories: Mapping[str, str]) -> Any:
    """A supervisor over workers, each with the memory of the agent that is named."""
    graph = StateGraph(MessagesState)
    graph.add_node("supervisor", supervisor)
    for name, agent_id in memories.items():
        graph.add_node(name, worker(name, agent_id))
        graph.add_edge(name, END)
    graph.add_edge(START, "supervisor")
    return graph.compile()


apart = team({"services": "services", "people": "people"})
shared = team({"services": "team", "people": "team"})
for name, agents in (("a memory each", apart), ("one memory", shared)):
    print(name)
    for text in (
        "The port of atlas is 4821.",
        "My favourite drink is green tea.",
        "What is the port of atlas?",
        "What is my favourite drink?",
    ):
        last = agents.invoke({"messages": [HumanMessage(text)]})["messages"][-1]
        print(f"> {text}\n{last.name}: {last.text}")

# What one worker was told: with a memory each the other does not know it, with one memory it does.
for name, services, people in (("apart", "services", "people"), ("shared", "team", "team")):
    print(f"{name}: people, of atlas:", model.invoke("What is the port of atlas?", agent_id=people).text)
    print(f"{name}: services, of the drink:", model.invoke("What is my favourite drink?", agent_id=services).text)
for record in model.opened_store.journal("team"):
    print(f"  {record.entry.thread_id}: {record.entry.role}: {record.entry.content}")
