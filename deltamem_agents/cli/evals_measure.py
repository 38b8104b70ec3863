"""``deltamem eval curves`` and ``perplexity``: how much a memory holds, and what it costs the backbone."""

from pathlib import Path
from typing import Annotated

import typer

from .evals_options import SEED, DeviceOption, SeedOption
from .options import DEFAULT, AdapterOption, examples, quiet_libraries, table

CURVES = examples(
    "deltamem eval curves --questions 100 --out curves",
    "deltamem eval curves --curve facts --curve never_told --out curves",
)
PERPLEXITY = examples(
    "deltamem eval perplexity --tokens 5000",
    "deltamem eval perplexity --text book.txt --out perplexity.json",
)


def curves(
    out: Annotated[Path, typer.Option(help="Folder of curves.json and curves.png; a stopped run there goes on.")],
    adapter: AdapterOption = DEFAULT,
    device: DeviceOption = None,
    questions: Annotated[int, typer.Option(help="Questions at each point.", min=1)] = 200,
    curve: Annotated[list[str] | None, typer.Option(help="Only this curve (repeatable).")] = None,
    seed: SeedOption = SEED,
) -> None:
    """Curves of capacity, forgetting, updates, interference and invention."""
    quiet_libraries()

    from ..engine import load_engine
    from ..evals.curves import run_curves

    run_curves(load_engine(adapter, device=device), out, questions, seed, curve or None, say=typer.echo)
    typer.echo(f"curves: {out / 'curves.png'}")


def perplexity(
    adapter: AdapterOption = DEFAULT,
    device: DeviceOption = None,
    text: Annotated[Path | None, typer.Option(help="Also on this text file, in UTF-8.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of each text.", min=2)] = 20_000,
    window: Annotated[int | None, typer.Option(help="Tokens of a window; default: the backbone's.", min=2)] = None,
    seed: SeedOption = SEED,
    out: Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")] = None,
) -> None:
    """Perplexity of the backbone alone, with an empty memory, and with a memory of 16 facts."""
    quiet_libraries()

    from ..engine import load_engine
    from ..evals.perplexity import run_perplexity

    engine = load_engine(adapter, device=device)
    document = run_perplexity(engine, text, out, tokens, window, seed, say=lambda line: typer.echo(line, err=True))
    rows = [
        (row["name"], f"{row['tokens']:,}", *(f"{row[way]['perplexity']:.4f}" for way in ("detached", "empty", "full")))
        for row in document["texts"].values()
    ]
    table("Perplexity", ("text", "tokens", "backbone alone", "empty memory", "full memory"), rows)
