"""``deltamem store verify``: whether a store is whole, and what can be made whole again."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CorruptStore, StateError, StoreError, StoreUnavailable
from .opening import agent_memory, open_there
from .options import (
    DEFAULT,
    TENANT,
    AdapterOption,
    JsonOption,
    OneAgentOption,
    StoreOption,
    TenantOption,
    examples,
    table,
)
from .results import print_json, progress_bar, short

if TYPE_CHECKING:
    from ..chat_model.memory import AgentMemory
    from ..store import Problem, Store

app = typer.Typer()
Repaired = list[tuple[str, str]]


@app.command(
    epilog=examples(
        "deltamem store verify",
        "deltamem store verify --agent otto --replay",
        "deltamem store verify --repair --adapter runs/worldops",
    )
)
def verify(
    agent: OneAgentOption = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also write the journal again, and compare every state.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Compute damaged states again from the journal.")] = False,
    adapter: AdapterOption = DEFAULT,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Check the file, all checksums and the chain of ids. The exit code is 1 when problems are left.

    Replay and repair load the adapter and work on its versions; states compare bit for bit on the device that wrote
    them.
    """
    opened = open_there(store, tenant)
    names = [agent] if agent is not None else [found.agent_id for found in opened.agents()]
    problems = _found(opened, agent)
    memory = agent_memory(opened, adapter) if replay or (repair and problems) else None
    repaired: Repaired = []
    if repair and memory is not None and problems:
        repaired, failed = _repair(memory, problems)
        problems = _found(opened, agent) + failed
    replayed, passed = 0, 0
    if replay and memory is not None:
        again, replayed, passed = _replay(memory, names)
        problems += again
    if as_json:
        mended = [{"agent_id": name, "version_id": version} for name, version in repaired]
        counts = {"agents": len(names), "replayed": replayed, "passed_over": passed}
        print_json({**counts, "repaired": mended, "problems": problems})
    else:
        _print(problems, repaired, len(names))
        if replay:
            others = f"; {passed} of other adapters passed over (name theirs with --adapter)" if passed else ""
            typer.echo(f"versions replayed: {replayed}{others}")
    if problems:
        raise typer.Exit(1)


def _print(problems: list["Problem"], repaired: Repaired, agents: int) -> None:
    if repaired:
        table("Repaired", ("agent", "version"), [(name, short(version)) for name, version in repaired])
    if problems:
        rows = [(p.agent_id or "-", short(p.version_id), p.what) for p in problems]
        table(f"Problems: {len(problems)}", ("agent", "version", "what"), rows)
    else:
        typer.echo(f"No problem in {agents} agent{'' if agents == 1 else 's'}.")


def _found(store: "Store", agent: str | None) -> list["Problem"]:
    """What the store finds; a file that cannot be read any further is one of the problems."""
    from ..store import Problem

    problems: list[Problem] = []
    with progress_bar("verifying"):
        try:
            problems.extend(store.verify(agent))
        except CorruptStore as error:
            problems.append(Problem(None, None, str(error)))
    return problems


def _repair(memory: "AgentMemory", problems: list["Problem"]) -> tuple[Repaired, list["Problem"]]:
    """Repair the versions that this adapter made: those that are whole again, and what went wrong."""
    from ..chat_model.replay import repair
    from ..store import Problem

    done: Repaired = []
    failed: list[Problem] = []
    for name in sorted({p.agent_id for p in problems if p.agent_id is not None and p.version_id is not None}):
        ours = {v.version_id for v in memory.store.tree(name) if v.fingerprint == memory.engine.fingerprint}
        damaged = [p for p in problems if p.agent_id == name and p.version_id in ours]
        try:
            done += [(name, version) for version in repair(memory, name, damaged)] if damaged else []
        except StoreUnavailable:
            raise
        except (StateError, StoreError) as error:
            failed.append(Problem(name, None, f"not repaired: {error}"))
    return done, failed


def _replay(memory: "AgentMemory", names: list[str]) -> tuple[list["Problem"], int, int]:
    """What replay finds, and how many versions were replayed and passed over."""
    from ..chat_model.replay import replay

    problems: list[Problem] = []
    replayed, passed = 0, 0
    for name in names:
        with progress_bar(f"replaying {name}") as done:
            problems.extend(replay(memory, name, done))
        ours = [version.fingerprint == memory.engine.fingerprint for version in memory.store.tree(name)]
        replayed, passed = replayed + sum(ours), passed + len(ours) - sum(ours)
    return problems, replayed, passed
