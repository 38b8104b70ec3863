"""What the commands share: options, examples in help texts, tables, quiet libraries."""

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from ..config import DEFAULT_ADAPTER

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Path or URL of the memory database; default: DELTAMEM_STORE or ~/.deltamem.",
                 metavar="PATH"),
]  # fmt: skip
AdapterOption = Annotated[str, typer.Option("--adapter", help="Name, folder or hub id of the adapter.")]
DEFAULT = DEFAULT_ADAPTER


def examples(*commands: str) -> str:
    """The end of a help text: commands to copy, each on a line of its own."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"  {command}" for command in commands)))


def quiet_libraries() -> None:
    """No progress bars of loading and no advice of libraries among the answers. Call before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" not in sys.modules:
        os.environ.setdefault("TQDM_DISABLE", "1")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; nothing in it is taken for markup, and long cells are folded, not cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    Console().print(made)


def when(moment: datetime | str | float) -> str:
    """A point in time, in local time to the second."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
