"""``deltamem agents`` rollback, fork, reset, pin, delete: what changes one agent."""

from typing import Annotated

import typer

from ..errors import StatePruned
from .opening import agent_memory, open_there
from .options import (
    DEFAULT,
    TENANT,
    AdapterOption,
    AgentArgument,
    JsonOption,
    StoreOption,
    TenantOption,
    VersionArgument,
    YesOption,
    agree,
    examples,
    find_version,
)
from .results import print_json, short

app = typer.Typer()


@app.command(epilog=examples("deltamem agents rollback otto 3f9a01", "deltamem agents rollback otto 3f9a01 --yes"))
def rollback(
    agent: AgentArgument,
    version: VersionArgument,
    yes: YesOption = False,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Make an earlier version the head. What came after it stays in the store, and can be made the head again."""
    opened = open_there(store, tenant)
    target, head = find_version(opened, agent, version), opened.head(agent)
    left = 0
    if head is not None:
        shared = opened.diff(agent, head, target.version_id).ancestor
        left = len(opened.history(agent, head, after=shared))
    behind = f"{left} version{'' if left == 1 else 's'}"
    if target.version_id != head:
        question = f"Move the head of {agent} to {short(target.version_id)} and leave {behind} behind?"
        agree(question, yes, f"the head of agent {agent!r} was not moved, which would leave {behind} behind")
        opened.move_head(agent, target.version_id, expected=head)
    if as_json:
        print_json({"agent": agent, "old": head, "head": target.version_id, "left_behind": left})
    elif target.version_id == head:
        typer.echo(f"{short(head)} is the head of {agent} already")
    else:
        typer.echo(f"the head of {agent} is {short(target.version_id)} now; {behind} left behind, from {short(head)}")


@app.command(
    epilog=examples("deltamem agents fork otto otto-2", "deltamem agents fork otto otto-before --version 3f9a01")
)
def fork(
    agent: AgentArgument,
    new: Annotated[str, typer.Argument(help="Name of the new agent.", metavar="NEW")],
    version: Annotated[
        str | None, typer.Option("--version", help="From this version; default: the head.", metavar="VERSION")
    ] = None,
    adapter: AdapterOption = DEFAULT,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """A new agent that knows what another one knew at a version. The adapter is loaded only for a pruned version."""
    opened = open_there(store, tenant)
    opened.agent(agent)
    wanted = opened.head(agent) if version is None else find_version(opened, agent, version).version_id
    try:
        made = opened.fork(agent, new, wanted)
    except StatePruned:
        assert wanted is not None
        agent_memory(opened, adapter).bring_back(agent, wanted)
        made = opened.fork(agent, new, wanted)
    if as_json:
        print_json({"agent": new, "head": made.version_id, "forked_from": {"agent": agent, "version": wanted}})
    else:
        typer.echo(f"{new} knows what {agent} knew at {short(wanted)} (version {short(made.version_id)})")


@app.command(
    epilog=examples(
        "deltamem agents reset otto facts", "deltamem agents reset otto", "deltamem agents reset otto --adapter runs/a"
    )
)
def reset(
    agent: AgentArgument,
    sub_state: Annotated[
        str | None, typer.Argument(help="Which one to empty; default: all of them.", metavar="SUB_STATE")
    ] = None,
    adapter: AdapterOption = DEFAULT,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Empty one sub-state, or all, as a new version: earlier ones stay in the store (to erase messages: forget)."""
    opened = open_there(store, tenant)
    head = opened.agent(agent).head
    memory = agent_memory(opened, adapter)
    if head is not None:
        memory.check(opened.version(agent, head))
    version = memory.reset(agent, sub_state)
    if as_json:
        print_json({"agent": agent, "sub_state": sub_state, "version": version})
    else:
        typer.echo(f"{sub_state or 'everything'} of {agent} is empty now (version {short(version)})")


@app.command(
    epilog=examples("deltamem agents pin otto 3f9a01 'before the move'", "deltamem agents pin otto 3f9a01  # unpin")
)
def pin(
    agent: AgentArgument,
    version: VersionArgument,
    label: Annotated[str | None, typer.Argument(help="Why it is kept; none: unpin it.", metavar="LABEL")] = None,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Pin a version, so that it is never pruned or collected; without a label: unpin it."""
    opened = open_there(store, tenant)
    found = find_version(opened, agent, version)
    opened.pin(agent, found.version_id, label)
    if as_json:
        print_json({"agent": agent, "version": found.version_id, "pin": label})
    else:
        typer.echo(
            f"{short(found.version_id)} of {agent} is " + ("not pinned" if label is None else f"pinned: {label}")
        )


@app.command(epilog=examples("deltamem agents delete otto", "deltamem agents delete otto --yes"))
def delete(
    agent: AgentArgument,
    yes: YesOption = False,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Delete an agent: all versions of its memory, and its journal. There is no way back."""
    opened = open_there(store, tenant)
    opened.agent(agent)
    agree(f"Delete {agent} with all of its memory?", yes, f"agent {agent!r} was not deleted")
    versions = opened.delete(agent)
    if as_json:
        print_json({"deleted": agent, "versions": versions})
    else:
        typer.echo(f"deleted {agent}")
