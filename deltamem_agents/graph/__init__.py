"""LangGraph: nodes that read and write an agent's memory, and a prebuilt agent.

lineage.py   which version a thread reads, and after which it writes
writer.py    the node that writes turns and tool results
agent.py     model -> tools -> memory, ready made
progress.py  plans and reports of progress, as messages
"""

from .agent import create_deltamem_agent
from .lineage import DeltaMemState
from .progress import open_task, report_progress
from .writer import DeltaMemReader, DeltaMemWriter

__all__ = [
    "DeltaMemReader",
    "DeltaMemState",
    "DeltaMemWriter",
    "create_deltamem_agent",
    "open_task",
    "report_progress",
]
