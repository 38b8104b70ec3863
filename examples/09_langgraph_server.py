"""The agent that langgraph.json serves: `langgraph dev` in the repository's root, or any LangGraph Server.

It is compiled without a checkpointer: the server brings its own for the threads. Its memory is no part of that: it is a
SQLite file, ~/.deltamem/memory.db or the one that DELTAMEM_STORE names, and still there when the server starts anew.
Requests say whose memory it is: {"configurable": {"agent_id": "ops"}}. Run as a script, it takes two turns by itself.
"""

import json

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent


def get_service(name: str) -> str:
    """Look up a service.

    Args:
        name: Name of the service.
    """
    return json.dumps({"service": name, "owner": "Mira Kelto", "port": "7204"})


model = DeltaMemChatModel()  # the embedded backbone and adapter, on CPU; loaded with the first call
agent = create_deltamem_agent(model, [get_service])

if __name__ == "__main__":
    for text in ("My favourite drink is green tea.", "What is my favourite drink?"):
        reply = agent.invoke({"messages": [("user", text)]}, {"configurable": {"agent_id": "server-example"}})
        print(f"> {text}\n{reply['messages'][-1].text}")
    print("memory in:", model.opened_store.location)
    model.reset("server-example")
