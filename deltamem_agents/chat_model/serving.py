"""Who is being served, and with which memory: what one call of the chat model finds out before it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from ..errors import MissingAgentId

EMPTY = "empty"  # as a memory version: the memory in which nothing was written
GRAPH = "__pregel_"  # keys of configurable inside of LangGraph begin with this


@dataclass(frozen=True)
class Served:
    """The agent of one call, and the memory version that it asks for (None: the head; EMPTY: the empty memory)."""

    agent_id: str
    pinned: str | None
    in_graph: bool
    thread_id: str | None = None
    run_id: str | None = None


def served(config: RunnableConfig, kwargs: Mapping[str, Any], agent_id: str | None, version: str | None) -> Served:
    """Look for the agent: in the call's arguments, in ``configurable``, in the graph's context, in the model's field.

    Raises:
        MissingAgentId: it is nowhere. The thread id is never taken for it: many threads may belong to one agent.
    """
    configurable = config.get("configurable") or {}
    around = (var_child_runnable_config.get() or {}).get("configurable") or {}  # a node's, where the call has its own
    in_graph = any(key.startswith(GRAPH) for key in (*configurable, *around))
    runtime = configurable.get("__pregel_runtime") or around.get("__pregel_runtime")
    context = getattr(runtime, "context", None)
    of_context = context.get("agent_id") if isinstance(context, Mapping) else getattr(context, "agent_id", None)
    given = (kwargs.get("agent_id"), configurable.get("agent_id"), around.get("agent_id"), of_context, agent_id)
    versions = (kwargs.get("memory_version"), configurable.get("memory_version"), version)
    pinned = next((str(v) for v in versions if v is not None), None)
    names = ("thread_id", "session_id")  # of LangGraph, and of LangChain's message histories
    thread = next((c[name] for c in (configurable, around) for name in names if c.get(name) is not None), None)
    ids = (None if one is None else str(one) for one in (thread, config.get("run_id")))
    return Served(require_agent(*given), pinned, in_graph, *ids)


def require_agent(*candidates: Any) -> str:
    """The first agent id that is given. Raises MissingAgentId when there is none."""
    found = next((str(one) for one in candidates if one is not None and str(one)), None)
    if found is None:
        raise MissingAgentId(
            'no agent id: pass config={"configurable": {"agent_id": "…"}} or agent_id="…" with the call, or set '
            "agent_id on the model; use_memory=False answers without memory"
        )
    return found
