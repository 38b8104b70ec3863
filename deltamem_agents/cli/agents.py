"""``deltamem agents``: whose memories are in a store."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import default_store
from ..errors import StoreError
from .options import StoreOption, examples, table, when

if TYPE_CHECKING:
    from ..store import Entry, Store

app = typer.Typer(
    help="List, show and delete the agents of a store.",
    no_args_is_help=True,
    epilog=examples("deltamem agents list", "deltamem agents show otto", "deltamem agents delete otto --yes"),
)
SHOWN = 20  # versions and messages that `show` lists
AgentArgument = Annotated[str, typer.Argument(help="Name of the agent.", metavar="AGENT")]


@app.command("list", epilog=examples("deltamem agents list", "deltamem agents list --store memory.db"))
def list_all(store: StoreOption = None) -> None:
    """The agents, with the head of each one's memory."""
    print_agents(_open(store))


@app.command(epilog=examples("deltamem agents show otto", "deltamem agents show otto --store memory.db"))
def show(agent: AgentArgument, store: StoreOption = None) -> None:
    """One agent: the versions of its memory and what was written into it."""
    opened = _open(store)
    opened.agent(agent)
    print_history(opened, agent, SHOWN)


@app.command(epilog=examples("deltamem agents delete otto", "deltamem agents delete otto --yes"))
def delete(
    agent: AgentArgument,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an agent: all versions of its memory, and its journal. There is no way back."""
    opened = _open(store)
    opened.agent(agent)
    if not yes:
        if not sys.stdin.isatty():
            raise StoreError(f"agent {agent!r} was not deleted: nobody can be asked here; give --yes")
        typer.confirm(f"Delete {agent} with all of its memory?", abort=True)
    opened.delete(agent)
    typer.echo(f"deleted {agent}")


def print_agents(store: "Store") -> None:
    rows = [
        (a.agent_id, when(a.created_at), str(a.versions), str(a.entries), (a.head or "-")[:12]) for a in store.agents()
    ]
    if rows:
        table("Agents", ("agent", "since", "versions", "messages", "head"), rows)
    else:
        typer.echo("No agents yet.")


def print_history(store: "Store", agent: str, most: int) -> None:
    """The newest versions of an agent's memory and the newest messages that were written into it."""
    head = store.head(agent)
    versions, journal = store.history(agent), store.journal(agent)
    made = [
        (v.version_id[:12], when(v.created_at), ", ".join(v.parts) or "-", "head" if v.version_id == head else "")
        for v in versions[:most]
    ]
    table(f"Versions of {agent}: {len(versions)}, newest first", ("version", "made", "sub-states", ""), made)
    said = [(v[:12], e.role, ", ".join(e.sub_states), _content(e)) for v, e in journal[-most:]]
    table(f"Messages: {len(journal)}, newest last", ("version", "role", "written to", "message"), said)


def _content(entry: "Entry") -> str:
    calls = (entry.payload or {}).get("tool_calls", ())
    called = [f"calls {call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in calls]
    return "; ".join(filter(None, [entry.content, *called]))


def _open(store: str | None) -> "Store":
    """The store, which must be there: looking at a store makes none."""
    location = store or default_store()
    if "://" not in location and not Path(location).expanduser().exists():
        raise StoreError(f"there is no store at {location}: name one with --store, or begin one with deltamem chat")

    from ..store import open_store

    return open_store(location)
