"""How plans and reports of progress are worded: the forms in which the embedded adapter learnt to remember tasks.

A report always says what was done last, what is being done and what comes next, so that the latest one is enough.
"""

from collections.abc import Sequence


def plan_text(goal: str, steps: Sequence[str]) -> str:
    """The message that opens a task."""
    listed = " ".join(f"{number}. {step}." for number, step in enumerate(steps, 1))
    return f"Task: {goal}. Plan: {listed} Last done: nothing. Current step: {steps[0]}. Next step: {_at(steps, 1)}."


def report_text(goal: str, steps: Sequence[str], finished: int, blocked_by: str | None = None, form: int = 0) -> str:
    """The message that reports progress: ``finished`` steps are done. ``form`` picks one of three wordings."""
    done, now, then = _at(steps, finished - 1), _at(steps, finished), _at(steps, finished + 1)
    text = (
        f"Task: {goal}. Last done: {done}. Current step: {now}. Next step: {then}.",
        f"Progress on {goal}: finished {done}; now {now}; then {then}.",
        f"{goal[:1].upper()}{goal[1:]}: {finished} of {len(steps)} done. "
        f"Done last: {done}. In progress: {now}. Up next: {then}.",
    )[form]
    return text + (f" Blocked: {blocked_by}." if blocked_by else "")


def _at(steps: Sequence[str], index: int) -> str:
    return steps[index] if 0 <= index < len(steps) else "nothing"
