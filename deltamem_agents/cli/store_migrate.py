"""``deltamem store migrate``: memories are written again by another adapter."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DeltaMemError, StoreUnavailable
from .opening import agent_memory, open_there
from .options import TENANT, AdapterOption, JsonOption, StoreOption, TenantOption, examples, table
from .results import print_json, progress_bar, short

if TYPE_CHECKING:
    from ..chat_model.memory import AgentMemory

app = typer.Typer()


@app.command(
    epilog=examples(
        "deltamem store migrate otto --adapter runs/worldops",
        "deltamem store migrate --all --adapter runs/worldops",
    )
)
def migrate(
    adapter: AdapterOption,
    agent: Annotated[str | None, typer.Argument(help="Name of the agent.", metavar="AGENT")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All agents of the tenant.")] = False,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Write the journal of an agent, or of all, with another adapter, and make the result the head.

    Run again what was stopped: it goes on where it was. The old versions stay, for `agents rollback` with the old
    adapter; `store prune --branches-older-than` deletes them. Stop what writes with the old adapter first.
    """
    if (agent is not None) == everyone:
        raise typer.BadParameter("name one agent, or give --all", param_hint="AGENT")
    opened = open_there(store, tenant)
    names = [opened.agent(agent).agent_id] if agent is not None else [found.agent_id for found in opened.agents()]
    memory = agent_memory(opened, adapter)
    done = [_migrated(memory, name, alone=not everyone) for name in names]
    if as_json:
        print_json(done)
    else:
        rows = [(d["agent"], short(d["old"]), short(d["new"]), str(d["versions"]), d["problem"] or "") for d in done]
        table(f"Migrated to {adapter}", ("agent", "old head", "new head", "versions written", "problem"), rows)
    if any(d["problem"] for d in done):
        raise typer.Exit(1)


def _migrated(memory: "AgentMemory", name: str, alone: bool) -> dict[str, Any]:
    """What became of one agent. Of several, one that cannot be migrated does not stop the others."""
    from ..chat_model.replay import migrate

    try:
        with progress_bar(f"migrating {name}") as done:
            found = migrate(memory, name, done)
        return {"agent": name, "old": found.old, "new": found.new, "versions": found.versions, "problem": None}
    except DeltaMemError as error:
        if alone or isinstance(error, StoreUnavailable):
            raise
        return {"agent": name, "old": None, "new": None, "versions": 0, "problem": str(error)}
