"""A folder belongs to one recipe, and the recipe that it holds makes the same again."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_data import file_recipe, recipe_file, tiny_model, write_records

from deltamem_agents.engine import load_engine
from deltamem_agents.errors import RecipeError
from deltamem_agents.memory import load_adapter
from deltamem_agents.training import __main__ as command
from deltamem_agents.training.build import build
from deltamem_agents.training.history import check_history, keep_history
from deltamem_agents.training.recipe import load_recipe


def run(recipe: Any, out: Path, **options: Any) -> bool:
    return build(recipe, out, device="cpu", say=lambda _: None, **options)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a recipe, its records, and a backbone that the recipe names by a relative path."""
    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = recipe_file(tmp_path / "home", data="records.jsonl", backbone="../model")
    write_records(recipe.with_name("records.jsonl"))
    return recipe.parent


def train_by_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    command.main()


def test_what_was_trained_is_found_and_trained_again_from_anywhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    changes = ("--set", "adapter.train.steps=2", "--set", "adapter.train.lr=0.5")
    train_by_command(monkeypatch, "recipe.yaml", "--out", "out", *changes)
    out = home / "out"
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (saved["adapter"]["train"]["steps"], saved["adapter"]["train"]["lr"]) == (2, 0.5)
    assert (saved["data"], saved["backbone"]["path"]) == (str(home / "records.jsonl"), str(tmp_path / "model"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_adapter(out / "adapter").backbone == str(tmp_path / "model")
    load_engine(out, device="cpu")
    train_by_command(monkeypatch, str(out / "recipe.yaml"), "--out", "again")
    first, again = (load_adapter(folder / "adapter").fingerprint for folder in (out, Path("again")))
    assert first == again


def test_another_recipe_is_refused_and_nothing_is_changed(home: Path, tmp_path: Path) -> None:
    path, out = home / "recipe.yaml", tmp_path / "out"
    assert not run(load_recipe(path), out, time_limit=0)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    changes = {"adapter.train.lr": 0.5, "seed": 7, "adapter.train.workers": 1}
    with pytest.raises(RecipeError) as refused:
        run(load_recipe(path, changes), out)
    for words in ("adapter.train.lr (0.01 there, now 0.5)", "seed (1 there, now 7)", "--out", f"delete {out}"):
        assert words in str(refused.value)
    assert "workers" not in str(refused.value)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_steps_and_workers_may_change_until_a_stage_is_done(home: Path, tmp_path: Path) -> None:
    path, out = home / "recipe.yaml", tmp_path / "out"
    assert not run(load_recipe(path), out, time_limit=0)
    changed = load_recipe(path, {"adapter.train.steps": 2, "adapter.train.workers": 1})
    assert run(changed, out)
    assert load_recipe(out / "recipe.yaml") == changed
    assert run(load_recipe(path, {"adapter.train.steps": 2}), out)
    with pytest.raises(RecipeError, match=r"adapter\.train\.steps \(2 there, now 3\)"):
        run(load_recipe(path, {"adapter.train.steps": 3}), out)


def test_a_recipe_that_is_edited_in_its_own_folder_is_refused(home: Path) -> None:
    path = home / "recipe.yaml"
    text = path.read_text()
    assert not run(load_recipe(path), home, time_limit=0)
    assert path.read_text() == text  # it is as it was written
    path.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(RecipeError, match=r"adapter\.train\.lr \(0\.01 there, now 0\.02\)"):
        run(load_recipe(path), home)
    path.write_text(text)
    assert run(load_recipe(path), home)


def test_a_recipe_that_could_not_begin_leaves_no_trace(home: Path, tmp_path: Path) -> None:
    (home / "records.jsonl").write_text("")
    with pytest.raises(RecipeError, match="holds no records"):
        run(load_recipe(home / "recipe.yaml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_kind_of_difference_has_a_name(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    keep_history(recipe, tmp_path / "out")
    check_history(recipe, tmp_path / "out")
    for field, value in {
        "name": "other", "data": "other.jsonl", "backbone.architecture.hidden_size": 32, "adapter.config.rank": 4,
        "adapter.config.alpha": 3, "adapter.init": "some/other", "adapter.train.memory_tokens": [64],
        "tokenizer.sessions": 3, "backbone.path": "some/other",
    }.items():  # fmt: skip
        with pytest.raises(RecipeError, match=rf"{field.replace('.', '[.]')} \("):
            check_history(load_recipe(tmp_path / "recipe.yaml", {field: value}), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("adapter.train.stepz=1", "stepz"),
        ("steps", "FIELD=VALUE"),
        ("adapter.train.rows=0", "adapter.train.rows = 0"),
        ("backbone=/nothing/here", "/nothing/here"),
    ],
)
def test_the_command_says_errors_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, change: str, word: str
) -> None:
    with pytest.raises(SystemExit) as left:
        train_by_command(monkeypatch, str(home / "recipe.yaml"), "--out", str(home / "out"), "--set", change)
    assert word in str(left.value.code) and "\n" not in str(left.value.code)


def test_a_backbone_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"backbone\.path = '/nothing/here' cannot be loaded: give a folder"):
        run(file_recipe(tmp_path, Path("/nothing/here")), tmp_path / "out")
