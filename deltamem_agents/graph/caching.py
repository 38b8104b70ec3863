"""Graphs whose memory would be answered from LangGraph's cache are refused before they run.

A node that has a CachePolicy does not run when its input was seen before, and cannot see that it has one. Its key is
made from the input alone, not from the agent that is served: what was written or answered for one agent is handed to
another, and the other's message is lost. So it is the compiled graph that is looked at, once:

    agent = refuse_cache(graph.compile(cache=cache))
"""

import inspect
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from langgraph.pregel import Pregel

from ..chat_model import DeltaMemChatModel
from ..errors import CachedMemory
from .writer import _Node

Graph = TypeVar("Graph", bound=Pregel[Any, Any, Any, Any])

DEPTH = 8  # of objects within objects: a runnable, its function, what that is bound to, …


def refuse_cache(graph: Graph) -> Graph:
    """The compiled graph itself, if none of its nodes that read or write memory has a CachePolicy.

    Looked at are the nodes of this package, chat models with a memory, functions that use them by a name of their own
    (closures and globals), and graphs within graphs, as nodes or named by a function. What a function looks up by other
    means, such as its config, is not found.

    Args:
        graph: what ``StateGraph.compile`` or ``create_agent`` returned.

    Raises:
        CachedMemory: such a node has one of its own, or by ``set_node_defaults``.
    """
    for path, node, cached in _nodes(graph, "", False):
        if cached and _holds_memory(node):
            raise CachedMemory(
                f"the node {path!r} uses an agent's memory and has a CachePolicy, which hands one agent's version or "
                "reply to another: add it without cache_policy (and without one in set_node_defaults)"
            )
    return graph


def _nodes(graph: Pregel[Any, Any, Any, Any], above: str, cached: bool) -> Iterator[tuple[str, Any, bool]]:
    """Each node with its name, what it runs, and whether it or what it is part of is cached."""
    for name, node in graph.nodes.items():
        here = cached or (node.cache_policy or graph.cache_policy) is not None
        if isinstance(node.bound, Pregel):
            yield from _nodes(node.bound, f"{above}{name}.", here)
        else:
            yield f"{above}{name}", node.bound, here


def _holds_memory(thing: Any) -> bool:
    """Whether one of our nodes or models is in an object, at most ``DEPTH`` objects deep."""
    seen, level = set[int](), [thing]
    for _ in range(DEPTH):
        if any(isinstance(one, _Node | DeltaMemChatModel) for one in level):
            return True
        seen.update(map(id, level))
        parts = {id(part): part for one in level for part in _parts(one)}
        level = [part for key, part in parts.items() if key not in seen]
    return False


def _parts(thing: Any) -> Iterator[Any]:
    """What an object works with, as far as a memory may be in it."""
    if isinstance(thing, MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, FunctionType):
        used = inspect.getclosurevars(thing)
        yield from (*used.nonlocals.values(), *used.globals.values())
    elif isinstance(thing, Pregel):
        yield from (node.bound for node in thing.nodes.values())
    elif isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    elif not isinstance(thing, type | ModuleType | str | bytes | int | float):
        yield from getattr(thing, "__dict__", {}).values()
        for name in getattr(type(thing), "__slots__", ()):
            yield getattr(thing, name, None)
