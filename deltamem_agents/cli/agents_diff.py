"""``deltamem agents diff``: what lies between two versions of an agent's memory."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import StatePruned, VersionNotFound
from .opening import open_there
from .options import (
    TENANT,
    AgentArgument,
    JsonOption,
    StoreOption,
    TenantOption,
    VersionArgument,
    examples,
    find_version,
    table,
)
from .results import movements, print_json, print_messages, short

if TYPE_CHECKING:
    from ..store import Diff, Store, Version

app = typer.Typer()
NewArgument = Annotated[str | None, typer.Argument(help="The other version; default: the head.", metavar="NEW")]


@app.command(
    epilog=examples(
        "deltamem agents diff otto 3f9a01",
        "deltamem agents diff otto 3f9a01 77c2d4",
        "deltamem agents diff otto 3f9a01 --json",
    )
)
def diff(
    agent: AgentArgument,
    old: VersionArgument,
    new: NewArgument = None,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """What lies between two versions: messages that one has and the other has not, and how far each sub-state moved.

    The distance of two states is the Frobenius norm of their difference, over all layers. Where their bytes were
    pruned, what the journal says stands in its place: the sum of how far each message moved the state.
    """
    opened = open_there(store, tenant)
    here, there = find_version(opened, agent, old), _new(opened, agent, new)
    between = opened.diff(agent, here.version_id, there.version_id)
    distances, why = _distances(opened, here, there)
    moved = movements([*between.removed, *between.added])
    if as_json:
        ends = {"old": here.version_id, "new": there.version_id, "ancestor": between.ancestor}
        messages = {"removed": between.removed, "added": between.added}
        print_json({"agent": agent, **ends, **messages, "distance": distances, "why_not": why, "moved": moved})
        return
    _print(f"{agent}: {short(here.version_id)} → {short(there.version_id)}", between)
    if between.ancestor not in (here.version_id, there.version_id):
        typer.echo(f"They are on two branches, which part after {short(between.ancestor)}.")
    if distances is None:
        typer.echo(f"No distance of the states: {why}. What the journal says of how far the messages moved them:")
    rows = [(name, f"{value:.4f}") for name, value in (moved if distances is None else distances).items()]
    table("States", ("sub-state", "moved by messages" if distances is None else "distance"), rows)


def _new(store: "Store", agent: str, given: str | None) -> "Version":
    if given is not None:
        return find_version(store, agent, given)
    head = store.agent(agent).head
    if head is None:
        raise VersionNotFound(f"agent {agent!r} has no head to compare with: name two versions")
    return store.version(agent, head)


def _print(title: str, between: "Diff") -> None:
    signs = ["-"] * len(between.removed) + ["+"] * len(between.added)
    if signs:
        print_messages(title, [*between.removed, *between.added], "±", signs)
    else:
        typer.echo(f"{title}: no message more or less")


def _distances(store: "Store", old: "Version", new: "Version") -> tuple[dict[str, float] | None, str | None]:
    """Sub-state -> how far the two states are apart; or None, and why."""
    names = sorted({*old.parts, *new.parts})
    if all(old.parts.get(name) == new.parts.get(name) for name in names) and old.fingerprint == new.fingerprint:
        return dict.fromkeys(names, 0.0), None
    if old.fingerprint != new.fingerprint:
        return None, "the two versions were made by different adapters or backbones"
    try:
        mine = store.load(old.agent_id, old.version_id).parts
        theirs = store.load(new.agent_id, new.version_id).parts
    except StatePruned:
        pruned = [short(version.version_id) for version in (old, new) if version.pruned]
        return None, f"the bytes of {' and '.join(pruned)} were pruned"

    from ..memory import MemoryState

    def apart(name: str) -> float:
        """A sub-state that is not there is all zeros."""
        here, there = (MemoryState.from_bytes(parts[name]) if name in parts else None for parts in (mine, theirs))
        some = here or there
        assert some is not None
        return (here or some.reset()).distance(there or some.reset())[name]

    return {name: apart(name) for name in names}, None
