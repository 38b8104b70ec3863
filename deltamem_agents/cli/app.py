"""The command ``deltamem``: its subcommands, and how errors look. Heavy libraries load inside the commands."""

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import DeltaMemError
from . import adapters, agents, chat, demo, evals, store, train
from .options import examples

app = typer.Typer(
    name="deltamem",
    help="δ-mem for agents: a memory for each agent inside a frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=examples("deltamem demo", "deltamem chat --agent otto", "deltamem agents list"),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deltamem {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("chat", epilog=chat.EXAMPLES)(chat.chat)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.add_typer(evals.app, name="eval")
app.add_typer(agents.app, name="agents")
app.add_typer(store.app, name="store")
app.add_typer(adapters.app, name="adapters")


def main() -> None:
    """Run the command line; an error of the library becomes one line on stderr and exit code 1."""
    try:
        app(prog_name="deltamem")
    except DeltaMemError as error:
        line = " ".join(str(error).split())
        print(f"deltamem: {line}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
