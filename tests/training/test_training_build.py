"""Real training runs of tiny models: the loss falls, and a stopped run goes on as if it had not stopped."""

import json
import math
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_data import CONFIG, TRAIN, file_recipe, recipe_file, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from deltamem_agents.engine import load_engine
from deltamem_agents.errors import AdapterError, RecipeError
from deltamem_agents.memory import load_adapter
from deltamem_agents.training import __main__ as command
from deltamem_agents.training.build import build
from deltamem_agents.training.loop import Run, token_accuracy
from deltamem_agents.training.recipe import TrainRecipe, load_recipe


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def run(recipe: Any, out: Path, **options: Any) -> bool:
    return build(recipe, out, device="cpu", say=lambda _: None, **options)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder with a random model and its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    model, tokenizer = tiny_model()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and adapter, both trained in the world."""
    folder = tmp_path_factory.mktemp("world")
    assert run(load_recipe(recipe_file(folder)), folder / "out")
    return folder / "out"


def test_a_backbone_and_an_adapter_are_trained(built: Path) -> None:
    own = losses(built / "runs" / "backbone")
    assert own[-1] < own[0] - 0.5
    assert all(map(math.isfinite, losses(built / "runs" / "adapter")))
    for stage in ("backbone", "adapter"):
        assert (built / "runs" / stage / "loss.png").stat().st_size > 1000
        entries = [json.loads(line) for line in (built / "runs" / stage / "log.jsonl").read_text().splitlines()]
        assert {"step", "loss", "accuracy", "lr", "ms", "seconds"} <= set(entries[0])
    assert entries[-1]["step"] == TRAIN["steps"]


def test_what_was_built_is_an_adapter_folder_that_the_engine_loads(built: Path) -> None:
    engine = load_engine(built, device="cpu")
    assert engine.sub_states == tuple(CONFIG["sub_states"])  # type: ignore[arg-type]
    state = engine.write(engine.new_state(), [{"role": "user", "content": "The port of atlas is 8443."}])
    (reply,) = engine.generate([[{"role": "user", "content": "Which port?"}]], state, max_new_tokens=4)
    assert reply.finish_reason in ("stop", "length")
    assert {t.dtype for f in (built / "backbone").glob("*.safetensors") for t in load_file(f).values()} == {
        torch.bfloat16
    }
    config = json.loads((built / "backbone" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 2)


def test_what_is_done_is_not_done_again(built: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()}
    assert run(load_recipe(built.parent / "recipe.yaml"), built)
    assert before == {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()}


def test_an_adapter_alone_needs_its_backbone(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="backbone"):
        run(load_recipe(recipe_file(tmp_path)), tmp_path / "out", stages=("adapter",))


def test_an_adapter_learns_records_of_a_file_on_a_local_backbone(tmp_path: Path, backbone: Path) -> None:
    before = {name: t.clone() for name, t in load_file(backbone / "model.safetensors").items()}
    recipe = file_recipe(tmp_path, backbone, adapter__train__steps=60, adapter__train__rows=4)
    assert run(recipe, tmp_path / "out")
    own = losses(tmp_path / "out" / "runs" / "adapter")
    assert sum(own[-5:]) / 5 < 0.9 * own[0]
    assert not (tmp_path / "out" / "backbone").exists()
    assert load_adapter(tmp_path / "out" / "adapter").backbone == str(backbone)
    after = load_file(backbone / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_bfloat16_and_gradient_checkpointing_train_as_well(tmp_path: Path, backbone: Path) -> None:
    changes = {"adapter__train__dtype": "bf16", "adapter__train__gradient_checkpointing": True}
    assert run(file_recipe(tmp_path, backbone, adapter__train__steps=2, **changes), tmp_path / "out")
    assert all(map(math.isfinite, losses(tmp_path / "out" / "runs" / "adapter")))


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, backbone: Path) -> None:
    ends = []
    for on in (False, True):
        recipe = file_recipe(tmp_path, backbone, adapter__train__gradient_checkpointing=on)
        assert run(recipe, tmp_path / str(on))
        ends.append(load_adapter(tmp_path / str(on) / "adapter").tensors)
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, atol=1e-4, rtol=1e-4)


def test_an_architecture_that_is_none_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path), {"backbone.architecture.num_attention_heads": 0})
    with pytest.raises(RecipeError, match=r"backbone\.architecture makes no Qwen3 model"):
        run(recipe, tmp_path / "out")


def test_an_adapter_config_that_is_none_is_refused_before_a_backbone_is_trained(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="rank"):
        run(load_recipe(recipe_file(tmp_path), {"adapter.config.rank": 0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_backbone_that_takes_no_other_attention_is_refused(tmp_path: Path) -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "vocab_size": 400}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gptj", **sizes)).save_pretrained(tmp_path / "model")
    tiny_model()[1].save_pretrained(tmp_path / "model")
    with pytest.raises(RecipeError, match="model cannot be trained: its architecture takes no other attention"):
        run(file_recipe(tmp_path, tmp_path / "model"), tmp_path / "out")


def test_a_stopped_adapter_goes_on_to_exactly_the_same_weights(tmp_path: Path, backbone: Path) -> None:
    recipe = file_recipe(tmp_path, backbone)
    assert run(recipe, tmp_path / "whole")
    stops = 0
    while not run(recipe, tmp_path / "parts", time_limit=0):
        stops += 1
        assert not (tmp_path / "parts" / "adapter").exists()
    assert stops == TRAIN["steps"] - 1  # type: ignore[operator]
    whole, parts = (load_adapter(tmp_path / name / "adapter") for name in ("whole", "parts"))
    assert whole.fingerprint == parts.fingerprint
    assert losses(tmp_path / "whole" / "runs" / "adapter") == losses(tmp_path / "parts" / "runs" / "adapter")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_adapter_goes_on_to_exactly_the_same_weights(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    recipe = file_recipe(tmp_path, backbone, adapter__train__workers=workers)
    assert run(recipe, tmp_path / "whole")
    update, said, before = Run.update, [], signal.getsignal(signal.SIGINT)

    def interrupted(own: Run, *values: Any) -> None:
        if own.step == 2:
            signal.raise_signal(signal.SIGINT)
        update(own, *values)

    monkeypatch.setattr(Run, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(recipe, tmp_path / "parts", device="cpu", say=said.append)
    assert said[-1] == f"stopped by Ctrl-C; run again to go on ({tmp_path / 'parts' / 'runs' / 'adapter'})"
    assert torch.load(tmp_path / "parts" / "runs" / "adapter" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(Run, "update", update)
    assert run(recipe, tmp_path / "parts")
    whole, parts = (load_adapter(tmp_path / name / "adapter") for name in ("whole", "parts"))
    assert whole.fingerprint == parts.fingerprint


def test_a_second_interruption_stops_at_once(tmp_path: Path) -> None:
    own = Run(tmp_path, TrainRecipe(steps=9), {"x": torch.nn.Parameter(torch.zeros(1))})
    steps = own.steps(range(9))
    next(steps)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    steps.close()


def test_a_stopped_backbone_goes_on_to_exactly_the_same_weights(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path), {"backbone.train.steps": 3})
    assert run(recipe, tmp_path / "whole", stages=("backbone",))
    assert not run(recipe, tmp_path / "parts", stages=("backbone",), time_limit=0)
    assert run(recipe, tmp_path / "parts", stages=("backbone",))
    whole, parts = (load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_an_adapter_goes_on_from_another(tmp_path: Path, backbone: Path) -> None:
    first = file_recipe(tmp_path, backbone)
    assert run(first, tmp_path / "first")
    recipe = file_recipe(tmp_path, backbone, adapter__init=str(tmp_path / "first" / "adapter"), adapter__train__lr=0.0)
    assert run(recipe, tmp_path / "second")
    first_end, second_end = (load_adapter(tmp_path / name / "adapter") for name in ("first", "second"))
    assert first_end.fingerprint == second_end.fingerprint


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path, backbone: Path) -> None:
    assert not run(file_recipe(tmp_path, backbone), tmp_path / "out", time_limit=0)
    with pytest.raises(RecipeError, match=r"adapter\.config\.couple_lambda \(None there, now False\)"):
        run(file_recipe(tmp_path, backbone, adapter__config__couple_lambda=False), tmp_path / "out")
    own = Run(tmp_path / "out" / "runs" / "adapter", TrainRecipe(steps=1), {"x": torch.nn.Parameter(torch.zeros(1))})
    with pytest.raises(RecipeError, match=r"checkpoint\.pt belongs to another"):
        own.resume()


def test_a_checkpoint_of_another_rank_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, TrainRecipe(steps=1), {"x": torch.nn.Parameter(torch.zeros(4, 2))}).save()
    with pytest.raises(RecipeError, match=r"checkpoint\.pt belongs to another"):
        Run(tmp_path, TrainRecipe(steps=1), {"x": torch.nn.Parameter(torch.zeros(8, 2))}).resume()


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, backbone: Path) -> None:
    with pytest.raises(RecipeError, match=r"the loss is nan at step \d+: lower lr"):
        run(file_recipe(tmp_path, backbone, adapter__output_std=1e38), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()


def test_the_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    train = TrainRecipe(steps=100, lr=1.0, warmup=10, final_lr=0.1)
    own = Run(tmp_path, train, {"x": torch.nn.Parameter(torch.zeros(1))})
    rates = []
    for own.step in range(101):
        rates.append(own.lr())
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0) and rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_token_accuracy_counts_what_is_counted() -> None:
    logits = torch.eye(4)
    counted = torch.tensor([True, True, False, False])
    assert token_accuracy(logits, torch.tensor([0, 0, 2, 0]), counted) == 0.5
    assert token_accuracy(logits, torch.tensor([0, 0, 2, 0]), torch.zeros(4, dtype=torch.bool)) == 0


def test_the_command_takes_a_recipe_and_changes(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_recipe(tmp_path, backbone)
    out = tmp_path / "out"
    arguments = [
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(out),
        "--set",
        "adapter.train.steps=2",
        "--stage",
        "adapter",
    ]
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    command.main()
    assert len(losses(out / "runs" / "adapter")) == 2
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["adapter"]["train"]["steps"] == TRAIN["steps"]
