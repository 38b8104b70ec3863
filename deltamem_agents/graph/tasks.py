"""The life of a task: a plan, reports, and an outcome, with which the agent's progress is forgotten and a fact is left.

Messages carry it, and :class:`TaskWriter` writes them: nothing else keeps a task, so another process, another thread or
a graph that is resumed weeks later finds it in the agent's journal (:func:`current_task`). A program says the messages
by itself (:func:`start_task`, ``report_progress``, :func:`end_task`), or the model calls the tools of
:func:`task_tools`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool
from langgraph.prebuilt import InjectedState

from ..chat_model import DeltaMemChatModel
from ..chat_model.messages import text_of, to_entries
from ..chat_model.routing import NOWHERE
from ..progress import plan_text, report_text
from ..store import Entry
from .lineage import Place, locate, unwritten
from .nodes import MemoryNode, check_sub_state, commit_reset
from .progress import TASK, open_task, report_progress
from .writer import DeltaMemWriter, keyed

ENDS = "deltamem_task_ends"  # key of additional_kwargs: the sub-state that is emptied before the message is written
TOOLS = ("plan_task", "report_step", "finish_task")
State = Annotated[dict[str, Any], InjectedState]
CallId = Annotated[str, InjectedToolCallId]
PLAN = re.compile(r"Task: (?P<goal>.+?)\. Plan: 1\. (?P<steps>.+)\. Last done: nothing\. Current step: ")


@dataclass(frozen=True)
class Task:
    """A task that is open: ``finished`` of its steps are done; ``blocked_by`` says why the current one cannot go on."""

    goal: str
    steps: tuple[str, ...]
    finished: int = 0
    blocked_by: str | None = None


def start_task(goal: str, steps: Sequence[str]) -> AIMessage:
    """The message that opens a task, with its first step as the current one.

    Args:
        goal, steps: short, in lower case and without full stops ("rotate the keys").

    Raises:
        ValueError: no steps, or words from which the plan could not be read again.
    """
    message = open_task(goal, steps)
    if _plan_of(text_of(message.content)) != Task(goal, tuple(steps)):
        raise ValueError(f"the plan for {goal!r} cannot be told apart from its words: no line breaks, no full stops")
    return message


def end_task(goal: str, outcome: str) -> AIMessage:
    """The message that ends a task: when a :class:`TaskWriter` writes it, the progress is forgotten first.

    Args:
        goal: as in the plan.
        outcome: one line, which stays among the facts.

    Raises:
        ValueError: the outcome is empty.
    """
    told = _clean(outcome)
    if not told:
        raise ValueError(f"the outcome of {goal!r} is empty: say in one line how the task ended")
    return AIMessage(f"{_end_of(goal)}{told}.", additional_kwargs={"sub_state": "facts", ENDS: TASK})


def current_task(model: DeltaMemChatModel, agent_id: str, version: str | None = None) -> Task | None:
    """The task that was opened last and not ended, as the journal has it at a version (None: the head).

    Raises:
        VersionNotFound: no such version.
        JournalNotKept: the store keeps hashes alone.
    """
    store = model.opened_store
    version = version or store.head(agent_id)
    if version is None:
        return None
    most = 64
    while True:
        entries = [record.entry for record in store.journal(agent_id, version, limit=most)]
        told = [_told_by(entry) for entry in entries]
        if len(entries) < most or any(_plan_of(text) for text in told):
            return _followed(None, told)
        most *= 4


class TaskWriter(DeltaMemWriter, MemoryNode):
    """Node: a :class:`DeltaMemWriter` for which the message of :func:`end_task` ends the task.

    The reset of the progress and the outcome are one version, and the head moves once, when all that the node has to
    write is written: whatever is killed in between, nobody reads half of it.
    """

    def _write(
        self, agent_id: str, place: Place, todo: list[BaseMessage], thread: str | None, config: RunnableConfig
    ) -> str | None:
        ends = [i for i, message in enumerate(todo) if message.additional_kwargs.get(ENDS)]
        if not ends:
            return super()._write(agent_id, place, todo, thread, config)
        memory, at, start = self.model.memories, Place(place.version, False), 0
        for end in ends:
            at = Place(super()._write(agent_id, at, todo[start:end], thread, config), False)
            entries = to_entries([todo[end]], memory.engine, None, self.model.router)
            entries = [replace(entry, thread_id=thread) for entry in entries]
            at = Place(commit_reset(memory, agent_id, at, todo[end].additional_kwargs[ENDS], entries), False)
            start = end + 1
        version = super()._write(agent_id, at, todo[start:], thread, config)
        if place.moves_head and version is not None:
            memory.store.move_head(agent_id, version, expected=place.version)
        return version


def task_tools(model: DeltaMemChatModel) -> list[BaseTool]:
    """Tools with which an agent plans: ``plan_task``, ``report_step`` and ``finish_task``.

    They write nothing: each returns a message, and the :class:`TaskWriter` after the node of the tools writes it. Their
    graph's state has ``messages`` and ``memory_version`` (DeltaMemState). One task is open at a time. What cannot be
    done is said to the model, and not remembered.
    """
    planner = _Planner(model)
    return [StructuredTool.from_function(f) for f in (planner.plan_task, planner.report_step, planner.finish_task)]


class _Planner(MemoryNode):
    """The functions of the tools; what each says of itself is what the model reads."""

    def plan_task(
        self, goal: str, steps: list[str], state: State, tool_call_id: CallId, config: RunnableConfig
    ) -> ToolMessage:
        """Begin a task: its goal and its steps, in order, each a few words."""
        task = self._open_now(state, config)

        def said() -> AIMessage:
            if task is not None:
                raise ValueError(f"the task {task.goal!r} is open: finish it first")
            return start_task(_clean(goal), [_clean(step) for step in steps])

        return _answer("plan_task", tool_call_id, said)

    def report_step(
        self,
        finished: int,
        state: State,
        tool_call_id: CallId,
        config: RunnableConfig,
        blocked_by: str | None = None,
    ) -> ToolMessage:
        """Report progress: how many steps of the task are finished, and what blocks the current one, if anything."""
        task = self._open_now(state, config)

        def said() -> AIMessage:
            found, why = _required(task), _clean(blocked_by) if blocked_by else None
            return report_progress(found.goal, found.steps, finished, why)

        return _answer("report_step", tool_call_id, said)

    def finish_task(self, outcome: str, state: State, tool_call_id: CallId, config: RunnableConfig) -> ToolMessage:
        """End the task and say in one line how it ended."""
        task = self._open_now(state, config)
        return _answer("finish_task", tool_call_id, lambda: end_task(_required(task).goal, outcome))

    def _open_now(self, state: dict[str, Any], config: RunnableConfig) -> Task | None:
        """The open task: what the journal has, and what the messages that are not written yet say."""
        agent_id, thread = self._who(config)
        model, store = self.model, self.model.opened_store
        check_sub_state(model.memories, TASK)
        version = locate(store, agent_id, state.get("memory_version"), thread).version
        keys = keyed(state["messages"], model.engine, model.router)
        left = unwritten(store, agent_id, version, [key for key, _ in keys])
        written = None if version is None else current_task(model, agent_id, version)
        return _followed(written, [_told_by_message(message) for key, message in keys if key in left])


def _required(task: Task | None) -> Task:
    if task is None:
        raise ValueError("no task is open: plan one first")
    return task


def _answer(name: str, call: str, say: Callable[[], AIMessage]) -> ToolMessage:
    """What a tool returns; a mistake of the model's is told to it, and kept out of its memory."""
    try:
        said = say()
    except ValueError as error:
        routed = {"sub_state": NOWHERE}
        return ToolMessage(str(error), name=name, tool_call_id=call, status="error", additional_kwargs=routed)
    return ToolMessage(said.content, name=name, tool_call_id=call, additional_kwargs=dict(said.additional_kwargs))


