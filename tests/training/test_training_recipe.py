"""Recipes: what is wrong is said by name."""

from pathlib import Path
from typing import Any

import pytest
from training_data import CONFIG, TRAIN, recipe_file

from deltamem_agents.errors import RecipeError
from deltamem_agents.training.recipe import load_recipe, parse_changes, save_recipe

SHIPPED = sorted(Path(__file__).parents[2].glob("adapters/*/recipe.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.parent.name


def test_fields_have_their_types(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    assert recipe.backbone.train is not None
    assert (recipe.data, recipe.seed, recipe.backbone.train.steps) == ("world", 1, 40)
    assert recipe.adapter.train.memory_tokens == (256, 1536)
    assert recipe.adapter.train.betas == (0.9, 0.98)
    assert recipe.adapter.config == CONFIG


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("adapter.train.lr", "1e-3", 1e-3),  # YAML reads 1e-3 as text
        ("adapter.train.lr", 1, 1.0),
        ("adapter.train.steps", "12", 12),
        ("adapter.train.steps", 12.0, 12),
        ("adapter.train.memory_tokens", 64, (64,)),
        ("adapter.train.memory_tokens", ["64", 128], (64, 128)),
        ("adapter.train.compile", "False", False),
        ("adapter.train.compile", True, True),
        ("adapter.init", None, None),
        ("adapter.init", "other", "other"),
        ("adapter.config.rank", 4, 4),
        ("seed", 7, 7),
        ("backbone", "some/model", None),
    ],
)
def test_overrides(tmp_path: Path, field: str, value: Any, found: Any) -> None:
    recipe: Any = load_recipe(recipe_file(tmp_path), {field: value})
    if field == "backbone":
        assert recipe.backbone.path == value
        return
    for part in field.split("."):
        recipe = recipe[part] if isinstance(recipe, dict) else getattr(recipe, part)
    assert recipe == found and type(recipe) is type(found)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("adaptor", {}, "unknown recipe field adaptor"),
        ("adapter.train.step", 3, "unknown recipe field adapter.train.step;"),
        ("backbone.train.learning_rate", 3, "unknown recipe field backbone.train.learning_rate;"),
        ("adapter.train.steps", "many", "adapter.train.steps = 'many'"),
        ("adapter.train.steps", None, "adapter.train.steps = None"),
        ("adapter.train.steps", 2.5, "adapter.train.steps = 2.5 is not a whole number"),
        ("adapter.train.rows", "2.5", "adapter.train.rows = '2.5' is not a whole number"),
        ("adapter.train.rows", [1], r"adapter.train.rows = \[1\]"),
        ("adapter.train.rows", True, "adapter.train.rows = True"),
        ("adapter.train.rows", float("inf"), "adapter.train.rows = inf"),
        ("adapter.train.lr", "fast", "adapter.train.lr = 'fast' is not a number"),
        ("adapter.train.lr", {}, "adapter.train.lr = {}"),
        ("adapter.train.compile", "perhaps", "adapter.train.compile = 'perhaps' is not true or false"),
        ("adapter.train.memory_tokens", ["x"], "adapter.train.memory_tokens = 'x'"),
        ("adapter.train", None, "adapter.train must be a mapping"),
        ("adapter.config", [1], r"adapter.config = \[1\] is not a mapping"),
        ("adapter", 5, "adapter must be a mapping"),
        ("data", 5, "data = 5 is not text"),
        ("name.of", 5, "name.of cannot be set"),
        ("adapter.train.rows", 0, "adapter.train.rows = 0 must be finite, at least 1"),
        ("adapter.train.steps", -5, "adapter.train.steps = -5 must be finite, at least 1"),
        ("backbone.train.length", 0, "backbone.train.length = 0 must be"),
        ("adapter.train.log_every", 0, "adapter.train.log_every = 0 must be"),
        ("adapter.train.checkpoint_every", 0, "adapter.train.checkpoint_every = 0 must be"),
        ("adapter.train.workers", -1, "adapter.train.workers = -1 must be finite, at least 0"),
        ("adapter.train.memory_tokens", [64, 0], r"adapter.train.memory_tokens = \(64, 0\) must be"),
        ("adapter.train.memory_tokens", [], "adapter.train.memory_tokens must not be empty"),
        ("adapter.train.lr", -1, "adapter.train.lr = -1.0 must be finite, at least 0"),
        ("adapter.train.lr", float("nan"), "adapter.train.lr = nan must be finite"),
        ("adapter.train.betas", [0.9, 1.0], r"adapter.train.betas = \(0.9, 1.0\) must be .*below 1"),
        ("adapter.train.endless_share", 1.1, "endless_share = 1.1 must be .*at least 0, at most 1"),
        ("adapter.train.wrong_share", -0.5, "wrong_share = -0.5 must be .*at least 0, at most 1"),
        ("adapter.train.betas", [0.9], r"adapter.train.betas = \[0.9\] must be 2 values"),
        ("adapter.train.dtype", "fp8", "adapter.train.dtype = 'fp8' is not supported; use 'bf16' or 'fp32'"),
        ("adapter.beta_bias", float("inf"), "adapter.beta_bias = inf must be finite"),
        ("tokenizer.vocab_size", 0, "tokenizer.vocab_size = 0 must be"),
        ("backbone", {"architecture": {}}, "backbone needs a 'path'"),
    ],
)
def test_errors_name_the_field(tmp_path: Path, field: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path), {field: value})


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nbackbone: some/model\n")
    with pytest.raises(RecipeError, match="adapter"):
        load_recipe(tmp_path / "recipe.yaml")
    train = {name: value for name, value in TRAIN.items() if name != "steps"}
    with pytest.raises(RecipeError, match=r"adapter\.train: .*steps"):
        load_recipe(recipe_file(tmp_path, adapter={"train": train}))


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "just text"])
def test_what_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="nowhere"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_backbone_can_be_its_path_alone(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, backbone="some/model")
    assert load_recipe(path).backbone.path == "some/model"
    assert load_recipe(path, {"backbone.path": "some/other"}).backbone.path == "some/other"


def test_paths_beside_the_recipe_are_absolute_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    recipe_file(here, backbone="../model", data="mine.jsonl")
    (tmp_path / "model").mkdir()
    (here / "first").mkdir()
    monkeypatch.chdir(here)
    recipe = load_recipe("recipe.yaml", {"adapter.init": "first"})
    assert recipe.backbone.path == str(tmp_path / "model")
    assert recipe.data == str(here / "mine.jsonl")
    assert recipe.adapter.init == str(here / "first")


@pytest.mark.parametrize("path", [*SHIPPED, None], ids=str)
def test_a_saved_recipe_is_the_same_recipe(tmp_path: Path, path: Path | None) -> None:
    changes = {"adapter.train.lr": 1e-7, "adapter.init": "some/adapter", "adapter.config.alpha": "½", "seed": 3}
    recipe = load_recipe(path or recipe_file(tmp_path, backbone="some/model"), changes)
    save_recipe(recipe, tmp_path / "saved" / "recipe.yaml")
    assert load_recipe(tmp_path / "saved" / "recipe.yaml") == recipe


@pytest.mark.parametrize("change", ["steps", "=3", "adapter={"])
def test_changes_are_fields_and_values(change: str) -> None:
    assert parse_changes(["a.b=3", "c=", "d=x=y"]) == {"a.b": 3, "c": None, "d": "x=y"}
    with pytest.raises(RecipeError, match=r"FIELD=VALUE|not YAML"):
        parse_changes([change])
