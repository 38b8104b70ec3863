"""A prebuilt agent with a tool, in three processes: the later ones know what the first was told, from its memory."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from langgraph.checkpoint.sqlite import SqliteSaver

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent
from deltamem_agents.graph import open_task, report_progress

STEPS = ["back up the database", "rotate the keys", "restart the workers"]


def get_service(name: str) -> str:
    """Look up a service.

    Args:
        name: Name of the service.
    """
    return json.dumps({"service": name, "owner": "Mira Kelto", "port": "7204"})


def process(folder: Path, day: str, questions: list[str]) -> None:
    """What one process does: memory and the conversation's checkpoints are files."""
    model = DeltaMemChatModel(store=str(folder / "memory.db"))
    with SqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as checkpointer:
        agent = create_deltamem_agent(model, [get_service], checkpointer=checkpointer)
        config = {"configurable": {"agent_id": "release", "thread_id": day}}
        for question in questions:
            reply = agent.invoke({"messages": [("user", question)]}, config)["messages"][-1].text
            print(f"{day:9} > {question}\n{day:9}   {reply}", flush=True)
    if day == "monday":
        model.remember([open_task("secure beacon", STEPS), report_progress("secure beacon", STEPS, 1)], "release")


DAYS = {
    "monday": ["Look up beacon."],
    "tuesday": ["What is the port of beacon?", "What is the current step?"],
    "wednesday": ["Who owns beacon?", "What comes next?"],
}

if __name__ == "__main__":
    if len(sys.argv) == 3:
        process(Path(sys.argv[1]), sys.argv[2], DAYS[sys.argv[2]])
    else:
        with tempfile.TemporaryDirectory() as folder:
            for day in DAYS:
                subprocess.run([sys.executable, __file__, folder, day], check=True)
