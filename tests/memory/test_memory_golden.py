"""Numbers of the official implementation on tiny random backbones: states, logits, and the KV cache, to 1e-4."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deltamem_agents.memory import attach, load_adapter

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
SEGMENTS = {"message_mean": "message_ids", "sentence_mean": "sentence_ids"}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


@pytest.fixture
def native(case: Path, tmp_path: Path) -> Path:
    load_adapter(case / "adapter").save(tmp_path / "native")
    return tmp_path / "native"


@torch.no_grad()
def run(case: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Everything that a case records, computed by this library."""
    model = AutoModelForCausalLM.from_pretrained(case / "backbone", attn_implementation="eager").eval()
    golden = load_file(case / "golden.safetensors")
    memory = attach(model, load_adapter(adapter))
    segments = SEGMENTS.get(memory.config.memory_write_granularity)
    out = {}
    with memory.bind(memory.new_state(2), segment_ids=golden[segments] if segments else None) as bound:
        mask = golden["attention_mask"]
        out["logits_while_writing"] = model(golden["input_ids"], attention_mask=mask, use_cache=False).logits
    out |= {f"state.{name}": state for name, state in bound.state.tensors.items()}
    written = bound.state
    with memory.bind(written, write=False) as reading:
        result = model(golden["query_ids"], use_cache=True)
        out["logits_reading"] = result.logits
        again = model(golden["query_ids"][:, :3], past_key_values=result.past_key_values, use_cache=True)
        out["logits_reading_cached"] = again.logits
    assert all(torch.equal(reading.state.tensors[name], state) for name, state in written.tensors.items())
    return out


def test_golden_numbers(case: Path) -> None:
    golden, mine = load_file(case / "golden.safetensors"), run(case, case / "adapter")
    assert set(mine) <= set(golden) and any(name.startswith("state.") for name in mine)
    for name, value in mine.items():
        want = golden[name].reshape(value.shape)  # one state head is recorded without its axis
        torch.testing.assert_close(value, want, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def test_golden_state_shape_and_dtype(case: Path) -> None:
    config = load_adapter(case / "adapter").config
    state = run(case, case / "adapter")["state.model.layers.0.self_attn"]
    assert state.shape == (2, config.num_state_heads, config.rank, config.rank)
    assert state.dtype == torch.float32


def test_native_adapter_computes_the_same(case: Path, native: Path) -> None:
    assert sorted(path.suffix for path in native.iterdir()) == [".json", ".safetensors"]
    official, saved = run(case, case / "adapter"), run(case, native)
    assert all(torch.equal(official[name], saved[name]) for name in official)
    assert load_adapter(native).fingerprint == load_adapter(case / "adapter").fingerprint


def test_golden_folder_is_not_changed_by_loading(case: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(case / "adapter", tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    load_adapter(copy)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
