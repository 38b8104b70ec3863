"""``deltamem eval report`` and ``compare``: all evaluations on one page, and two such pages side by side."""

from pathlib import Path
from typing import Annotated

import typer

from .evals_options import (
    AGENTS,
    SEED,
    AgentsOption,
    DeviceOption,
    EmbeddingsOption,
    ExamplesOption,
    FolderOption,
    JudgeOption,
    LengthsOption,
    MoreOption,
    SeedOption,
    more_adapters,
)
from .options import DEFAULT, AdapterOption, examples, quiet_libraries

REPORT = examples(
    "deltamem eval report --examples 2 --curves-questions 50 --out results",
    "deltamem eval report --text book.txt --locomo locomo10.json --limit 2 --out results",
    "deltamem eval report --no-run --out results",
)
COMPARE = examples("deltamem eval compare results-before results-after")


def report(
    out: FolderOption,
    adapter: AdapterOption = DEFAULT,
    device: DeviceOption = None,
    agent: AgentsOption = None,
    more_adapter: MoreOption = None,
    embeddings: EmbeddingsOption = None,
    length: LengthsOption = None,
    count: ExamplesOption = 10,
    seed: SeedOption = SEED,
    curves_questions: Annotated[int, typer.Option(help="Questions at each point; 0: no curves.", min=0)] = 200,
    perplexity_tokens: Annotated[int, typer.Option(help="Tokens of each text; 0: no perplexity.", min=0)] = 20_000,
    text: Annotated[Path | None, typer.Option(help="Perplexity also on this text file, in UTF-8.")] = None,
    locomo: Annotated[Path | None, typer.Option(help="locomo10.json; default: without LoCoMo.")] = None,
    mab: Annotated[str | None, typer.Option(help="MemoryAgentBench's rows; default: without it.")] = None,
    judge: JudgeOption = None,
    limit: Annotated[int | None, typer.Option(help="Examples of these two; default: all.", min=1)] = None,
    questions: Annotated[int | None, typer.Option(help="Questions of each example of these two.", min=1)] = None,
    ablations: Annotated[Path | None, typer.Option(help="ablations.json of ablations.")] = None,
    run: Annotated[bool, typer.Option(help="Run what is missing; else only write the page again.")] = True,
) -> None:
    """Run what is missing, and write report.md with all tables and figures.

    All agents are compared where none are named. A run that was stopped goes on when it is started again.
    """
    quiet_libraries()

    from ..evals.report import Plan, render, run_report
    from ..evals.world_mab import LENGTHS

    if run:
        plan = Plan(
            adapter=adapter,
            device=device,
            agents=tuple(agent or AGENTS),
            more_adapters=more_adapters(more_adapter),
            lengths=tuple(length or LENGTHS),
            examples=count,
            seed=seed,
            curves_questions=curves_questions,
            perplexity_tokens=perplexity_tokens,
            text=text,
            locomo=locomo,
            mab=mab,
            embeddings=embeddings,
            judge=judge,
            limit=limit,
            questions=questions,
            ablations=ablations,
        )
        run_report(out, plan, say=typer.echo)
    typer.echo(f"report: {render(out)}")


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a report.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Folder of another.", metavar="B")],
) -> None:
    """Two reports side by side, as Markdown: differing settings first, then the cells that both have."""
    quiet_libraries()

    from ..evals.report import compare as side_by_side

    typer.echo(side_by_side(a, b))
