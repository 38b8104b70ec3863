"""What happens in the demonstration: facts, a record behind a tool, a task; kinds, values and wordings are drawn."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from ..training.world import words as w
from ..training.world.facts import BY_ENTITY, Fact, Kind
from ..training.world.session import UNKNOWN
from ..training.world.tasks import ASK, Progress, Task

NEVER_TOLD = "never told"
RESET = "after the reset"
_GOALS = ("migrate {s}", "upgrade {s}", "audit {s}", "deploy {s}")
_STEPS = (
    "back up the database", "rotate the keys", "check the logs", "verify the certificates", "freeze the schema",
    "test the backups", "restart the workers", "export the dashboards", "clean the caches", "update the firewall",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question of the demonstration.

    Attributes:
        process: 2 or 3, the one that asks it.
        group: "told", "updated", "tool", "task", :data:`NEVER_TOLD` or :data:`RESET`.
        answer: the exact answer.
        secrets: what was told and must not stand in the prompt.
    """

    process: int
    group: str
    text: str
    answer: str
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Script:
    """``told``: messages of the user, the one that needs a tool among them; ``records``: what the tool's system holds.

    ``steps`` of the task to ``goal``, ``finished`` of them are done in process 1.
    """

    told: tuple[str, ...]
    records: dict[str, dict[str, str]]
    goal: str
    steps: tuple[str, ...]
    finished: int
    questions: tuple[Asked, ...]


def held(prompt: str, secrets: Iterable[str]) -> list[str]:
    """Those of ``secrets`` that stand in ``prompt`` as whole words."""
    return [s for s in secrets if re.search(rf"(?<!\w){re.escape(s)}(?!\w)", prompt, re.IGNORECASE)]


def new_script(seed: int) -> Script:
    """The same seed gives the same script. No question holds an answer of another (a value such as "Go" may)."""
    rng = Random(seed)
    while True:
        script = _draw(rng)
        texts = "\n".join(question.text for question in script.questions)
        if not any(held(texts, question.secrets) for question in script.questions):
            return script


def _draw(rng: Random) -> Script:
    known, looked_up, target = rng.sample(w.SERVICES, 3)
    (person, stranger), project = rng.sample(w.FIRST_NAMES, 2), rng.choice(w.PROJECTS)
    (kind, unused), (theirs, other) = rng.sample(BY_ENTITY["service"], 2), rng.sample(BY_ENTITY["person"], 2)
    of_service, of_person = _fact(rng, kind, known), _fact(rng, theirs, person)
    of_project = _fact(rng, rng.choice(BY_ENTITY["project"]), project)
    of_me = _fact(rng, rng.choice(BY_ENTITY["me"]), "")
    record = [_fact(rng, kind, looked_up) for kind in rng.sample(BY_ENTITY["service"], 2)]
    changed = of_me
    while changed.value == of_me.value:
        changed = _fact(rng, of_me.kind, "")
    told = [*(fact.state(rng) for fact in (of_service, of_person, of_me, of_project))]
    told += [f"Look up {looked_up}.", changed.say(rng, changed.kind.updates())]

    task = Task(rng.choice(_GOALS).format(s=target), tuple(rng.sample(_STEPS, rng.choice((4, 5)))))
    progress = Progress(task, 2)
    second = [_ask(rng, 2, "told", fact) for fact in (of_service, of_person, of_project)]
    second += [_ask(rng, 2, "updated", changed, of_me.value), *(_ask(rng, 2, "tool", fact) for fact in record)]
    third = [_ask_task("task", which, progress.answer(which), task) for which in ("current", "done", "next")]
    third += [_ask_untold(rng, unused, known), _ask_untold(rng, theirs, stranger), _ask_untold(rng, other, person)]
    third += [_ask_task(RESET, which, UNKNOWN, task) for which in ("current", "next")]
    third += [_ask(rng, 3, RESET, fact) for fact in (of_person, changed, record[0])]
    records = {looked_up: {"service": looked_up} | {fact.kind.key: fact.value for fact in record}}
    return Script(tuple(told), records, task.goal, task.steps, progress.finished, tuple(second + third))


def _fact(rng: Random, kind: Kind, name: str) -> Fact:
    return Fact(kind, name, kind.value(rng))


def _ask(rng: Random, process: int, group: str, fact: Fact, *old: str) -> Asked:
    return Asked(process, group, fact.ask(rng), fact.value, (fact.value, *old))


def _ask_untold(rng: Random, kind: Kind, name: str) -> Asked:
    return Asked(3, NEVER_TOLD, Fact(kind, name, "").ask(rng), UNKNOWN)


def _ask_task(group: str, which: str, answer: str, task: Task) -> Asked:
    return Asked(3, group, ASK[which][0], answer, (task.goal, *task.steps))
