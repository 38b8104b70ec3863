"""A LangGraph agent with tools: what they return and where a task stands is in its memory, not in its prompt."""

import json

from langgraph.checkpoint.memory import InMemorySaver

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent
from deltamem_agents.graph import open_task, report_progress


def get_service(name: str) -> str:
    """Look up a service.

    Args:
        name: Name of the service.
    """
    return json.dumps({"service": name, "owner": "Mira Kelto", "port": "7204"})


model = DeltaMemChatModel()
agent = create_deltamem_agent(model, [get_service], checkpointer=InMemorySaver())


def say(text: str, thread: str) -> str:
    config = {"configurable": {"agent_id": "graph-example", "thread_id": thread}}
    return agent.invoke({"messages": [("user", text)]}, config)["messages"][-1].text


print(say("Look up beacon.", thread="monday"))

steps = ["back up the database", "rotate the keys", "restart the workers"]
model.remember([open_task("secure beacon", steps), report_progress("secure beacon", steps, 1)], "graph-example")

for question in ("What is the port of beacon?", "What is the current step?", "What comes next?"):
    print(f"> {question}\n{say(question, thread='tuesday')}")

model.reset("graph-example")
