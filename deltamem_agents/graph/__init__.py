"""LangGraph: nodes that read and write an agent's memory, and a prebuilt agent.

lineage.py   which version a thread reads, and after which it writes
writer.py    the node that writes turns and tool results
caching.py   refuses a CachePolicy on memory
agent.py     model -> tools -> memory, ready made
nodes.py     nodes for any graph: recall, reset, compact
progress.py  plans and reports of progress, as messages
results.py   ids of tool results that stay the same when a turn is made again
tasks.py     the life of a task: plan, reports, outcome; tools for a model that plans
"""

from .agent import create_deltamem_agent
from .caching import refuse_cache
from .lineage import DeltaMemState
from .nodes import CompactNode, RecalledState, RecallNode, ResetNode, with_recalled
from .progress import open_task, report_progress
from .results import awith_result_id, with_result_id
from .tasks import Task, TaskWriter, current_task, end_task, start_task, task_tools
from .writer import DeltaMemReader, DeltaMemWriter

__all__ = [
    "CompactNode",
    "DeltaMemReader",
    "DeltaMemState",
    "DeltaMemWriter",
    "RecallNode",
    "RecalledState",
    "ResetNode",
    "Task",
    "TaskWriter",
    "awith_result_id",
    "create_deltamem_agent",
    "current_task",
    "end_task",
    "open_task",
    "refuse_cache",
    "report_progress",
    "start_task",
    "task_tools",
    "with_recalled",
    "with_result_id",
]
