"""A recipe: one YAML file that says how a tokenizer, a backbone and an adapter are made.

    name: worldops-msw
    seed: 1
    data: world                      # or the path of a JSONL file of records (records.py)
    tokenizer: {vocab_size: 2048, sessions: 2000}
    backbone: {architecture: {hidden_size: 384, …}, train: {steps: 8000, …}}      # or the path or hub id of a model
    adapter: {config: {rank: 16, num_state_heads: 8, …}, beta_bias: -3.0, train: {steps: 6000, …}}

Unknown fields and values out of range are refused by name. Relative paths are relative to the recipe.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import yaml

from ..errors import RecipeError

WORLD = "world"
LEAST = dict.fromkeys(
    "steps rows length memory_tokens asked_tokens answer_tokens most_facts questions sessions_a_life log_every "
    "checkpoint_every vocab_size".split(), 1
) | dict.fromkeys(
    "lr final_lr betas weight_decay warmup clip workers other_weight random_share text_share endless_share "
    "wrong_share asked_within output_std sessions".split(), 0
)  # fmt: skip
BELOW = {"betas": 1, "random_share": 1, "text_share": 1}
MOST = {"endless_share": 1, "wrong_share": 1}
DTYPES = ("bf16", "fp32")


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
        sessions_a_life: adapter: sessions of the world that one memory goes through, one a step, its state carried on
            from step to step, cut from autograd (truncated back-propagation through time); 1: each begins empty.
            Several numbers are those of the rows, in turn: [1, 8, 48] makes a third of the lives of each length.
        endless_share: adapter: share of the lives of several sessions in which ``task_progress`` is never emptied.
        asked_within: adapter: questions within a session of a life, at most.
        wrong_share: adapter: share of these that the assistant answers wrong, as a model may.
        text_share: adapter: share of the sessions of the world that come with the beginning of another one, to be
            learnt whole.
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
    questions: int = 20
    sessions_a_life: tuple[int, ...] = (1,)
    endless_share: float = 0.0
    asked_within: int = 3
    wrong_share: float = 0.0
    text_share: float = 0.0
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

    @property
    def lives(self) -> bool:
        """Whether states are carried on from step to step."""
        return max(self.sessions_a_life) > 1


@dataclass(frozen=True)
class TokenizerRecipe:
    """A tokenizer of our own: ``vocab_size`` tokens learnt from ``sessions`` sessions of the world."""

    vocab_size: int = 2048
    sessions: int = 2000


@dataclass(frozen=True)
class BackboneRecipe:
    """A model to load (``path``: absolute path of a folder, or a hub id), or one to train: fields of a Qwen3 config."""

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
    """All of it. Paths in it are absolute."""

    name: str
    adapter: AdapterRecipe
    backbone: BackboneRecipe
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    seed: int = 1
    data: str = WORLD


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe. ``overrides`` maps dotted names to values, e.g. {"adapter.train.steps": 10}.

    Raises:
        RecipeError: no such file, not YAML, or a field that is unknown, missing, of the wrong type or out of range.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {path} must be a mapping of fields")
    data = _long_form(data)
    for dotted, value in (overrides or {}).items():
        _set(data, dotted.split("."), value)
        data = _long_form(data)
    recipe: Recipe = _parse(Recipe, data, "")
    if recipe.backbone.path is None and recipe.backbone.train is None:
        raise RecipeError("recipe field backbone needs a 'path', or an 'architecture' with 'train'")
    return _absolute(recipe, path.parent)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write ``recipe`` so that :func:`load_recipe` gives it back."""
    head = f"# What was trained here. Again: deltamem train {path.name} --out FOLDER\n"
    body = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + body, encoding="utf-8")


def parse_changes(changes: Iterable[str]) -> dict[str, Any]:
    """Overrides for :func:`load_recipe` out of "FIELD=VALUE" texts; RecipeError for any other text."""
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not name or not equals:
            raise RecipeError(f"{change!r} is not FIELD=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"the value of {name} is not YAML: {error}") from error
    return found


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """Paths beside the recipe in full. A backbone or adapter that is not there may be a hub id, and stays as it is."""

    def full(text: str | None) -> str | None:
        found = None if text is None else (folder / Path(text).expanduser()).resolve()
        return str(found) if found is not None and found.exists() else text

    backbone = replace(recipe.backbone, path=full(recipe.backbone.path))
    adapter = replace(recipe.adapter, init=full(recipe.adapter.init))
    data = recipe.data if recipe.data == WORLD else str((folder / Path(recipe.data).expanduser()).resolve())
    return replace(recipe, backbone=backbone, adapter=adapter, data=data)


def _long_form(data: dict[str, Any]) -> dict[str, Any]:
    """A backbone given by its path alone is a mapping as well."""
    own = data.get("backbone")
    return data | {"backbone": {"path": own}} if isinstance(own, str) else data


def _set(data: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise RecipeError(f"recipe field {'.'.join(parts)} cannot be set: {part} = {data!r} is not a mapping")
    data[parts[-1]] = value


def _parse(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecipeError(f"recipe field {where.rstrip('.') or 'top level'} must be a mapping, got {data!r}")
    types = get_type_hints(kind)
    if unknown := sorted(set(data) - set(types)):
        raise RecipeError(f"unknown recipe field {where}{unknown[0]}; known are {sorted(types)}")
    values = {name: _cast(types[name], value, f"{where}{name}") for name, value in data.items()}
    for name, value in values.items():
        _check(name, value, f"{where}{name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"recipe {where.rstrip('.') or 'top level'}: {error}") from error


def _check(name: str, value: Any, where: str) -> None:
    """RecipeError for a number, or numbers, out of range."""
    least, limit, most = LEAST.get(name, -math.inf), BELOW.get(name, math.inf), MOST.get(name, math.inf)
    numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int | float)]
    if not all(math.isfinite(number) and least <= number < limit and number <= most for number in numbers):
        wanted = ["finite"] + [f"at least {least}"] * (name in LEAST) + [f"below {limit}"] * (name in BELOW)
        wanted += [f"at most {most}"] * (name in MOST)
        raise RecipeError(f"recipe field {where} = {value!r} must be {', '.join(wanted)}")
    if value == ():
        raise RecipeError(f"recipe field {where} must not be empty")
    if name == "dtype" and value not in DTYPES:
        raise RecipeError(f"recipe field {where} = {value!r} is not supported; use {' or '.join(map(repr, DTYPES))}")


def _cast(wanted: Any, value: Any, where: str) -> Any:
    """``value`` as a field of the type ``wanted``. Numbers may be text: YAML reads 1e-3 as a string."""
    if is_dataclass(wanted):
        return _parse(cast(type, wanted), value, f"{where}.")
    if isinstance(wanted, UnionType):  # X | None
        return None if value is None else _cast(get_args(wanted)[0], value, where)
    if get_origin(wanted) is tuple:
        kinds, items = get_args(wanted), value if isinstance(value, list) else [value]
        if Ellipsis not in kinds and len(items) != len(kinds):
            raise RecipeError(f"recipe field {where} = {value!r} must be {len(kinds)} values")
        return tuple(_cast(kinds[0], item, where) for item in items)
    if wanted in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
            if wanted is float or number == int(number):
                return wanted(number)
    elif wanted is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    elif wanted not in (int, float, bool) and isinstance(value, get_origin(wanted) or wanted):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise RecipeError(f"recipe field {where} = {value!r} is not {names.get(wanted, 'a mapping')}")
