"""Adapter folders, native and official: round trips, archived fields by name, and bad input."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_backbones import attached, build, random_adapter, tokens

from deltamem_agents.config import DEFAULT_ADAPTER, find_adapter
from deltamem_agents.errors import AdapterError
from deltamem_agents.memory import Adapter, AdapterConfig, attach, load_adapter, new_adapter
from deltamem_agents.memory.official import ARCHIVED

OFFICIAL = Path(__file__).parents[1] / "data" / "golden" / "qwen3_tsw_qo" / "adapter"
NAME = "model.layers.0.self_attn"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    folder = tmp_path / "official"
    folder.mkdir()
    for path in OFFICIAL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def native(tmp_path: Path) -> Path:
    random_adapter(build()).save(tmp_path / "native")
    return tmp_path / "native"


def change(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path.parent


@pytest.mark.parametrize("field", sorted(ARCHIVED))
def test_archived_fields_are_accepted_at_their_default_and_refused_by_name(official: Path, field: str) -> None:
    config = official / "delta_mem_config.json"
    assert json.loads(config.read_text())[field] == ARCHIVED[field]  # the table agrees with a real file
    default = ARCHIVED[field]
    other = {bool: not default, str: "other", list: [*default, 1] if isinstance(default, list) else []}.get(
        type(default), default + 1 if isinstance(default, int | float) else None
    )
    with pytest.raises(AdapterError, match=rf"{field} = .*archived.*default"):
        load_adapter(change(config, **{field: other}))
    document = json.loads(config.read_text())
    del document[field]
    config.write_text(json.dumps(document))
    load_adapter(official)


def test_other_official_fields(official: Path) -> None:
    config = official / "delta_mem_config.json"
    assert load_adapter(change(config, base_model_name_or_path="some/model")).backbone == "some/model"
    load_adapter(change(config, beta_bias_init=3.0, output_init="zero"))
    with pytest.raises(AdapterError, match="unknown field 'colour'"):
        load_adapter(change(config, colour="red"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", "8"),
        ("num_state_heads", 0),
        ("alpha", "16"),
        ("memory_write_granularity", "message_proposals"),
        ("state_update_mode", "sometimes"),
        ("delta_scale_granularity", "rank"),
        ("delta_heads", []),
        ("delta_heads", ["q", "x"]),
        ("target_layers", [-1]),
        ("target_layers", None),
        ("couple_lambda", "yes"),
        ("normalize_qk", 1),
        ("rankwise_gates", None),
        ("sub_states", {"facts": [0, 1]}),
        ("sub_states", {"facts": []}),
        ("sub_states", [1]),
    ],
)
def test_a_bad_value_is_refused_by_name(native: Path, field: str, value: object) -> None:
    folder = change(native / "deltamem_config.json", **{field: value})
    with pytest.raises(AdapterError, match=r"adapter config: (a field|" + field + ")"):
        load_adapter(folder)


@pytest.mark.parametrize("field", ["colour", "slot_read_top_k"])
def test_unknown_native_fields_are_named(native: Path, field: str) -> None:
    with pytest.raises(AdapterError, match=rf"unknown fields \['{field}'\].*rank"):
        load_adapter(change(native / "deltamem_config.json", **{field: 3}))


def test_native_round_trip(tmp_path: Path) -> None:
    layout = {"facts": (0, 2), "task": (1,)}
    adapter = random_adapter(
        build(), num_state_heads=3, sub_states=layout, delta_heads=("o", "k"), target_layers=(1,), couple_lambda=False,
        trainable_delta_scale=True, delta_o_rmsnorm=True,
    )  # fmt: skip
    Adapter(adapter.config, adapter.tensors, "some/backbone").save(tmp_path)
    back = load_adapter(str(tmp_path))
    assert back.config == adapter.config and back.backbone == "some/backbone"
    assert back.config.delta_heads == ("k", "o") and dict(back.config.sub_states) == layout
    assert set(back.tensors) == set(adapter.tensors)
    assert all(torch.equal(back.tensors[name], t) for name, t in adapter.tensors.items())
    assert back.fingerprint == adapter.fingerprint and back.num_parameters() == adapter.num_parameters()


def test_what_is_attached_can_be_saved(tmp_path: Path) -> None:
    model = build()
    adapter = random_adapter(model, num_state_heads=2)
    with attached(model, adapter) as memory:
        memory.adapter().save(tmp_path)
    assert load_adapter(tmp_path).fingerprint == adapter.fingerprint


def test_an_adapter_is_found_by_its_name_and_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAMEM_ADAPTERS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    adapter = random_adapter(build())
    adapter.save(tmp_path / "mine" / "adapter")
    adapter.save(tmp_path / "flat")
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "adapter").symlink_to(OFFICIAL)
    for given in ("mine", "flat", tmp_path / "mine", "./mine", tmp_path / "mine" / "adapter"):
        assert load_adapter(given).fingerprint == adapter.fingerprint
    assert load_adapter(tmp_path / "official").fingerprint == load_adapter(OFFICIAL).fingerprint
    with pytest.raises(AdapterError, match="empty"):
        load_adapter("")
    with pytest.raises(AdapterError, match="is a file"):
        load_adapter(tmp_path / "mine" / "adapter" / "deltamem_config.json")


def test_the_default_adapter_is_known_by_its_name() -> None:
    folder = find_adapter(DEFAULT_ADAPTER)
    if folder is None:
        pytest.skip(f"no {DEFAULT_ADAPTER} in this checkout")
    assert load_adapter(DEFAULT_ADAPTER).fingerprint == load_adapter(folder / "adapter").fingerprint


def test_official_weights_that_the_config_does_not_use_are_left(official: Path) -> None:
    assert any("delta_k_proj" in name for name in torch.load(official / "delta_mem_adapter.pt", weights_only=True))
    adapter = load_adapter(official)
    assert {name.rpartition(".")[2] for name in adapter.tensors} == {
        "memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias", "delta_q_proj", "delta_o_proj",
    }  # fmt: skip


def test_folders_without_an_adapter(tmp_path: Path, native: Path, official: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"no adapter.*deltamem_config\.json.*delta_mem_config\.json"):
        load_adapter(tmp_path / "empty")
    (native / "deltamem_adapter.safetensors").unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        load_adapter(native)
    (official / "delta_mem_adapter.pt").unlink()
    with pytest.raises(AdapterError, match=r"delta_mem_adapter\.pt cannot be read"):
        load_adapter(official)


def test_a_missing_folder_is_not_mistaken_for_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AdapterError, match=r"'no/such/folder'.*spelling"):
        load_adapter("no/such/folder")
    with pytest.raises(AdapterError, match=r"'no/such-adapter'.*HF_HUB_OFFLINE"):
        load_adapter("no/such-adapter")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00"])
def test_damaged_config_files(native: Path, official: Path, content: bytes) -> None:
    for path in (native / "deltamem_config.json", official / "delta_mem_config.json"):
        path.write_bytes(content)
        with pytest.raises(AdapterError, match="cannot be read"):
            load_adapter(path.parent)


@pytest.mark.parametrize("keep", [0, 5, 100, 2000])
def test_damaged_weights(native: Path, official: Path, keep: int) -> None:
    for path in (native / "deltamem_adapter.safetensors", official / "delta_mem_adapter.pt"):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(AdapterError, match="cannot be read"):
            load_adapter(path.parent)


def test_another_format_version(native: Path) -> None:
    with pytest.raises(AdapterError, match="format 2"):
        load_adapter(change(native / "deltamem_config.json", format=2))


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


def test_pickled_code_is_not_run(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = official / "delta_mem_adapter.pt"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(AdapterError, match="plain tensors"):
        load_adapter(official)
    torch.save({"a": Evil()}, path)
    with pytest.raises(AdapterError, match="plain tensors"):
        load_adapter(official)
    assert not Path("evil").exists()
    for other in ([torch.zeros(1)], {"a": 3}, {1: torch.zeros(1)}):
        torch.save(other, path)
        with pytest.raises(AdapterError, match="flat dict"):
            load_adapter(official)


def test_torch_load_is_called_with_weights_only_everywhere() -> None:
    package = Path(__file__).parents[2] / "deltamem_agents"
    for part in ("ops", "memory"):
        for path in (package / part).rglob("*.py"):
            text = path.read_text()
            assert text.count("torch.load(") == text.count("weights_only=True)"), path


def test_adapters_that_do_not_fit_say_why() -> None:
    model = build()
    good = random_adapter(model)

    def attach_with(**changes: torch.Tensor | None) -> None:
        tensors = {name: t for name, t in good.tensors.items() if changes.get(name.rpartition(".")[2], t) is not None}
        tensors |= {f"{NAME}.{name}": t for name, t in changes.items() if t is not None}
        attach(model, Adapter(good.config, tensors, "some/backbone"))

    with pytest.raises(AdapterError, match=r"no beta_bias for model\.layers\.0\.self_attn"):
        attach_with(beta_bias=None)
    with pytest.raises(AdapterError, match=r"memory_k_proj.*\(4, 32\).*\(8, 32\)"):
        attach_with(memory_k_proj=torch.zeros(8, 32))
    with pytest.raises(AdapterError, match=r"config does not use.*delta_k_proj"):
        attach_with(delta_k_proj=torch.zeros(16, 4))
    one = {name: t for name, t in good.tensors.items() if name.startswith(NAME)}
    with pytest.raises(AdapterError, match=r"no weights for model\.layers\.1\.self_attn.*some/backbone"):
        attach(model, Adapter(good.config, one, "some/backbone"))
    with pytest.raises(AdapterError, match=r"layers that the model has not.*layers\.2"):
        attach(model, random_adapter(build(num_hidden_layers=3)))
    with pytest.raises(AdapterError, match=r"target_layers \[5\].*\[0, 1\]"):
        new_adapter(model, AdapterConfig(target_layers=(0, 5)))
    attach(model, good).detach()


def test_fresh_adapters_are_the_papers() -> None:
    model = build()
    adapter = new_adapter(model, AdapterConfig(num_state_heads=2, couple_lambda=False))
    assert set(adapter.layers) == {NAME, "model.layers.1.self_attn"}
    for layer in adapter.layers.values():
        assert not layer["delta_q_proj"].any() and not layer["delta_o_proj"].any()
        assert layer["beta_bias"].tolist() == [-1.5] * 16 and layer["lambda_bias"].tolist() == [1.5] * 16
        assert 0.1 < float(layer["memory_k_proj"].std()) * 32**0.5 < 2
    assert adapter.fingerprint == new_adapter(model, adapter.config).fingerprint
    assert adapter.fingerprint != new_adapter(model, adapter.config, seed=1).fingerprint


def test_the_published_shape_has_its_published_size() -> None:
    """TSW, rank 8, q and o, on 36 layers of width 2560 with 32 query heads of 128: 4.87 million."""
    from deltamem_agents.memory.layer import layer_shapes

    shapes = layer_shapes(AdapterConfig(), 2560, {"q": 4096, "k": 1024, "v": 1024, "o": 2560})
    assert round(36 * sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6, 2) == 4.87


@torch.no_grad()
def test_the_adapter_given_is_not_tied_to_the_model() -> None:
    model = build()
    adapter = random_adapter(model)
    before = {name: t.clone() for name, t in adapter.tensors.items()}
    with attached(model, adapter) as memory:
        for parameter in memory.parameters():
            parameter.zero_()
        with memory.bind(memory.new_state(2)):
            model(tokens())
    assert all(torch.equal(adapter.tensors[name], t) for name, t in before.items())
