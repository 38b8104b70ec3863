"""A supervisor and two agents in one graph: each worker has a memory of its own, the supervisor sends turns to them."""

import tempfile
from pathlib import Path
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent

folder = tempfile.TemporaryDirectory()
model = DeltaMemChatModel(store=str(Path(folder.name) / "memory.db"))
workers = {name: create_deltamem_agent(model.model_copy(update={"agent_id": name})) for name in ("services", "people")}


def supervisor(state: MessagesState) -> Command[Literal["services", "people"]]:
    """Whose turn is it? Here the words decide; a model with tools can do it as well."""
    words = state["messages"][-1].text.lower()
    return Command(goto="services" if "port" in words or "atlas" in words else "people")


def worker(name: str):
    """A node that lets one agent answer the last message, with its own memory and nothing of the others'."""

    def answer(state: MessagesState) -> dict[str, list[AIMessage]]:
        asked = HumanMessage(state["messages"][-1].text)
        reply = workers[name].invoke({"messages": [asked]}, {"configurable": {"agent_id": name}})["messages"][-1]
        return {"messages": [AIMessage(reply.text, name=name)]}

    return answer


graph = StateGraph(MessagesState)
graph.add_node("supervisor", supervisor)
for name in workers:
    graph.add_node(name, worker(name))
    graph.add_edge(name, END)
graph.add_edge(START, "supervisor")
team = graph.compile()

for text in (
    "The port of atlas is 4821.",
    "My favourite drink is green tea.",
    "What is the port of atlas?",
    "What is my favourite drink?",
):
    last = team.invoke({"messages": [HumanMessage(text)]})["messages"][-1]
    print(f"> {text}\n{last.name}: {last.text}")

# Each knows what it was told, and nothing of what the other was told.
print("people, of atlas:", model.invoke("What is the port of atlas?", agent_id="people").text)
print("services, of the drink:", model.invoke("What is my favourite drink?", agent_id="services").text)
