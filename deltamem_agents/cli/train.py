"""``deltamem train``: from a recipe to an adapter folder."""

from pathlib import Path
from typing import Annotated, Any

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
    overrides = _overrides(changes or [])

    from ..training.build import STAGES, build
    from ..training.recipe import load_recipe

    stages = tuple(stage or STAGES)
    if unknown := [name for name in stages if name not in STAGES]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(STAGES)}", param_hint="--stage")
    loaded = load_recipe(recipe, overrides)
    out.mkdir(parents=True, exist_ok=True)
    if recipe.resolve() != (out / "recipe.yaml").resolve():
        made = " ".join(["# deltamem train", recipe.name, *(f"--set {change}" for change in changes or [])])
        (out / "recipe.yaml").write_text(f"{made}\n{recipe.read_text(encoding='utf-8')}", encoding="utf-8")
    if build(loaded, out, stages=stages, device=device, time_limit=time_limit, say=typer.echo):
        typer.echo(f"done: {out}")


def _overrides(changes: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{change!r} is not FIELD=VALUE", param_hint="--set")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"the value of {name} is not YAML: {error}", param_hint="--set") from error
    return found
