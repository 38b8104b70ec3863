"""How calls run: threads, tool choices, errors as LangChain names them."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

from langchain_core.exceptions import ContextOverflowError
from langchain_core.runnables import RunnableConfig, RunnableLambda

from ..engine.batch import ROWS
from ..errors import ContextOverflow
from .history import Plan
from .serving import Served

T = TypeVar("T")

ARGUMENTS = frozenset(
    "agent_id memory_version use_memory memory_scale history recall recall_tokens trace_quotes timeout "
    "thinking chat_template_kwargs temperature top_p seed max_tokens max_completion_tokens stop tools tool_choice "
    "parallel_tool_calls response_format".split()
)  # of a call of the model
OF_LANGCHAIN = frozenset(("strict", "ls_structured_output_format", "stream_usage"))  # passed along; no effect here

_threads = ThreadPoolExecutor(ROWS, thread_name_prefix="deltamem")


class PromptTooLong(ContextOverflow, ContextOverflowError):
    """A prompt does not fit into the context window, as this library and as LangChain names it."""


def check_arguments(kwargs: Iterable[str]) -> None:
    """Raise TypeError for an argument of a call that the model does not know, as for a function's."""
    if unknown := [name for name in kwargs if name not in ARGUMENTS | OF_LANGCHAIN]:
        near = get_close_matches(unknown[0], ARGUMENTS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(ARGUMENTS))}"
        raise TypeError(f"a call of DeltaMemChatModel has no argument {unknown[0]!r}: {hint}")


@contextmanager
def overflow() -> Iterator[None]:
    """ContextOverflow becomes :class:`PromptTooLong`."""
    try:
        yield
    except ContextOverflow as error:
        raise PromptTooLong(str(error)) from error


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a function in a thread, with this task's context variables."""
    context = copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(context.run, function, *args))


def choice_of(choice: Any) -> str | None:
    """A tool choice in any form of LangChain, OpenAI and Anthropic: None, "auto", "none", "any", or a tool's name.

    Raises ValueError for a dict that says none of these.
    """
    if isinstance(choice, dict):
        given = choice.get("function", choice).get("name") or choice.get("type")
        if not isinstance(given, str) or given in ("function", "tool"):
            raise ValueError(f'tool_choice {choice!r} names no tool: {{"type": "function", "function": {{"name": …}}}}')
        choice = given
    known: dict[Any, str | None] = {True: "any", False: None, "required": "any"}
    found: str | None = known.get(choice, choice)
    return found


@dataclass
class Call:
    """One call of the model: who is served, what is passed on to LangChain, and what was written at its end."""

    config: RunnableConfig
    kwargs: dict[str, Any]
    who: Served | None = None
    plan: Plan | None = None
    written: dict[str, Any] = field(default_factory=dict)


def noted(config: RunnableConfig, facts: dict[str, Any]) -> RunnableConfig:
    """``config`` whose runs carry ``facts`` in their metadata."""
    return {**config, "metadata": {**(config.get("metadata") or {}), **facts}}


def traced_step(name: str, step: Callable[[], dict[str, Any]], config: RunnableConfig) -> dict[str, Any]:
    """``step``, seen by the callbacks of ``config`` as a run of its own: what it returns is all that they see of it."""
    around: RunnableConfig = {"callbacks": config.get("callbacks"), "metadata": config.get("metadata") or {}}
    run: RunnableLambda[dict[str, Any], dict[str, Any]] = RunnableLambda(lambda _: step(), name=name)
    return run.invoke({}, around)