def _clean(text: str) -> str:
    return " ".join(text.split()).rstrip(". ")


def _end_of(goal: str) -> str:
    return f"Task: {goal}. Outcome: "


def _told_by(entry: Entry) -> str:
    """What an entry may say of a task: the agent's own words, and those of the tools above; nobody else's."""
    own = entry.role == "assistant" or (entry.role == "tool" and (entry.payload or {}).get("name") in TOOLS)
    return (entry.content or "") if own else ""


def _told_by_message(message: BaseMessage) -> str:
    own = isinstance(message, AIMessage) or (isinstance(message, ToolMessage) and message.name in TOOLS)
    return text_of(message.content) if own else ""


def _plan_of(text: str) -> Task | None:
    found = PLAN.match(text)
    if found is None:
        return None
    steps = tuple(re.split(r"\. \d+\. ", found["steps"]))
    return Task(found["goal"], steps) if plan_text(found["goal"], steps) == text else None


def _followed(task: Task | None, told: Iterable[str]) -> Task | None:
    """Where a task stands after these texts, oldest first."""
    for text in told:
        if (plan := _plan_of(text)) is not None:
            task = plan
        elif task is not None and text.startswith(_end_of(task.goal)):
            task = None
        elif task is not None:
            task = _reported(task, text)
    return task


def _reported(task: Task, text: str) -> Task:
    for finished in range(len(task.steps), -1, -1):
        report = report_text(task.goal, task.steps, finished)
        if text == report:
            return replace(task, finished=finished, blocked_by=None)
        if text.startswith(f"{report} Blocked: "):
            return replace(task, finished=finished, blocked_by=text.removeprefix(f"{report} Blocked: ").rstrip("."))
    return task
