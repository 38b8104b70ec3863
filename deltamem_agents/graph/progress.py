"""Plans and reports of progress, as messages for the sub-state ``task_progress``."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage

from ..progress import plan_text, report_text

TASK = "task_progress"


def open_task(goal: str, steps: Sequence[str]) -> AIMessage:
    """The message that opens a task: its plan, and its first step as the current one.

    Raises:
        ValueError: a plan without steps.
    """
    if not steps:
        raise ValueError(f"the plan for {goal!r} has no steps: give at least one")
    return AIMessage(plan_text(goal, steps), additional_kwargs={"sub_state": TASK})


def report_progress(goal: str, steps: Sequence[str], finished: int, blocked_by: str | None = None) -> AIMessage:
    """The message that reports where a task stands.

    Args:
        goal, steps: as in the plan, in lower case and without full stops ("rotate the keys").
        finished: how many steps are done; the one after them is the current one.
        blocked_by: why the current step cannot go on.

    Raises:
        ValueError: more steps finished than there are.
    """
    if not 0 <= finished <= len(steps):
        raise ValueError(f"{finished} steps of {goal!r} cannot be finished: it has {len(steps)}")
    return AIMessage(report_text(goal, steps, finished, blocked_by), additional_kwargs={"sub_state": TASK})
