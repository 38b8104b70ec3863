"""Training on lives: what is told stays true from session to session, and the state is carried on with it."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_data import recipe_file, tiny_model, write_records
from transformers import AutoTokenizer

from deltamem_agents.engine import Engine
from deltamem_agents.errors import RecipeError
from deltamem_agents.memory import DeltaMemory, MemoryState, attach, load_adapter
from deltamem_agents.training.build import build
from deltamem_agents.training.data import AdapterBatches, batches
from deltamem_agents.training.recipe import Recipe, load_recipe
from deltamem_agents.training.records import Record
from deltamem_agents.training.sft import asked_loss, initial_adapter, life_loss
from deltamem_agents.training.world import Life

NAMES = ("facts", "task_progress")
EMBEDDED = Path(__file__).parents[2] / "adapters" / "worldops-msw"
SLOW = {"adapter.output_std": 0.05, "adapter.beta_bias": -9.0}  # of what is old, much is left after a session


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    model, tokenizer = tiny_model()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lives_recipe(folder: Path, backbone: Path, **train: Any) -> Recipe:
    """An adapter with corrections from the first step on, trained on lives of three sessions in the world."""
    changes = {"steps": 5, "sessions_a_life": 3, "memory_tokens": [1024]} | train
    overrides = {f"adapter.train.{name}": value for name, value in changes.items()}
    return load_recipe(recipe_file(folder, backbone=str(backbone)), overrides | SLOW)


def source_of(recipe: Recipe, backbone: Path) -> AdapterBatches:
    return AdapterBatches(recipe, recipe.adapter.train, AutoTokenizer.from_pretrained(backbone), NAMES)


def run(recipe: Recipe, out: Path, **options: Any) -> bool:
    return build(recipe, out, device="cpu", say=lambda _: None, **options)


def attached(recipe: Recipe, trainable: bool = True) -> tuple[Any, Any, DeltaMemory]:
    """The tiny backbone, its tokenizer, and the adapter that the recipe begins with."""
    model, tokenizer = tiny_model()
    model.requires_grad_(False)
    adapter = initial_adapter(recipe, recipe.adapter, model)
    return model, tokenizer, attach(model, adapter, dtype=torch.float32, trainable=trainable)


def checkpoint(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = torch.load(out / "runs" / "adapter" / "checkpoint.pt", weights_only=True)
    return document


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in the order of their names."""
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        own = value if isinstance(value, dict) else vars(value)
        for name in sorted(own):
            yield from tensors(own[name])


def digest(batch: Any) -> str:
    found = hashlib.sha256()
    for t in tensors(batch):
        found.update(str(t.dtype).encode() + str(tuple(t.shape)).encode() + t.numpy().tobytes())
    return found.hexdigest()[:16]


# Without lives nothing changes: these numbers are older than lives.


def test_the_recipe_of_the_embedded_adapter_gives_the_batches_that_it_was_trained_on() -> None:
    recipe = load_recipe(EMBEDDED / "recipe.yaml", {"adapter.train.rows": 4})
    assert recipe.adapter.train.sessions_a_life == (1,)
    source = source_of(recipe, EMBEDDED / "backbone")
    assert [digest(source(step)) for step in (0, 1)] == ["d30c85235c63a667", "d8e7eb5bfba3eae7"]


def test_the_embedded_adapter_goes_on_with_lives_where_its_first_recipe_ended() -> None:
    first, lives = (load_recipe(EMBEDDED / name) for name in ("recipe.yaml", "lives.yaml"))
    assert lives.adapter.train.lives and lives.adapter.config == first.adapter.config
    shipped = load_adapter(EMBEDDED / "adapter").config
    assert (shipped.rank, shipped.num_state_heads) == (lives.adapter.config["rank"], 8)
    assert {name: list(heads) for name, heads in shipped.sub_states.items()} == lives.adapter.config["sub_states"]
    out = re.search(r"recipe\.yaml --out (\S+)", (EMBEDDED / "recipe.yaml").read_text())[1]
    assert str(lives.backbone.path).endswith(f"/{out}/backbone") and str(lives.adapter.init).endswith(f"/{out}/adapter")


def test_the_embedded_adapter_goes_on_with_longer_lives() -> None:
    lives, longer = (load_recipe(EMBEDDED / name) for name in ("lives.yaml", "long_lives.yaml"))
    assert longer.adapter.config == lives.adapter.config and longer.backbone == lives.backbone
    assert max(longer.adapter.train.sessions_a_life) > max(lives.adapter.train.sessions_a_life)
    out = re.search(r"lives\.yaml --out (\S+)", (EMBEDDED / "lives.yaml").read_text())[1]
    assert str(longer.adapter.init).endswith(f"/{out}/adapter")


