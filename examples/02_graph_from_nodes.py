"""A graph built by hand from the nodes of memory: recall, a model node that quotes what was found, and a writer."""

import tempfile
from pathlib import Path

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from deltamem_agents import DeltaMemChatModel
from deltamem_agents.graph import DeltaMemReader, DeltaMemWriter, RecalledState, RecallNode, with_recalled

folder = tempfile.TemporaryDirectory()
model = DeltaMemChatModel(store=str(Path(folder.name) / "memory.db"))


def answer(state: RecalledState, config: RunnableConfig) -> dict[str, list[BaseMessage]]:
    """The model reads the version that the reader found; its prompt is this turn and the quotations, if any."""
    prompt = with_recalled(state["messages"][-1:], state.get("recalled"))
    return {"messages": [model.invoke(prompt, config, memory_version=state["memory_version"])]}


def needs_quotes(state: RecalledState) -> str:
    """Only a turn that asks for the exact words has the journal searched; the others rely on the memory alone."""
    return "recall" if "quote" in state["messages"][-1].text.lower() else "model"


graph = StateGraph(RecalledState)
graph.add_node("read", DeltaMemReader(model))
graph.add_node("recall", RecallNode(model, k=2))
graph.add_node("model", answer)
graph.add_node("remember", DeltaMemWriter(model))
graph.add_edge(START, "read")
graph.add_conditional_edges("read", needs_quotes, ["recall", "model"])
graph.add_edge("recall", "model")
graph.add_edge("model", "remember")
graph.add_edge("remember", END)
agent = graph.compile(checkpointer=InMemorySaver())


def say(text: str, thread: str) -> dict:
    """One turn of a thread; the agent, and so its memory, is the same in all of them."""
    config = {"configurable": {"agent_id": "nodes-example", "thread_id": thread}}
    return agent.invoke({"messages": [("user", text)]}, config)


for thread, text in (
    ("monday", "The port of atlas is 4821."),
    ("monday", "My favourite drink is green tea."),
    ("tuesday", "What is the port of atlas?"),
    ("tuesday", "What is my favourite drink?"),
    ("tuesday", "What is the budget of Aurora?"),
):
    print(f"{thread:8} {text} {say(text, thread)['messages'][-1].text}")

print("\nquoted to the model, and not written again:")
print(say("Quote what was said of the port of atlas.", "wednesday")["recalled"])
print("versions:", len(model.memory("nodes-example").history()))
