"""``deltamem eval``: recall, and the commands of the files evals_*.py."""

import json
from pathlib import Path
from typing import Annotated

import typer

from . import evals_harness, evals_measure, evals_report, evals_run
from .options import DEFAULT, AdapterOption, examples, quiet_libraries, table

app = typer.Typer(
    help="Measure what the memory holds.",
    no_args_is_help=True,
    epilog=examples(
        "deltamem eval recall --questions 50",
        "deltamem eval world --length short --examples 2 --out results",
        "deltamem eval report --out results",
    ),
)


@app.callback()
def _root() -> None:
    pass


@app.command(
    epilog=examples(
        "deltamem eval recall --questions 50",
        "deltamem eval recall --adapter runs/worldops --out results.json",
        "deltamem eval recall --no-baselines",
    )
)
def recall(
    adapter: AdapterOption = DEFAULT,
    questions: Annotated[int, typer.Option(help="Questions for each cell.", min=1)] = 200,
    out: Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")] = None,
    cell: Annotated[list[str] | None, typer.Option("--cell", help="Only this cell (repeatable).")] = None,
    baselines: Annotated[bool, typer.Option(help="Also answer without memory, and with all in the prompt.")] = True,
    baseline_questions: Annotated[int, typer.Option(help="Questions for each baseline of a cell.", min=1)] = 250,
) -> None:
    """Recall of the memory, as a share of exact answers.

    Tell sessions that training never saw, ask about them with nothing in the prompt, and count exact answers.
    """
    quiet_libraries()

    from ..evals.recall import run_recall

    document = run_recall(adapter, questions, out, cell or None, baselines, typer.echo, baseline_questions)
    names = ("memory", "no_memory", "full_context", "aim")
    rows = [
        (name, row["title"], *(f"{row[key]:.1%}" if key in row else "-" for key in names))
        for name, row in document["cells"].items()
    ]
    table("Exact answers", ("cell", "", "memory", "without", "all in the prompt", "aim"), rows)
    if out is not None:
        typer.echo(f"results: {out}")


@app.command("table", epilog=examples("deltamem eval table adapters/worldops-msw/results.json"))
def print_table(
    results: Annotated[Path, typer.Argument(help="Results of `deltamem eval recall --out`.")],
) -> None:
    """The results as a Markdown table, as it stands in the README."""
    from ..errors import DeltaMemError
    from ..evals.report import markdown

    try:
        document = json.loads(results.read_text(encoding="utf-8"))
        typer.echo(markdown(document))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{results} holds no results of `deltamem eval recall`: {type(error).__name__}: {error}"
        raise DeltaMemError(message) from error


app.command("world", epilog=evals_run.WORLD)(evals_run.world)
app.command("mab", epilog=evals_run.MAB)(evals_run.mab)
app.command("locomo", epilog=evals_run.LOCOMO)(evals_run.locomo)
app.command("mab-harness", epilog=evals_harness.EXAMPLES)(evals_harness.mab_harness)
app.command("curves", epilog=evals_measure.CURVES)(evals_measure.curves)
app.command("perplexity", epilog=evals_measure.PERPLEXITY)(evals_measure.perplexity)
app.command("report", epilog=evals_report.REPORT)(evals_report.report)
app.command("compare", epilog=evals_report.COMPARE)(evals_report.compare)
