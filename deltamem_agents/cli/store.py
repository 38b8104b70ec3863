"""``deltamem store``: the upkeep of a whole store. Checking, migrating and keys are in modules of their own."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import store_check, store_key, store_migrate
from .opening import backend_there, file_of, open_there
from .options import (
    TENANT,
    JsonOption,
    OneAgentOption,
    StoreOption,
    TenantOption,
    YesOption,
    agree,
    examples,
    table,
)
from .results import print_json

if TYPE_CHECKING:
    from ..store.backend import Backend

app = typer.Typer(
    help="The upkeep of a store: verify, repair, migrate, prune, upgrade, keys.",
    no_args_is_help=True,
    epilog=examples("deltamem store info", "deltamem store verify", "deltamem store prune --keep-every 50"),
)
KEEP_EVERY = 50


@app.command(epilog=examples("deltamem store info", "deltamem store info --store memory.db --json"))
def info(store: StoreOption = None, tenant: TenantOption = TENANT, as_json: JsonOption = False) -> None:
    """What a store is: its schema, its policy, how much is in it."""
    from ..store.models import SCHEMA
    from ..store.schema import current

    backend = backend_there(store)
    found = current(backend)
    told: dict[str, Any] = {"location": backend.location, "schema": found, "bytes": _size(backend)}
    if found == SCHEMA:
        told |= _contents(store, tenant)
    if as_json:
        print_json(told)
        return
    rows = [(name, f"{value:,}" if type(value) is int else str(value)) for name, value in told.items()]
    table("Store", ("field", "value"), rows)
    if found is not None and found < SCHEMA:
        typer.echo(f"Of an older version of this library (now {SCHEMA}): deltamem store upgrade")


def _contents(store: str | None, tenant: str) -> dict[str, Any]:
    opened = open_there(store, tenant)
    agents = opened.agents()
    counts = {"versions": sum(a.versions for a in agents), "messages": sum(a.entries for a in agents)}
    policy = {"journal": opened.policy.journal, "encrypted": opened.policy.encrypted}
    return {**policy, "tenant": tenant, "agents": len(agents), **counts}


def _size(backend: "Backend") -> int | None:
    """Bytes of the file and of its write-ahead log; None for a server."""
    path = file_of(backend.location)
    if path is None:
        return None
    parts = [path, path.with_name(path.name + "-wal")]
    return sum(part.stat().st_size for part in parts if part.exists())


@app.command(
    epilog=examples(
        "deltamem store prune",
        "deltamem store prune --agent otto --keep-every 10 --keep-last 5",
        "deltamem store prune --branches-older-than 30 --yes",
    )
)
def prune(
    agent: OneAgentOption = None,
    keep_every: Annotated[int, typer.Option(help="Keep the states of every so many versions.", min=1)] = KEEP_EVERY,
    keep_last: Annotated[int, typer.Option(help="Keep the states of the newest versions of each line.", min=1)] = 1,
    days: Annotated[
        float | None,
        typer.Option(
            "--branches-older-than",
            help="Also delete versions of this age, in days, that lead to no head and no pin, with their messages.",
            min=0,
            metavar="DAYS",
        ),
    ] = None,
    yes: YesOption = False,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Drop the states of old versions. The journal stays, and brings them back when they are asked for.

    Heads and pinned versions are kept. A store that keeps hashes of messages alone can only delete branches.
    """
    opened = open_there(store, tenant)
    if agent is not None:
        opened.agent(agent)
    collected = 0
    if days is not None:
        question = f"Delete versions older than {days:g} days that lead to no head and no pin, for good?"
        agree(question, yes, "nothing was deleted")
        collected = opened.collect(agent, older_than=timedelta(days=days))
    pruned = 0
    if days is None or opened.policy.journal == "full":
        pruned = opened.prune(agent, keep_every=keep_every, keep_last=keep_last)
    if as_json:
        print_json({"pruned": pruned, "deleted": collected})
    else:
        deleted = "" if days is None else f"; versions deleted: {collected}"
        typer.echo(f"states dropped: {pruned}{deleted}")


@app.command(epilog=examples("deltamem store upgrade", "deltamem store upgrade --store memory.db"))
def upgrade(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Bring a store of an older version of this library to the newest schema. A SQLite file is copied first."""
    from ..store.schema import current
    from ..store.schema import upgrade as upgrade_schema

    backend = backend_there(store)
    done = upgrade_schema(backend, say=lambda line: typer.echo(line, err=as_json))
    if as_json:
        print_json({"location": backend.location, "schema": current(backend), "revisions": done})
    elif not done:
        typer.echo(f"store {backend.location}: nothing to do, revision {current(backend)} is the newest")


@app.command(epilog=examples("deltamem store scrub", "deltamem store scrub --store memory.db"))
def scrub(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Make what was deleted unreadable in the files; needed when forget or delete said that another process reads."""
    opened = open_there(store, TENANT)
    opened.scrub()
    if as_json:
        print_json({"location": opened.location, "scrubbed": True})
    else:
        typer.echo(f"store {opened.location}: what was deleted is gone from its files")


app.add_typer(store_check.app)
app.add_typer(store_migrate.app)
app.add_typer(store_key.app)
