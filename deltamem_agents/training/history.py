"""A folder belongs to one recipe: what was trained there is written down, and nothing else goes on from it.

It stands in ``recipe.yaml``, to read and to train again, and in ``runs/recipe.yaml``, which still knows when
``recipe.yaml`` is the recipe itself and was edited.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import ADAPTER_CONFIG
from ..errors import RecipeError
from .recipe import Recipe, load_recipe, save_recipe

STAGES = ("backbone", "adapter")
HOW = ("workers", "log_every", "checkpoint_every", "compile", "gradient_checkpointing")  # nothing learnt depends on it


def is_done(stage: str, recipe: Recipe, out: Path) -> bool:
    """Whether a stage has nothing left to train."""
    if stage == "backbone":
        return recipe.backbone.path is not None or (out / "backbone" / "config.json").is_file()
    return (out / "adapter" / ADAPTER_CONFIG).is_file()


def check_history(recipe: Recipe, out: Path) -> None:
    """RecipeError when ``out`` was trained with a recipe that differs; the steps of a stage under way may."""
    free = {f"{stage}.train.{field}" for stage in STAGES for field in HOW}
    free |= {f"{stage}.train.steps" for stage in STAGES if not is_done(stage, recipe, out)}
    for path in _files(out):
        if not path.is_file():
            continue
        known = _fields(asdict(load_recipe(path)))
        wanted = _fields(asdict(recipe))
        differ = [
            f"{name} ({known.get(name)!r} there, now {wanted.get(name)!r})"
            for name in sorted(known.keys() | wanted.keys())
            if name not in free and known.get(name) != wanted.get(name)
        ]
        if differ:
            raise RecipeError(
                f"{out} was trained with another recipe ({path}), which differs in {', '.join(differ)}: "
                f"choose another --out folder, or delete {out}"
            )


def keep_history(recipe: Recipe, out: Path) -> None:
    """Write down that ``recipe`` is trained in ``out``."""
    for path in _files(out):
        if not path.is_file() or load_recipe(path) != recipe:
            save_recipe(recipe, path)


def _files(out: Path) -> tuple[Path, Path]:
    return out / "recipe.yaml", out / "runs" / "recipe.yaml"


def _fields(values: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names."""
    if not isinstance(values, dict):
        return {name: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _fields(value, f"{name}.{key}" if name else str(key))
    return found