def test_losses_without_lives_are_what_they_were(tmp_path: Path, backbone: Path) -> None:
    recipe = load_recipe(
        recipe_file(tmp_path, backbone=str(backbone)), {"adapter.train.steps": 3, "adapter.output_std": 0.05}
    )
    assert run(recipe, tmp_path / "out")
    log = (tmp_path / "out" / "runs" / "adapter" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in log] == pytest.approx([6.82195, 6.74695, 6.50984], abs=2e-3)
    assert checkpoint(tmp_path / "out")["carried"] == {}


# Batches of lives.


def test_each_row_is_at_its_place_in_its_life(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone, sessions_a_life=4, rows=4)
    source = source_of(recipe, backbone)
    begins = torch.stack([source(step).begins for step in range(6)])  # type: ignore[arg-type]
    assert begins.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    record, encoded, _ = source.told(5, 1)  # session 2 of the second life of the row
    life = Life(recipe.seed, "1/1", 2, 4)
    tried = [life.record(2, attempt) for attempt in range(9)]
    assert record in tried
    assert sum(map(len, encoded.memory)) == int(source(5).memory.token_mask[1].sum())


def test_rows_may_have_lives_of_different_lengths(tmp_path: Path, backbone: Path) -> None:
    source = source_of(lives_recipe(tmp_path, backbone, sessions_a_life=[1, 3], rows=4), backbone)
    begins = torch.stack([source(step).begins for step in range(5)])  # type: ignore[arg-type]
    assert begins.int().tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 1]]


def test_a_share_of_the_lives_never_empties_task_progress(tmp_path: Path, backbone: Path) -> None:
    """Lives of one session are none of them."""

    def emptied(share: float) -> dict[int, list[bool]]:
        recipe = lives_recipe(tmp_path, backbone, sessions_a_life=[1, 40], rows=16, endless_share=share)
        source = source_of(recipe, backbone)
        found = {row: [bool(source.told(step, row)[0].reset) for step in range(14)] for row in range(16)}
        return {which: [any(found[row]) for row in range(which, 16, 2)] for which in (0, 1)}

    never, always = emptied(1), emptied(0)
    assert never[0] == always[0] and sum(never[0]) > 4
    assert not any(never[1]) and sum(always[1]) > 6
    assert 1 < sum(emptied(0.5)[1]) < 7


def test_sessions_of_lives_are_as_the_recipe_asks(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone, asked_within=8, wrong_share=0.5)
    record, _, _ = source_of(recipe, backbone).told(1, 1)
    life = Life(recipe.seed, "1/0", 2, 4, True, 1, asked_within=8, wrong=0.5)
    assert record in [life.record(2, attempt) for attempt in range(9)]


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_share_of_the_sessions_comes_with_other_text(tmp_path: Path, backbone: Path, sessions: int) -> None:
    """It is asked first, and all of it but its first token is learnt."""
    recipe = lives_recipe(tmp_path, backbone, sessions_a_life=sessions, rows=24, text_share=0.4)
    batch, bare = (
        source_of(recipe, backbone)(2),
        source_of(lives_recipe(tmp_path, backbone, sessions_a_life=sessions, rows=24), backbone)(2),
    )
    first = [row == 0 for row in batch.asked.segment_ids]
    learnt = [int((row[own] != -100).sum()) for row, own in zip(batch.asked.labels, first, strict=True)]
    whole = [count == int(own.sum()) - 1 for count, own in zip(learnt, first, strict=True)]
    assert 4 <= sum(whole) <= 16
    assert not any(
        int((row[own == 0] != -100).sum()) == int((own == 0).sum()) - 1
        for row, own in zip(bare.asked.labels, bare.asked.segment_ids, strict=True)
    )


def test_batches_of_lives_depend_on_recipe_and_step_alone(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone, memory_tokens=[700, 1024])
    source = source_of(recipe, backbone)
    backwards = {step: digest(source(step)) for step in reversed(range(8))}
    for workers, start in ((0, 0), (2, 3)):
        made = [digest(batch) for batch in batches(source_of(recipe, backbone), start, 8, workers)]
        assert made == [backwards[step] for step in range(start, 8)]


def test_what_no_wording_fits_is_said(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone, memory_tokens=[40], most_facts=30)
    with pytest.raises(RecipeError, match=r"does not fit 40 tokens.*raise memory_tokens, or lower most_facts \(30\)"):
        source_of(recipe, backbone)(0)


