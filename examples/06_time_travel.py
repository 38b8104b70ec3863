"""Time travel: an older checkpoint of a thread reads the memory of its moment, and what it writes is a branch."""

import tempfile
from pathlib import Path

from langgraph.checkpoint.sqlite import SqliteSaver

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent

with tempfile.TemporaryDirectory() as folder:
    model = DeltaMemChatModel(store=str(Path(folder) / "memory.db"), agent_id="otto", remember=False)
    with SqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.db")) as checkpointer:
        agent = create_deltamem_agent(model, checkpointer=checkpointer)
        config = {"configurable": {"thread_id": "1"}}

        def say(text: str, config: dict = config) -> str:
            return agent.invoke({"messages": [("user", text)]}, config)["messages"][-1].text

        say("The port of atlas is 4821.")
        then = agent.get_state(config).config  # the checkpoint after the first turn
        say("Update: the port of atlas is now 7204.")
        print("now:", say("What is the port of atlas?"))

        head = model.memory("otto").head
        print("then:", say("What is the port of atlas?", then))
        print("the head stayed:", model.memory("otto").head == head)

        # The same in the store alone: any version can be read, forked, or made the head again.
        handle = model.memory("otto")
        first = handle.history()[-1].version_id
        print("first version:", model.invoke("What is the port of atlas?", agent_id="otto", memory_version=first).text)
        print(
            "fork of it:", model.invoke("What is the port of atlas?", agent_id=handle.fork("mila", first).agent_id).text
        )
        print("versions:", len(handle.history()))
        handle.rollback(first)
        print("rolled back:", model.invoke("What is the port of atlas?", agent_id="otto").text)
