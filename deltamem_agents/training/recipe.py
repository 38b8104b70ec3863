"""A recipe: one YAML file that says how a tokenizer, a backbone and an adapter are made.

    name: worldops-msw
    seed: 1
    data: world                      # or the path of a JSONL file of records (records.py)
    tokenizer: {vocab_size: 2048, sessions: 2000}
    backbone: {architecture: {hidden_size: 384, …}, train: {steps: 8000, …}}      # or the path or hub id of a model
    adapter: {config: {rank: 16, num_state_heads: 8, …}, beta_bias: -3.0, train: {steps: 6000, …}}

Unknown fields are refused by name. Relative paths are relative to the recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError

WORLD = "world"


@dataclass(frozen=True)
class TrainRecipe:
    """One optimisation.

    Attributes:
        steps: optimiser steps; the learning rate rises for ``warmup`` steps and falls as a cosine to ``final_lr`` x lr.
        rows: backbone: rows a step; adapter: contexts (memories) a step.
        length: backbone: tokens a row.
        memory_tokens: adapter: row lengths for writing; each record goes to the shortest that holds it.
        asked_tokens, answer_tokens: adapter: row length of the conversations of one memory, and of their answers.
        most_facts, questions: of a session of the world.
        dtype: "bf16" (autocast; weights and states stay float32) or "fp32".
        other_weight: backbone: loss weight of tokens that are not answers.
        random_share: backbone: share of sequences that are random tokens said twice, which teach copying.
        compile: torch.compile the whole step (CUDA).
        gradient_checkpointing: recompute activations in the backward pass, for large backbones.
        workers: processes that make batches; 0 makes them in the training process.
    """

    steps: int
    rows: int = 32
    length: int = 2048
    memory_tokens: tuple[int, ...] = (640, 1152)
    asked_tokens: int = 768
    answer_tokens: int = 128
    most_facts: int = 16
    questions: int = 12
    lr: float = 1e-3
    final_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    dtype: str = "bf16"
    other_weight: float = 0.05
    random_share: float = 0.15
    compile: bool = True
    gradient_checkpointing: bool = False
    workers: int = 0
    log_every: int = 20
    checkpoint_every: int = 500


@dataclass(frozen=True)
class TokenizerRecipe:
    """A tokenizer of our own: ``vocab_size`` tokens learnt from ``sessions`` sessions of the world."""

    vocab_size: int = 2048
    sessions: int = 2000


@dataclass(frozen=True)
class BackboneRecipe:
    """A model to load (``path``: folder or hub id), or one to train: fields of a Qwen3 config, and the optimisation."""

    path: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    train: TrainRecipe | None = None


@dataclass(frozen=True)
class AdapterRecipe:
    """``config`` are fields of AdapterConfig; gates begin at σ(beta_bias), corrections at ``output_std``."""

    train: TrainRecipe
    config: Mapping[str, Any] = field(default_factory=dict)
    beta_bias: float = -3.0
    output_std: float = 0.0
    init: str | None = None  # folder of an adapter to go on from


@dataclass(frozen=True)
class Recipe:
    """All of it; ``folder`` is where the recipe lies."""

    name: str
    adapter: AdapterRecipe
    backbone: BackboneRecipe
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    seed: int = 1
    data: str = WORLD
    folder: Path = Path()

    def path(self, text: str) -> str:
        """``text`` as a path beside the recipe when such a file or folder is there, else unchanged (a hub id)."""
        beside = self.folder / text
        return str(beside) if beside.exists() else text


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe. ``overrides`` maps dotted names to values, e.g. {"adapter.train.steps": 10}.

    Raises:
        RecipeError: no such file, not YAML, or a field that is unknown, missing or of the wrong type.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {path} must be a mapping of fields")
    for dotted, value in (overrides or {}).items():
        _set(data, dotted.split("."), value)
    if isinstance(data.get("backbone"), str):
        data["backbone"] = {"path": data["backbone"]}
    recipe: Recipe = _parse(Recipe, data | {"folder": str(path.parent)}, "")
    if recipe.backbone.path is None and recipe.backbone.train is None:
        raise RecipeError("recipe field backbone needs a 'path', or an 'architecture' with 'train'")
    return recipe


def _set(data: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        data = data.setdefault(part, {})
    data[parts[-1]] = value


_NESTED: dict[tuple[type, str], type] = {
    (Recipe, "adapter"): AdapterRecipe,
    (Recipe, "backbone"): BackboneRecipe,
    (Recipe, "tokenizer"): TokenizerRecipe,
    (AdapterRecipe, "train"): TrainRecipe,
    (BackboneRecipe, "train"): TrainRecipe,
}


def _parse(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecipeError(f"recipe field {where or 'top level'} must be a mapping, got {data!r}")
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(data) - set(known)):
        raise RecipeError(f"unknown recipe field {where}{unknown[0]}; known are {sorted(set(known) - {'folder'})}")
    values = {}
    for name, value in data.items():
        nested = _NESTED.get((kind, name))
        if nested is not None and value is not None:
            values[name] = _parse(nested, value, f"{where}{name}.")
        else:
            values[name] = _cast(known[name].default, value, f"{where}{name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"recipe {where.rstrip('.') or 'top level'}: {error}") from error


def _cast(default: Any, value: Any, where: str) -> Any:
    """``value`` in the type of the field's default."""
    if isinstance(default, tuple):
        items = value if isinstance(value, list) else [value]
        return tuple(_cast(default[0], item, where) for item in items)
    if isinstance(default, Path):
        return Path(value)
    if isinstance(default, bool | int | float) and value is not None:
        wanted = type(default)
        if isinstance(value, str) or isinstance(value, bool) != (wanted is bool):
            try:
                return wanted(float(value)) if wanted is not bool else {"true": True, "false": False}[str(value).lower()]
            except (ValueError, KeyError) as error:
                raise RecipeError(f"recipe field {where} = {value!r} is not a {wanted.__name__}") from error
        if wanted is int and value != int(value):
            raise RecipeError(f"recipe field {where} = {value!r} is not a whole number")
        return wanted(value)
    return value