def test_a_life_has_at_least_one_session(tmp_path: Path, backbone: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.train\.sessions_a_life = \(0,\) must be finite, at least 1"):
        lives_recipe(tmp_path, backbone, sessions_a_life=0)


def test_a_file_has_no_lives(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone)
    recipe = replace(recipe, data=str(write_records(tmp_path / "records.jsonl")))
    with pytest.raises(RecipeError, match=r"sessions_a_life needs data: world; use 1"):
        source_of(recipe, backbone)


# The state of a life.


def written(engine: Engine, state: MemoryState, record: Record) -> MemoryState:
    """The record's messages, one after the other, and its resets."""
    messages = [{key: value for key, value in m.items() if key != "sub_state"} for m in record.memory]
    state = engine.write(state, messages, [(m["sub_state"],) for m in record.memory])
    for name in record.reset:
        state = state.reset(name)
    return state


def test_the_carried_state_is_that_of_all_messages_of_the_life(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone, lr=0.0, steps=5)
    assert run(recipe, tmp_path / "out")
    carried = checkpoint(tmp_path / "out")["carried"]
    source, (model, tokenizer, memory) = source_of(recipe, backbone), attached(recipe, trainable=False)
    engine = Engine(model, tokenizer, memory)
    lengths = []
    for row in range(recipe.adapter.train.rows):
        told = [source.told(step, row) for step in range(5)]
        first = max(step for step, (_, _, begins) in enumerate(told) if begins)
        whole, last = engine.new_state(), engine.new_state()
        for record, _, _ in told[first:]:
            whole, last = written(engine, whole, record), written(engine, engine.new_state(), record)
        lengths.append(5 - first)
        for name, state in whole.tensors.items():
            torch.testing.assert_close(carried[name][row], state[0], atol=1e-5, rtol=1e-3)
            assert first == 4 or (state - last.tensors[name]).norm() > 0.1 * state.norm() > 1e-2
    assert max(lengths) > 1


def test_a_stopped_life_goes_on_to_exactly_the_same_state(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone, steps=3)
    assert run(recipe, tmp_path / "whole")
    assert not run(recipe, tmp_path / "parts", time_limit=0)
    assert checkpoint(tmp_path / "parts")["step"] == 1
    assert run(recipe, tmp_path / "parts")
    whole, parts = (checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert whole["carried"] and all(torch.equal(parts["carried"][n], t) for n, t in whole["carried"].items())
    assert all(torch.equal(parts["parameters"][n], t) for n, t in whole["parameters"].items())
    ends = [load_adapter(tmp_path / name / "adapter").fingerprint for name in ("whole", "parts")]
    assert ends[0] == ends[1]


def test_a_checkpoint_without_the_states_of_its_lives_is_refused(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone)
    assert not run(recipe, tmp_path / "out", time_limit=0)
    torch.save(checkpoint(tmp_path / "out") | {"carried": {}}, tmp_path / "out" / "runs" / "adapter" / "checkpoint.pt")
    with pytest.raises(RecipeError, match="no states of 2 lives"):
        run(recipe, tmp_path / "out")


def test_only_lives_that_go_on_read_what_was_carried(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone)
    source, (model, _, memory) = source_of(recipe, backbone), attached(recipe)
    first = source(0)
    empty = dict(memory.new_state(2).tensors)
    broken = {name: torch.full_like(t, torch.nan) for name, t in empty.items()}
    loss, _, carried = life_loss(model, memory, first, broken)
    torch.testing.assert_close(loss, asked_loss(model, memory, first)[0])
    assert all(not t.requires_grad and t.isfinite().all() for t in carried.values())
    later = source(1)
    assert later.begins is not None and later.begins.tolist() == [False, False]
    loss, _, _ = life_loss(model, memory, later, carried)
    alone, _, _ = life_loss(model, memory, later, empty)
    assert (loss - alone).abs() > 1e-4
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in memory.parameters())


def test_a_step_of_lives_is_one_graph_and_is_compiled_once(tmp_path: Path, backbone: Path) -> None:
    recipe = lives_recipe(tmp_path, backbone)
    source, (model, _, memory) = source_of(recipe, backbone), attached(recipe)
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    plain = partial(life_loss, model, memory)
    step = torch.compile(lambda batch, carried: plain(batch, carried), backend=backend, dynamic=False, fullgraph=True)
    carried = expected = {name: t.clone() for name, t in memory.new_state(2).tensors.items()}
    for batch in islice(map(source, range(3)), 3):
        loss, _, carried = step(batch, carried)
        wanted, _, expected = plain(batch, expected)
        torch.testing.assert_close(loss, wanted)
        assert all(torch.equal(carried[name], t) for name, t in expected.items())
    assert len(graphs) == 1
