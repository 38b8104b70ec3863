"""Agents, versions and messages as tables and as JSON, and bars that show progress."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from .options import table, when

if TYPE_CHECKING:
    from ..store import Entry, Record, Store, Version

ID = 12  # characters of a version id in tables


def print_json(document: Any) -> None:
    """Print JSON in ASCII; records of the store become objects with their fields."""
    typer.echo(json.dumps(document, default=fields_of, indent=2))


def fields_of(value: Any) -> Any:
    """What JSON has for a record of the store, a time, a set."""
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.repr}
    return sorted(value)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal; gives the function to call with what is done, and of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def print_agents(store: "Store") -> None:
    rows = [(a.agent_id, when(a.created_at), str(a.versions), str(a.entries), short(a.head)) for a in store.agents()]
    if rows:
        table("Agents", ("agent", "since", "versions", "messages", "head"), rows)
    else:
        typer.echo("No agents yet.")


def print_memory(store: "Store", agent: str, most: int) -> None:
    """The newest versions of an agent's memory and the newest messages that were written into it."""
    found, head = store.agent(agent), store.head(agent)
    made = [
        (short(v.version_id), when(v.created_at), ", ".join(v.parts) or "-", "head" if v.version_id == head else "")
        for v in store.history(agent, limit=most)
    ]
    title = f"Versions of {agent}: {found.versions}, newest first"
    table(title, ("version", "made", "sub-states", ""), made)
    print_messages(f"Messages: {found.entries}, newest last", store.journal(agent, limit=most))


def print_messages(title: str, records: Sequence["Record"], head: str = "", first: Sequence[str] = ()) -> None:
    """Records as a table, after a column ``head`` with the cells ``first``, if that is given."""
    rows = [(short(r.version_id), r.entry.role, ", ".join(r.entry.sub_states), content_of(r.entry)) for r in records]
    columns = "version", "role", "written to", "message"
    if head:
        table(title, (head, *columns), [(cell, *row) for cell, row in zip(first, rows, strict=True)])
    else:
        table(title, columns, rows)


def content_of(entry: "Entry") -> str:
    """What a message says, its tool calls included, in one line for people."""
    calls = (entry.payload or {}).get("tool_calls", ())
    called = [f"calls {call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in calls]
    return "; ".join(filter(None, [entry.content, *called])) if entry.content is not None else "(kept as a hash)"


def gates(records: Iterable["Record"]) -> dict[str, float]:
    """Sub-state -> mean write gate over the tokens of some messages."""
    sums: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for record in records:
        for name, gate in (record.entry.gate or {}).items():
            count = record.entry.tokens or 1
            sums[name] = sums.get(name, 0.0) + gate * count
            tokens[name] = tokens.get(name, 0) + count
    return {name: total / tokens[name] for name, total in sums.items()}


def movements(records: Iterable["Record"]) -> dict[str, float]:
    """Sub-state -> how far its state moved in all, message by message."""
    sums: dict[str, float] = {}
    for record in records:
        for name, moved in (record.entry.moved or {}).items():
            sums[name] = sums.get(name, 0.0) + moved
    return sums


def numbers(of: Mapping[str, float], digits: int = 2) -> str:
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in of.items()) or "-"


def marks(version: "Version", head: str | None) -> str:
    """What is special about a version."""
    found = ["head"] if version.version_id == head else []
    found += [f"pin: {version.pin}"] if version.pin is not None else []
    found += [f"reset: {', '.join(version.resets)}"] if version.resets else []
    return ", ".join(found + [word for word in ("pruned", "retired") if getattr(version, word)])


def short(version_id: str | None) -> str:
    return (version_id or "-")[:ID]
