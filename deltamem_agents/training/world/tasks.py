"""Tasks of several steps: the plan, the reports of progress, and the questions about where the task stands.

A report always says what was done last, what is being done and what comes next, so that the latest one is enough.
The formats are those of progress.py, which agents use as well.
"""

from dataclasses import dataclass
from random import Random

from ...progress import plan_text, report_text  # noqa: F401
from . import words as w
from .facts import new_entity

HELD_OUT = 2  # questions at the end of each list that training never uses

_GOALS = (
    "migrate {s}", "upgrade {s}", "deploy {s}", "move {s} to {r}", "clean up {s}", "secure {s}", "scale {s}",
    "retire {s}", "audit {s}", "release {s}", "repair {s}", "tune {s}",
)  # fmt: skip
_STEPS = (
    "back up the {o}", "check the {o}", "rotate the {o}", "restart the {o}", "copy the {o}", "test the {o}",
    "update the {o}", "freeze the {o}", "verify the {o}", "clean the {o}", "export the {o}", "review the {o}",
    "notify {p}", "call {p}", "ask {p} for approval", "open a ticket for {p}", "drain {s}", "scale {s} up",
    "stop {s}", "start {s}", "deploy {s}", "close {t}", "read {t}", "move the traffic to {r}",
)  # fmt: skip
_OBJECTS = (
    "database", "keys", "logs", "workers", "certificates", "backups", "queues", "caches", "disks", "alerts",
    "dashboards", "firewall", "schema", "config", "tokens", "images", "indexes", "proxies", "jobs", "secrets",
)  # fmt: skip
_BLOCKERS = ("waiting for {p}", "no access to {s}", "{t} is open", "{s} is down", "approval of {p} is missing")

NOTHING = "Nothing."
ASK = {
    "goal": ("What is your task?", "Which task are you on?", "What are you working on overall?", "What is the goal?",
             "Which task is this about?", "What task did I give you?", "Name the task at hand.", "What is the task about?"),
    "current": ("What is the current step?", "What are you doing right now?", "Which step are you on?", "What step is in progress?",
                "What is being done at the moment?", "Where do we stand?", "Tell me the step in progress.", "Which step is running now?"),
    "done": ("What was done last?", "Which step did you finish last?", "What is the last finished step?", "What did you just complete?",
             "Which step is already done?", "What have you finished most recently?", "Tell me the last step you completed.",
             "What was completed last?"),
    "next": ("What comes next?", "What is the next step?", "Which step follows?", "What will you do after this step?",
             "What do you do next?", "Which step comes after the current one?", "Tell me the step that follows.", "What is up next?"),
    "blocked": ("What is blocking the task?", "What blocks you?", "Why are you blocked?", "What is in the way?",
                "Is anything blocking you?", "What are you blocked by?", "Tell me the blocker.", "What holds the task up?"),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A goal and its steps."""

    goal: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Where a task stands: ``finished`` steps are done; ``blocker`` says why the current one cannot go on."""

    task: Task
    finished: int
    blocker: str | None = None

    def answer(self, about: str) -> str:
        """The exact answer to a question of :data:`ASK`."""
        steps, at = self.task.steps, self.finished
        if about == "goal":
            return _sentence(self.task.goal)
        if about == "blocked":
            return _sentence(self.blocker) if self.blocker else NOTHING
        where = {"done": at - 1, "current": at, "next": at + 1}[about]
        return _sentence(steps[where]) if 0 <= where < len(steps) else NOTHING


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def new_task(rng: Random, steps: int) -> Task:
    def fill(text: str) -> str:
        return text.format(
            s=new_entity(rng, "service"),
            o=rng.choice(_OBJECTS),
            p=rng.choice(w.FIRST_NAMES),
            t=w.ticket(rng),
            r=w.region(rng),
        )

    chosen: list[str] = []
    while len(chosen) < steps:
        step = fill(rng.choice(_STEPS))
        if step not in chosen:
            chosen.append(step)
    return Task(fill(rng.choice(_GOALS)), tuple(chosen))


def blocker(rng: Random) -> str:
    text = rng.choice(_BLOCKERS)
    return text.format(p=rng.choice(w.FIRST_NAMES), s=new_entity(rng, "service"), t=w.ticket(rng))


def ask(rng: Random, about: str, held_out: bool = False) -> str:
    questions = ASK[about]
    return rng.choice(questions[-HELD_OUT:] if held_out else questions[:-HELD_OUT])
