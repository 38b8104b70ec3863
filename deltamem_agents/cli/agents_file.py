"""``deltamem agents`` export and import: an agent as one file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..config import default_store
from ..errors import ArchiveError
from .opening import open_there
from .options import TENANT, AgentArgument, JsonOption, StoreOption, TenantOption, examples
from .results import print_json, short

app = typer.Typer()
FileArgument = Annotated[Path, typer.Argument(help="The file.", metavar="FILE")]


@app.command(
    "export",
    epilog=examples(
        "deltamem agents export otto otto.deltamem", "deltamem agents export otto otto.deltamem --overwrite"
    ),
)
def export_file(
    agent: AgentArgument,
    file: FileArgument,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Write an agent with all of its versions and messages to a file, which is not encrypted."""
    opened = open_there(store, tenant)

    from ..store.archive import export_agent

    made = export_agent(opened, agent, file, overwrite=overwrite)
    if opened.policy.encrypted:
        typer.echo(f"deltamem: the store is encrypted, {made} is not: keep it where nobody else can read it", err=True)
    if as_json:
        print_json({"agent": agent, "file": str(made), "bytes": made.stat().st_size})
    else:
        typer.echo(f"{agent} is in {made} ({made.stat().st_size:,} bytes)")


@app.command(
    "import",
    epilog=examples(
        "deltamem agents import otto.deltamem",
        "deltamem agents import otto.deltamem --as otto-2 --store memory.db",
    ),
)
def import_file(
    file: FileArgument,
    name: Annotated[str | None, typer.Option("--as", help="Another name for the agent.", metavar="NAME")] = None,
    journal: Annotated[
        Literal["full", "hash"] | None,
        typer.Option(help="What a store that is made now keeps of messages: their text, or hashes alone."),
    ] = None,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Read an exported agent into a store, which is made if need be. The whole file is checked before."""
    if not file.expanduser().is_file():  # before a store is made
        raise ArchiveError(f"there is no file {file}: give the path of an export")

    from ..store import open_store
    from ..store.archive import import_agent

    made = import_agent(open_store(store or default_store(), tenant=tenant, journal=journal), file, name)
    if as_json:
        print_json(made)
    else:
        counts = f"{made.versions} versions, {made.entries} messages"
        typer.echo(f"{made.agent_id} is here: {counts}, head {short(made.head)}")
