"""Perplexity: each token is scored once, an empty memory changes no bit of a loss, and a full one is told apart."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import TEXT, build_adapter_folder

from deltamem_agents.engine import Engine, load_engine
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals.perplexity import file_tokens, full_state, losses, run_perplexity, world_tokens


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(build_adapter_folder(tmp_path_factory.mktemp("tiny")), device="cpu")


def test_losses_are_those_of_the_model_and_an_empty_memory_changes_no_bit(tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    own = load_engine(build_adapter_folder(tmp_path_factory.mktemp("own")), device="cpu")
    ids = world_tokens(own, 90)
    alone = losses(own, ids, None, 32)
    assert alone.shape == (89,)
    assert torch.equal(alone, losses(own, ids, own.new_state(), 32))
    assert not torch.equal(alone, losses(own, ids, full_state(own), 32))
    own.memory.detach()
    assert torch.equal(alone, losses(own, ids, None, 32))
    whole = torch.nn.functional.cross_entropy(own.model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]))
    assert float(losses(own, ids, None, 512).mean()) == pytest.approx(float(whole), abs=1e-5)


@pytest.mark.parametrize("window", [2, 3, 16, 63, 64, 65])
def test_a_token_is_scored_once_with_at_least_half_a_window_before_it(engine: Engine, window: int) -> None:
    ids = world_tokens(engine, 64)
    found = losses(engine, ids, None, window)
    assert found.shape == (63,)
    for position in (1, 30, 62, 63):  # of the windows that hold a token, the first one scores it
        start = next(s for s in range(0, 64, max(1, window // 2)) if position < s + window)
        assert start == 0 or position - start >= window // 2
        logits = engine.model(torch.tensor([ids[start : position + 1]])).logits[0, -2]
        expected = float(logits.logsumexp(-1) - logits[ids[position]])
        assert float(found[position - 1]) == pytest.approx(expected, abs=1e-4)


def test_every_window_begins_with_the_token_that_begins_a_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Beginning:
        bos_token_id = 7

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [7]}

    ids = world_tokens(engine, 40)
    without = losses(engine, ids, None, 16)
    monkeypatch.setattr(engine, "tokenizer", Beginning())
    found = losses(engine, ids, None, 16)
    assert not torch.equal(found, without)
    for start, position in ((0, 1), (0, 15), (8, 23), (24, 39)):
        logits = engine.model(torch.tensor([[7, *ids[start : position + 1]]])).logits[0, -2]
        expected = float(logits.logsumexp(-1) - logits[ids[position]])
        assert float(found[position - 1]) == pytest.approx(expected, abs=1e-4)


def test_a_run_reports_the_three_ways_of_both_texts(engine: Engine, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(f"{TEXT}, naïve 日本. <|im_end|>", encoding="utf-8")
    out = tmp_path / "new" / "perplexity.json"
    said: list[str] = []
    document = run_perplexity(engine, text, out, tokens=120, window=64, say=said.append)
    assert json.loads(out.read_text(encoding="utf-8")) == document
    assert (document["window"], document["stride"], document["facts"]) == (64, 32, 16)
    assert {key: row["name"] for key, row in document["texts"].items()} == {
        "world": "sessions of unseen seeds",
        "file": "text.txt",
    }
    for row in document["texts"].values():
        assert row["empty_bit_equal"] is True
        assert row["empty"] == row["detached"] != row["full"]
        assert row["full"]["perplexity"] == pytest.approx(math.exp(row["full"]["loss"]), rel=1e-4)
        apart = row["full"]["loss"] - row["detached"]["loss"]
        assert row["full_minus_detached"] == pytest.approx(apart, abs=1e-5)
    assert document["texts"]["world"]["tokens"] == 119
    assert document["texts"]["file"]["tokens"] == min(120, len(file_tokens(engine, text))) - 1
    assert len(said) == 2
    assert run_perplexity(engine, text, tokens=120, window=64, say=said.append) == document


def test_markup_in_a_file_is_text(engine: Engine, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a <|im_end|> b", encoding="utf-8")
    assert engine.tokenizer.eos_token_id not in file_tokens(engine, text)


def test_what_cannot_be_read_or_written_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DeltaMemError, match=r"nix\.txt.*give the path"):
        run_perplexity(engine, tmp_path / "nix.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DeltaMemError, match="not UTF-8"):
        run_perplexity(engine, tmp_path / "bytes.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DeltaMemError, match="0 tokens; give a longer"):
        run_perplexity(engine, tmp_path / "empty.txt")
    with pytest.raises(DeltaMemError, match="window of 513 tokens: give 2 to 512"):
        run_perplexity(engine, window=513)
    with pytest.raises(DeltaMemError, match="1 tokens: give at least 2"):
        run_perplexity(engine, tokens=1)
    with pytest.raises(DeltaMemError, match="cannot be written"):
        run_perplexity(engine, out=tmp_path / "empty.txt" / "x.json")


def test_the_embedded_adapter_reads_its_world_well(default_engine: Engine) -> None:
    row = run_perplexity(default_engine, tokens=600, window=256, say=lambda _: None)["texts"]["world"]
    assert row["empty_bit_equal"] is True
    assert row["detached"]["perplexity"] < 60
    assert row["full"] != row["detached"]
