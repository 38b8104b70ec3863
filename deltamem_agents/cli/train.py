"""``deltamem train``: from a recipe to an adapter folder."""

from pathlib import Path
from typing import Annotated

import typer

from .options import examples

EXAMPLES = examples(
    "deltamem train adapters/worldops-msw/recipe.yaml --out runs/worldops",
    "deltamem train recipe.yaml --out runs/a --stage adapter --time-limit 3600",
    "deltamem train recipe.yaml --out runs/b --set adapter.train.steps=500",
    "deltamem chat --adapter runs/worldops",
)


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file that says what to train.", metavar="RECIPE")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the adapter; a stopped training there goes on.")],
    stage: Annotated[
        list[str] | None, typer.Option("--stage", help="Only this stage: backbone or adapter (repeatable).")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value for a field of the recipe (repeatable).", metavar="FIELD=VALUE"),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which a checkpoint is written; run again to go on.", min=0)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: cuda where there is one.")] = None,
) -> None:
    """Train the tokenizer, backbone and adapter that a recipe describes."""
    from ..errors import RecipeError
    from ..training.build import STAGES, build
    from ..training.recipe import load_recipe, parse_changes

    stages = tuple(stage or STAGES)
    if unknown := [name for name in stages if name not in STAGES]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(STAGES)}", param_hint="--stage")
    try:
        overrides = parse_changes(changes or [])
    except RecipeError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from error
    loaded = load_recipe(recipe, overrides)
    try:
        done = build(loaded, out, stages=stages, device=device, time_limit=time_limit, say=typer.echo)
    except KeyboardInterrupt:  # build has said where to go on
        raise typer.Exit(130) from None
    if done:
        typer.echo(f"done: {out}")
