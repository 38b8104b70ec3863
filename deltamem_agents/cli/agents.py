"""``deltamem agents``: whose memories are in a store. Here is what only looks; the other modules change something."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import agents_change, agents_diff, agents_file, agents_forget
from .opening import open_there
from .options import (
    TENANT,
    AgentArgument,
    JsonOption,
    SinceOption,
    SourceOption,
    StoreOption,
    SubStateOption,
    TenantOption,
    UntilOption,
    examples,
    table,
    when,
)
from .results import (
    fields_of,
    gates,
    marks,
    movements,
    numbers,
    print_agents,
    print_json,
    print_memory,
    print_messages,
    short,
)

if TYPE_CHECKING:
    from ..store import Record, Store, Version

app = typer.Typer(
    help="The agents of a store: look, compare, go back, copy, forget, search, move.",
    no_args_is_help=True,
    epilog=examples("deltamem agents list", "deltamem agents history otto", "deltamem agents search otto 'port atlas'"),
)
SHOWN = 20  # versions and messages that are listed


@app.command("list", epilog=examples("deltamem agents list", "deltamem agents list --store memory.db --json"))
def list_all(store: StoreOption = None, tenant: TenantOption = TENANT, as_json: JsonOption = False) -> None:
    """The agents, with the head of each one's memory."""
    opened = open_there(store, tenant)
    if as_json:
        print_json(opened.agents())
    else:
        print_agents(opened)


@app.command(epilog=examples("deltamem agents show otto", "deltamem agents show otto --store memory.db"))
def show(
    agent: AgentArgument, store: StoreOption = None, tenant: TenantOption = TENANT, as_json: JsonOption = False
) -> None:
    """One agent: the newest versions of its memory and what was written into it."""
    opened = open_there(store, tenant)
    found = opened.agent(agent)
    if as_json:
        versions, messages = opened.history(agent, limit=SHOWN), opened.journal(agent, limit=SHOWN)
        print_json({"agent": found, "versions": versions, "messages": messages})
    else:
        print_memory(opened, agent, SHOWN)


@app.command(
    epilog=examples(
        "deltamem agents history otto",
        "deltamem agents history otto --limit 100 --json",
        "deltamem agents history otto --all",
    )
)
def history(
    agent: AgentArgument,
    limit: Annotated[int, typer.Option(help="Most versions to list.", min=1)] = SHOWN,
    everything: Annotated[bool, typer.Option("--all", help="Also versions that do not lead to the head.")] = False,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """The versions of an agent's memory, newest first: what each wrote, how strongly, and how far it moved the state.

    The gate is the mean over the tokens that were written, between 0 and 1; moved is the sum over the messages.
    """
    opened = open_there(store, tenant)
    found = opened.agent(agent)
    versions, records = _versions(opened, agent, limit, everything)
    if as_json:
        print_json([_document(version, records.get(version.version_id, []), found.head) for version in versions])
        return
    rows = []
    for version in versions:
        own = records.get(version.version_id, [])
        moved = numbers(movements(own))
        place = (
            short(version.version_id),
            when(version.created_at),
            str(version.depth),
            ", ".join(version.parts) or "-",
        )
        rows.append((*place, str(len(own)), numbers(gates(own)), moved, marks(version, found.head)))
    title = f"Versions of {agent}: {len(versions)} of {found.versions}, newest first"
    table(title, ("version", "made", "depth", "sub-states", "messages", "gate", "moved", ""), rows)


@app.command(
    epilog=examples(
        "deltamem agents search otto 'port of atlas'",
        "deltamem agents search otto atlas -k 3 --sub-state facts --since 2026-01-31",
        "deltamem agents search otto atlas --json",
    )
)
def search(
    agent: AgentArgument,
    query: Annotated[str, typer.Argument(help="Words to look for; any of them may match.", metavar="QUERY")],
    k: Annotated[int, typer.Option("-k", help="Most messages to show.", min=1)] = 10,
    sub_state: SubStateOption = None,
    source: SourceOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """The messages of an agent that fit a query best, by BM25 over their text."""
    opened = open_there(store, tenant)
    opened.agent(agent)

    from ..store import Filter

    where = Filter(sub_state=sub_state, source=source, since=since, until=until)
    hits = opened.search(agent, query, k=k, where=where)
    if as_json:
        print_json(hits)
    elif hits:
        scores = [f"{hit.score:.2f}" for hit in hits]
        print_messages(f"Messages of {agent}, best first", [hit.record for hit in hits], "score", scores)
    else:
        typer.echo("No message fits.")


app.add_typer(agents_diff.app)
app.add_typer(agents_change.app)
app.add_typer(agents_forget.app)
app.add_typer(agents_file.app)


def _versions(
    store: "Store", agent: str, limit: int, everything: bool
) -> tuple[list["Version"], dict[str, list["Record"]]]:
    """The newest versions, and the records of each."""
    if everything:
        from ..store import Filter

        versions = store.tree(agent)[::-1][:limit]
        records = store.records(agent, Filter())
    else:
        versions = store.history(agent, limit=limit)
        records = store.journal(agent, after=versions[-1].parent) if versions else []
    by_version: dict[str, list[Record]] = {}
    for record in records:
        by_version.setdefault(record.version_id, []).append(record)
    return versions, by_version


def _document(version: "Version", records: list["Record"], head: str | None) -> dict[str, Any]:
    written = {"entries": len(records), "tokens": sum(record.entry.tokens or 0 for record in records)}
    measured = {"gate": gates(records), "moved": movements(records)}
    return {**fields_of(version), **written, **measured, "head": version.version_id == head}
