"""What happens in the demonstration: facts, a record behind a tool, a task; drawn at random, in trained wordings."""

from dataclasses import dataclass
from random import Random

from ..training.world import words as w
from ..training.world.facts import KINDS, Fact
from ..training.world.session import UNKNOWN
from ..training.world.tasks import ASK, Progress, Task

STATE, ASKED = "The {n} of {e} is {v}.", "What is the {n} of {e}?"
MY_STATE, MY_UPDATE, MY_ASKED = "My {n} is {v}.", "Update: my {n} is now {v}.", "What is my {n}?"
NEVER_TOLD = "never told"
RESET = "after the reset"
_KINDS = {(kind.entity, kind.key): kind for kind in KINDS}
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


def new_script(seed: int) -> Script:
    """The same seed gives the same script."""
    rng = Random(seed)
    known, looked_up, target = rng.sample(w.SERVICES, 3)
    person, project, customer = rng.choice(w.FIRST_NAMES), rng.choice(w.PROJECTS), rng.choice(w.CUSTOMERS)
    port, desk = _fact(rng, "service", "port", known), _fact(rng, "person", "desk", person)
    plan, drink = _fact(rng, "customer", "plan", customer), _fact(rng, "me", "drink", "")
    record = [_fact(rng, "service", "language", looked_up), _fact(rng, "service", "timeout", looked_up)]
    new_drink = drink
    while new_drink.value == drink.value:
        new_drink = _fact(rng, "me", "drink", "")
    told = [*(_say(fact, STATE, MY_STATE) for fact in (port, desk, drink, plan))]
    told += [f"Look up {looked_up}.", _say(new_drink, "", MY_UPDATE)]

    task = Task(rng.choice(_GOALS).format(s=target), tuple(rng.sample(_STEPS, rng.choice((4, 5)))))
    progress = Progress(task, 2)
    second = [_ask(2, "told", fact) for fact in (port, desk, plan)]
    second += [_ask(2, "updated", new_drink, drink.value), *(_ask(2, "tool", fact) for fact in record)]
    third = [_ask_task("task", which, progress.answer(which), task) for which in ("current", "done", "next")]
    never = Fact(_KINDS["project", "budget"], project, UNKNOWN)
    third += [Asked(3, NEVER_TOLD, _say(never, ASKED, ""), UNKNOWN)]
    third += [_ask_task(RESET, which, UNKNOWN, task) for which in ("current", "next")]
    third += [_ask(3, RESET, fact) for fact in (desk, new_drink, record[0])]
    records = {looked_up: {"service": looked_up} | {fact.kind.key: fact.value for fact in record}}
    return Script(tuple(told), records, task.goal, task.steps, progress.finished, tuple(second + third))


def _fact(rng: Random, entity: str, key: str, name: str) -> Fact:
    kind = _KINDS[entity, key]
    return Fact(kind, name, kind.value(rng))


def _say(fact: Fact, frame: str, my_frame: str) -> str:
    return (frame if fact.entity else my_frame).format(n=fact.kind.nouns[0], e=fact.entity, v=fact.value)


def _ask(process: int, group: str, fact: Fact, *old: str) -> Asked:
    return Asked(process, group, _say(fact, ASKED, MY_ASKED), fact.value, (fact.value, *old))


def _ask_task(group: str, which: str, answer: str, task: Task) -> Asked:
    return Asked(3, group, ASK[which][0], answer, (task.goal, *task.steps))
