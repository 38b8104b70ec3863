"""Loading: what is found, and what is said when nothing is."""

import shutil

import pytest
import torch

from deltamem_agents.engine import load_engine
from deltamem_agents.errors import AdapterError, BackboneError


def test_float32_on_the_cpu(engine):
    assert engine.model.dtype == torch.float32
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in engine.memory.parameters())
    assert engine.sub_states == ("facts", "task_progress")
    assert engine.max_length == 512
    assert engine.fingerprint == str(engine.new_state().fingerprint)


def test_another_dtype_is_another_engine(engine, tiny_adapter):
    half = load_engine(tiny_adapter, device="cpu", dtype="bfloat16")
    assert half is not engine and half.model.dtype == torch.bfloat16
    assert half.fingerprint == engine.fingerprint
    state = half.write(half.new_state(), [{"role": "user", "content": "The rice."}])
    assert all(t.dtype == torch.float32 for t in state.tensors.values())
    assert half.generate([[{"role": "user", "content": "x"}]], state, max_new_tokens=2)[0].completion_tokens


def test_an_adapter_alone_with_its_backbone_elsewhere(engine, tiny_adapter, tmp_path):
    shutil.copytree(tiny_adapter / "adapter", tmp_path / "alone")
    with pytest.raises(AdapterError, match="does not name its backbone"):
        load_engine(tmp_path / "alone", device="cpu")
    other = load_engine(tmp_path / "alone", backbone=tiny_adapter / "backbone", device="cpu")
    assert other.fingerprint == engine.fingerprint


def test_errors_name_the_thing(tiny_adapter, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="holds no adapter"):
        load_engine(tmp_path / "empty")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_engine(tiny_adapter, backbone=tmp_path / "empty", device="cpu")
    with pytest.raises(BackboneError, match="'int8' is not supported"):
        load_engine(tiny_adapter, dtype="int8", device="cpu")
