"""Loading: what is found, and what is said when nothing is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

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


def config_alone(backbone: Path, folder: Path, **changes: int) -> Path:
    """A backbone of which there is nothing but the config."""
    folder.mkdir()
    config = json.loads((backbone / "config.json").read_text())
    changes |= {"layer_types": ["full_attention"] * changes.get("num_hidden_layers", 2)}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"hidden_size": 128}, "2 layers for hidden size 64 .* 2 layers with hidden size 128"),
        ({"num_attention_heads": 8}, "projections q 64, o 64, the model .* projections q 128"),
        ({"num_hidden_layers": 3}, "has 2 layers .* the model 3 layers .* no weights for model.layers.2.self_attn"),
        ({"num_hidden_layers": 1}, "has 2 layers .* the model 1 layers .* layers that the model has not"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_weights_are_loaded(tiny_adapter, tmp_path, changes, numbers):
    other = config_alone(tiny_adapter / "backbone", tmp_path / "other", **changes)
    with pytest.raises(AdapterError, match=f"(?s)adapter '.*' does not fit backbone '{other}': .*{numbers}"):
        load_engine(tiny_adapter, backbone=other, device="cpu")
    fitting = config_alone(tiny_adapter / "backbone", tmp_path / "fitting")
    with pytest.raises(BackboneError, match="fitting' cannot be loaded"):
        load_engine(tiny_adapter, backbone=fitting, device="cpu")


class Hub:
    """Stands for the hub: a folder answers for an id, and what was asked is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        for loader in (transformers.AutoConfig, transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
            monkeypatch.setattr(loader, "from_pretrained", self._answer(loader, folder))

    def _answer(self, loader: Any, folder: Path) -> Any:
        real = loader.from_pretrained

        def answer(where: str, **options: Any) -> Any:
            if where == str(folder):
                return real(where, **options)
            self.asked.append((loader.__name__, where, options))
            here = {name: options[name] for name in ("dtype", "attn_implementation") if name in options}
            return real(str(folder), **here)

        return answer


def test_of_a_hub_backbone_that_does_not_fit_only_the_config_is_asked_for(tiny_adapter, tmp_path, monkeypatch):
    other = config_alone(tiny_adapter / "backbone", tmp_path / "other", hidden_size=32)
    hub = Hub(monkeypatch, other)
    with pytest.raises(AdapterError, match=r"does not fit backbone 'someone/small': .* hidden size 32"):
        load_engine(tiny_adapter, backbone="someone/small", backbone_revision="v2", device="cpu")
    assert [(loader, where, options["revision"]) for loader, where, options in hub.asked] == [
        ("AutoConfig", "someone/small", "v2")
    ]


def test_what_transformers_is_told(tiny_adapter, monkeypatch, caplog):
    hub = Hub(monkeypatch, tiny_adapter / "backbone")
    options = {"low_cpu_mem_usage": True, "cache_dir": "here", "key_mapping": {"a": ["b"]}}
    asked = {"backbone": "someone/else", "backbone_revision": "v2", "attn_implementation": "eager", "device": "cpu"}
    with caplog.at_level("INFO", "deltamem_agents"):
        engine = load_engine(tiny_adapter, **asked, model_options=options)
    assert engine.model.config._attn_implementation == "eager"
    told = {loader: options for loader, _, options in hub.asked}
    assert all(own["revision"] == "v2" and own["cache_dir"] == "here" for own in told.values())
    assert told["AutoModelForCausalLM"].items() >= {**options, "attn_implementation": "eager"}.items()
    assert "device_map" not in told["AutoModelForCausalLM"] and "key_mapping" not in told["AutoTokenizer"]
    size = sum(p.nbytes for p in engine.model.parameters())
    assert f"loaded backbone someone/else: {size} bytes in " in caplog.text
    again = load_engine(tiny_adapter, **asked, model_options=dict(reversed(options.items())))
    assert again is engine
    assert load_engine(tiny_adapter, **asked, model_options=options | {"key_mapping": {"a": ["c"]}}) is not engine
    assert load_engine(tiny_adapter, **asked | {"backbone_revision": "v3"}, model_options=options) is not engine


def test_a_quantised_backbone_is_put_in_its_place_while_it_is_loaded(tiny_adapter, monkeypatch):
    hub = Hub(monkeypatch, tiny_adapter / "backbone")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *a, **k: pytest.fail("moved") if a else self)
    plan = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for place in ({}, {"device_map": "auto"}):
        load_engine(tiny_adapter, backbone="a/q", device="cpu", model_options={"quantization_config": plan, **place})
    told = [options for loader, _, options in hub.asked if loader == "AutoModelForCausalLM"]
    assert [options["device_map"] for options in told] == [{"": "cpu"}, "auto"]
    assert all(options["quantization_config"] == plan for options in told)


def test_options_that_cannot_be(tiny_adapter):
    with pytest.raises(BackboneError, match=r"model_options has 'torch_dtype': give it to load_engine as dtype="):
        load_engine(tiny_adapter, device="cpu", model_options={"torch_dtype": "float16"})
    with pytest.raises(BackboneError, match="is a folder and has no revision 'v2'"):
        load_engine(tiny_adapter, device="cpu", backbone_revision="v2")
    with pytest.raises(BackboneError, match="holds a bytearray"):
        load_engine(tiny_adapter, device="cpu", model_options={"x": [bytearray()]})


def test_quantised_weights(tiny_adapter):
    """Real int8 weights; runs where torchao and accelerate are installed (the extra "quantized")."""
    quantization = pytest.importorskip("torchao.quantization")
    pytest.importorskip("accelerate")
    config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    engine = load_engine(tiny_adapter, device="cpu", model_options={"quantization_config": config})
    weight = engine.model.base_model.layers[0].self_attn.q_proj.weight
    assert type(weight).__module__.startswith("torchao")
    assert engine.fingerprint != load_engine(tiny_adapter, device="cpu").fingerprint
    state = engine.write(engine.new_state(), [{"role": "user", "content": "The rice."}])
    assert any(tensor.abs().sum() > 0 for tensor in state.tensors.values())
    asked = [[{"role": "user", "content": "x"}]]
    assert engine.generate(asked, state, max_new_tokens=8)[0].text != engine.generate(asked, max_new_tokens=8)[0].text
