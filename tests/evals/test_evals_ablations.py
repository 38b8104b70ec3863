"""Ablations: variants differ in one thing, runs go on where they stopped, and the table says what was found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from evals.ablated import made_up
from tiny import SUB_STATES

from deltamem_agents.errors import DeltaMemError, RecipeError
from deltamem_agents.evals import ablations
from deltamem_agents.evals.ablation_plan import base_recipe, groups_of, recipe_of, variants_of
from deltamem_agents.evals.ablation_report import agreement, interval, plot, table
from deltamem_agents.evals.ablation_run import MEASURED, run_one
from deltamem_agents.evals.ablations import run_ablations
from deltamem_agents.memory import AdapterConfig
from deltamem_agents.training.recipe import Recipe

TRAIN = {
    "steps": 2, "rows": 1, "memory_tokens": [1024], "asked_tokens": 512, "most_facts": 1, "questions": 2, "lr": 0.01,
    "warmup": 1, "dtype": "fp32", "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tiny_adapter: Path) -> Recipe:
    """The tiny backbone's own recipe, in its folder."""
    config = {"rank": 8, "num_state_heads": 4, "sub_states": {name: list(own) for name, own in SUB_STATES.items()}}
    document = {
        "name": "tiny",
        "backbone": {"architecture": {}, "train": {"steps": 1}},
        "adapter": {"config": config, "train": TRAIN},
    }
    (tiny_adapter / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return base_recipe(str(tiny_adapter))


@pytest.fixture(scope="module")
def out(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, finished."""
    folder = tmp_path_factory.mktemp("ablations")
    run(recipe, folder, jobs=2)
    return folder


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"variants": ["base", "heads_k"], "seeds": (1,), "questions": 2, "say": lambda _: None}
    return run_ablations(recipe, out, device="cpu", **(usual | options))


def test_variants_of_the_embedded_adapter_change_one_thing() -> None:
    base = base_recipe()
    known = variants_of(base)
    assert base.backbone.path is not None and Path(base.backbone.path).name == "backbone"
    assert {name for group in groups_of(base) for name in group.members.values()} == set(known)
    configs = {n: AdapterConfig.from_dict(recipe_of(base, v, 2).adapter.config) for n, v in known.items()}
    assert len({json.dumps(config.to_dict()) for config in configs.values()}) == len(known) == 17
    assert {config.alpha / config.rank for config in configs.values()} == {2.0}
    layers = [configs[f"layers_{name}"].target_layers for name in ("front", "middle", "back")]
    assert layers == [(0, 1, 2), (2, 3, 4), (5, 6, 7)]
    assert configs["heads_k"] == replace(configs["base"], delta_heads=("k",))
    assert configs["states_2"] == AdapterConfig.from_dict({"rank": 32, "alpha": 64, "num_state_heads": 2})
    assert configs["ssw"] == replace(configs["states_1"], memory_write_granularity="message_mean")
    for group in groups_of(base):
        assert {label for tier in group.order for label in tier} in (set(), set(group.members))


def test_runs_are_trained_alike() -> None:
    base = base_recipe()
    made = [recipe_of(base, variant, 3) for variant in variants_of(base).values()]
    assert {one.seed for one in made} == {3}
    alike = [replace(one.adapter.train, compile=True) for one in made]
    assert all(train == base.adapter.train for train in alike)
    assert [one.name for one in made if not one.adapter.train.compile] == ["worldops-msw-ssw"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_state_heads": 1, "sub_states": {}}, "more than one state head"),
        ({"delta_heads": ["q", "k"]}, "delta_heads"),
        ({"target_layers": [1]}, "target_layers"),
    ],
)
def test_what_cannot_be_a_base_is_refused(changes: dict[str, Any], said: str) -> None:
    base = base_recipe()
    adapter = replace(base.adapter, config={**base.adapter.config, **changes})
    with pytest.raises(RecipeError, match=said):
        variants_of(replace(base, adapter=adapter))


def test_runs_are_trained_measured_and_kept(out: Path, recipe: Recipe) -> None:
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {(line["variant"], line["seed"], line["steps"]) for line in lines} == {("base", 1, 2), ("heads_k", 1, 2)}
    by_name = {line["variant"]: line for line in lines}
    for line in lines:
        assert set(line["cells"]) == set(MEASURED)
        assert line["state_bytes"] == 2 * 4 * 8 * 8 * 4
        assert line["device"] == "cpu"
        assert 0 <= line["accuracy"] <= 1 < line["loss"]
    assert by_name["heads_k"]["parameters"] < by_name["base"]["parameters"]
    assert by_name["heads_k"]["recall"] == pytest.approx(sum(by_name["heads_k"]["cells"][c] for c in MEASURED[:3]) / 3)
    said: list[str] = []
    (out / "base-seed1").rename(out / "elsewhere")  # its line is enough
    document = run(recipe, out, say=said.append)
    (out / "elsewhere").rename(out / "base-seed1")
    assert said == [] == document["missing"]
    assert document == json.loads((out / "ablations.json").read_text())
    assert document["runs"] == [by_name["base"], by_name["heads_k"]]
    assert table(document).count("### ") == 1  # the base stands in other groups too, alone


def test_a_folder_belongs_to_its_settings(out: Path, recipe: Recipe) -> None:
    for options, said in (({"steps": 9}, "adapter.train.steps"), ({"questions": 9}, "questions")):
        with pytest.raises(DeltaMemError, match=rf"other settings \({said}\)"):
            run(recipe, out, **options)


def test_no_time_starts_nothing(tmp_path: Path, recipe: Recipe) -> None:
    said: list[str] = []
    document = run(recipe, tmp_path, time_limit=0.0, say=said.append)
    assert (said, document["runs"], document["missing"]) == ([], [], ["base-seed1", "heads_k-seed1"])


def test_a_run_that_stopped_goes_on(tmp_path: Path, recipe: Recipe) -> None:
    own = recipe_of(recipe, variants_of(recipe)["heads_k"], 1)
    options: dict[str, Any] = {"device": "cpu", "say": lambda _: None}
    assert run_one(own, tmp_path / "run", 1, time_limit=0.0, **options) is None  # after one step of two
    log = tmp_path / "run" / "runs" / "adapter" / "log.jsonl"
    assert len(log.read_text().splitlines()) == 1
    done = run_one(own, tmp_path / "run", 1, **options)
    assert done is not None and done["steps"] == len(log.read_text().splitlines()) == 2
    with pytest.raises(DeltaMemError, match="measured with 1 questions"):
        run_one(own, tmp_path / "run", 2, **options)


@pytest.mark.slow
def test_runs_under_way_stop_at_the_time_limit(tmp_path: Path, recipe: Recipe) -> None:
    said: list[str] = []
    document = run(recipe, tmp_path, variants=["base"], steps=100_000, time_limit=5.0, say=said.append)
    assert said == ["base-seed1: started", "base-seed1: stopped at the time limit; run again to go on"]
    assert document["missing"] == ["base-seed1"]
    assert (tmp_path / "base-seed1" / "runs" / "adapter" / "checkpoint.pt").is_file()


def test_a_run_that_fails_is_named(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "base-seed1").mkdir()
    (tmp_path / "base-seed1" / "recipe.yaml").write_text("- no recipe\n")
    with pytest.raises(DeltaMemError, match=r"base-seed1 failed: recipe .* must be a mapping"):
        run(recipe, tmp_path, variants=["base"])
    assert json.loads((tmp_path / "ablations.json").read_text())["missing"] == ["base-seed1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variants": ["heads_x"]}, "unknown variant 'heads_x'"),
        ({"variants": []}, "nothing to run"),
        ({"seeds": ()}, "nothing to run"),
        ({"jobs": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str, tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(DeltaMemError, match=said):
        run(recipe, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"variant": "base", "seed": 1}\n{"variant": "ba')
    with pytest.raises(DeltaMemError, match="line 2 is damaged"):
        ablations.read_lines(tmp_path)


def test_the_interval_is_students() -> None:
    middle, half = interval([0.4, 0.5, 0.6])
    assert middle == pytest.approx(0.5) and half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert interval([0.4]) == (0.4, None)


def test_orders_are_compared_pair_by_pair() -> None:
    shares = {"q+k+v+o": 0.9, "q+o": 0.8, "o": 0.7, "q": 0.5, "v": 0.3, "k": 0.4}
    document = made_up(lambda label, seed: shares[label] + 0.01 * seed)
    found = agreement(document, "heads")
    assert (len(found.agree), found.against, found.open) == (13, [("v", "k")], [])
    noisy = agreement(made_up(lambda label, seed: shares[label] + (0.5 * (seed - 2) if label == "o" else 0)), "heads")
    assert all("o" in pair for pair in noisy.open) and len(noisy.open) == 5
    alone = agreement(made_up(lambda label, _: shares[label], (1,)), "heads")
    assert (alone.agree, alone.against, len(alone.open)) == ([], [], 14)
    with pytest.raises(DeltaMemError, match="no group 'layers'"):
        agreement(document, "layers")


def test_the_table_and_the_plot(tmp_path: Path) -> None:
    shares = {"q+k+v+o": 0.9, "q+o": 0.8, "o": 0.7, "q": 0.5, "v": 0.3, "k": 0.4}
    document = made_up(lambda label, seed: shares[label] + 0.01 * seed)
    text = table(document)
    assert "| q+o | 0.820 ± 0.025 |" in text
    assert "2 steps of 3 sessions with up to 4 facts and 640 or 1,024 tokens; 2 questions a cell" in text
    assert "| 1,234 | 2 | 10 | 0.500 | 0.750 | 3 |" in text
    assert "Of 14 pairs 13 come out so, 1 the other way, 0 are open; 0 were not run. The other way: v > k." in text
    assert text.endswith("Not finished: heads_k-seed9.\n")
    document["runs"] = [run for run in document["runs"] if run["variant"] != "heads_k"]
    assert "| k | - | " in table(document)
    assert agreement(document, "heads").missing == [(better, "k") for better in ("q+k+v+o", "q+o", "o", "q", "v")]
    plot(document, tmp_path / "plots" / "ablations.png")
    assert (tmp_path / "plots" / "ablations.png").stat().st_size > 5000
