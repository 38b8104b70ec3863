"""What the commands share: options, examples in help texts, questions, tables, quiet libraries."""

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import DEFAULT_ADAPTER
from ..errors import StoreError, VersionNotFound

if TYPE_CHECKING:
    from ..store import Store, Version

LEAST = 4  # characters of a version id that name it, if they begin no other
FULL = 64  # characters of a whole one
MOST_NAMED = 6  # candidates that an error names
CONTROLS = {*range(32), *range(127, 160), *range(0xD800, 0xE000)} - {ord("\n"), ord("\t")}
UNPRINTABLE = dict.fromkeys(CONTROLS, "�")


def moment(text: str | datetime) -> datetime:
    """A point in time from a command line; one without a zone is local."""
    try:
        found = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date such as 2026-01-31 or 2026-01-31T18:30+02:00") from None
    return found.astimezone()


StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Path or URL of the memory database; default: DELTAMEM_STORE or ~/.deltamem.",
                 metavar="PATH"),
]  # fmt: skip
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose agents of the store.", metavar="NAME")]
AdapterOption = Annotated[str, typer.Option("--adapter", help="Name, folder or hub id of the adapter.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of tables, for machines.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AgentArgument = Annotated[str, typer.Argument(help="Name of the agent.", metavar="AGENT")]
VersionArgument = Annotated[
    str, typer.Argument(help="Id of a version, or 4 or more of its first characters.", metavar="VERSION")
]
OneAgentOption = Annotated[
    str | None, typer.Option("--agent", help="This agent alone; default: all of the tenant.", metavar="AGENT")
]
SubStateOption = Annotated[
    str | None, typer.Option("--sub-state", help="Messages that were written to this sub-state.", metavar="NAME")
]
SourceOption = Annotated[str | None, typer.Option("--source", help="Messages of this person or tool.", metavar="NAME")]
SinceOption = Annotated[
    datetime | None, typer.Option("--since", help="Written at this time or later.", parser=moment, metavar="DATE")
]
UntilOption = Annotated[
    datetime | None, typer.Option("--until", help="Written before this time.", parser=moment, metavar="DATE")
]
DEFAULT = DEFAULT_ADAPTER
TENANT = "default"


def examples(*commands: str) -> str:
    """The end of a help text: commands to copy, each on a line of its own."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"  {command}" for command in commands)))


def agree(question: str, yes: bool, otherwise: str) -> None:
    """Go on when the user agrees. Where nobody can be asked, StoreError: ``otherwise`` says what was not done."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise StoreError(f"{otherwise}: nobody can be asked here; give --yes")
    typer.confirm(question, abort=True, err=True)


def find_version(store: "Store", agent: str, given: str) -> "Version":
    """The version of an agent whose id is ``given``, or begins so.

    Raises:
        AgentNotFound.
        VersionNotFound: there is none, or ``given`` is too short or begins several ids.
    """
    store.agent(agent)
    if len(given) >= FULL:  # also those of versions that were rewritten: they lead to their successors
        return store.version(agent, given)
    if len(given) < LEAST:
        raise VersionNotFound(f"version {given!r} of agent {agent!r}: give {LEAST} or more characters of its id")
    found = [version for version in store.tree(agent) if version.version_id.startswith(given.lower())]
    if not found:
        raise VersionNotFound(
            f"agent {agent!r} has no version {given!r}: deltamem agents history lists them, with --all those of "
            "branches too"
        )
    if len(found) > 1:
        some = ", ".join(version.version_id[: max(12, len(given) + 4)] for version in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise VersionNotFound(f"{given!r} begins several versions of agent {agent!r}: {some}{more}; give more of it")
    return found[0]


def quiet_libraries() -> None:
    """No progress bars of loading and no advice of libraries among the answers. Call before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" not in sys.modules:
        os.environ.setdefault("TQDM_DISABLE", "1")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; nothing in it is taken for markup or commands, and long cells are folded, not cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(printable(title), style="italic"), title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(made)


def printable(text: str) -> str:
    """Text that does nothing to a terminal: control characters and halves of surrogate pairs become �."""
    return text.translate(UNPRINTABLE)


def when(moment: datetime | str | float) -> str:
    """A point in time, in local time to the second."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
