"""LangChain's create_agent with a memory, in one line of middleware; a person approves what its tool is called with."""

import json

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from deltamem_agents import DeltaMemChatModel
from deltamem_agents.graph.middleware import DeltaMemMiddleware


def get_service(name: str) -> str:
    """Look up a service.

    Args:
        name: Name of the service.
    """
    return json.dumps({"service": name, "owner": "Mira Kelto", "port": "7204"})


model = DeltaMemChatModel()  # the embedded backbone and adapter, on CPU; memory in ~/.deltamem/memory.db
agent = create_agent(
    model,
    [get_service],
    middleware=[DeltaMemMiddleware(model), HumanInTheLoopMiddleware({"get_service": True})],
    checkpointer=InMemorySaver(),
)


def say(text: str, thread: str) -> str:
    config = {"configurable": {"agent_id": "middleware-example", "thread_id": thread}}
    result = agent.invoke({"messages": [("user", text)]}, config)
    while waiting := result.get("__interrupt__"):
        asked = waiting[0].value["action_requests"]
        print(f"approved: {', '.join('{name}({args})'.format(**one) for one in asked)}")
        result = agent.invoke(Command(resume={"decisions": [{"type": "approve"}] * len(asked)}), config)
    return result["messages"][-1].text


for thread, text in (
    ("monday", "Look up beacon."),
    ("monday", "My favourite drink is green tea."),
    ("tuesday", "What is the port of beacon?"),
    ("tuesday", "What is my favourite drink?"),
    ("tuesday", "What is the budget of Aurora?"),
):
    print(f"{thread:8} {text} {say(text, thread)}")

print("\nin the memory, each once:")
for record in model.opened_store.journal("middleware-example"):
    entry = record.entry
    said = entry.content or f"calls {entry.payload['tool_calls'][0]['name']}"
    print(f"  {entry.role:9} {' '.join(entry.sub_states):13} {said}")

model.reset("middleware-example")
