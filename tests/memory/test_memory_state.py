"""MemoryState: sub-states, rows, bytes, fingerprints, and the errors that say what differs."""

import base64
import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_backbones import attached, build, random_adapter, random_state, same_bits, tokens
from safetensors.torch import save

from deltamem_agents.errors import FingerprintMismatch, StateError
from deltamem_agents.memory import AdapterConfig, Fingerprint, MemoryState, attach

LAYOUT = {"facts": (0, 2), "task": (1,), "people": (3, 4, 5)}
NAMES = ("model.layers.0.self_attn", "model.layers.1.self_attn")
MADE_BY = Fingerprint("a" * 16, "b" * 16)


def make(batch: int = 2, seed: int = 0, fingerprint: Fingerprint = MADE_BY, rank: int = 3) -> MemoryState:
    g = torch.Generator().manual_seed(seed)
    return MemoryState({name: torch.randn(batch, 6, rank, rank, generator=g) for name in NAMES}, LAYOUT, fingerprint)


@pytest.mark.parametrize("name", LAYOUT)
def test_select_takes_the_heads_of_one_sub_state(name: str) -> None:
    state = make()
    part = state.select(name)
    assert dict(part.sub_states) == {name: tuple(range(len(LAYOUT[name])))}
    for key in NAMES:
        assert torch.equal(part.tensors[key], state.tensors[key][:, list(LAYOUT[name])])
        part.tensors[key].zero_()  # a copy: the whole is not touched
    assert same_bits(state, make())


@pytest.mark.parametrize("name", LAYOUT)
@pytest.mark.parametrize("from_whole", [True, False])
def test_replace_leaves_the_others_bit_identical(name: str, from_whole: bool) -> None:
    state, other = make(), make(seed=1)
    out = state.replace(name, other if from_whole else other.select(name))
    assert same_bits(out.select(name), other.select(name))
    for rest in set(LAYOUT) - {name}:
        assert same_bits(out.select(rest), state.select(rest))
    assert same_bits(state, make()) and same_bits(other, make(seed=1))
    assert out.fingerprint == state.fingerprint and dict(out.sub_states) == LAYOUT


@pytest.mark.parametrize("name", LAYOUT)
def test_reset_leaves_the_others_bit_identical(name: str) -> None:
    state = make()
    out = state.reset(name)
    assert not any(t.any() for t in out.select(name).tensors.values())
    for rest in set(LAYOUT) - {name}:
        assert same_bits(out.select(rest), state.select(rest))
    assert same_bits(state, make())
    assert not any(t.any() for t in state.reset().tensors.values())


def test_rows_repeat_and_stack() -> None:
    state = make(3)
    assert state.batch_size == 3
    assert same_bits(MemoryState.stack([state.rows([0]), state.rows([1, 2])]), state)
    assert same_bits(state.rows(torch.tensor([2, 2])), MemoryState.stack([state.rows([2])] * 2))
    assert same_bits(state.repeat(2), state.rows([0, 0, 1, 1, 2, 2]))
    with pytest.raises(StateError, match="at least one"):
        MemoryState.stack([])


def test_states_that_do_not_fit_are_not_stacked() -> None:
    state = make()
    with pytest.raises(FingerprintMismatch, match="backbone"):
        MemoryState.stack([state, make(fingerprint=Fingerprint("a" * 16, "c" * 16))])
    with pytest.raises(StateError, match="layouts"):
        MemoryState.stack([state, state.select("task")])
    with pytest.raises(StateError, match=r"self_attn differ.*6, 3, 3.*6, 4, 4"):
        MemoryState.stack([state, make(rank=4)])


@pytest.mark.parametrize("call", ["select", "reset"])
def test_an_unknown_sub_state_is_named(call: str) -> None:
    with pytest.raises(StateError, match=r"'moods'.*facts.*people.*task"):
        getattr(make(), call)("moods")
    with pytest.raises(StateError, match="'moods'"):
        make().replace("moods", make())
    with pytest.raises(StateError, match="'people'"):
        make().replace("people", make().select("task"))


def test_replace_says_what_differs() -> None:
    state = make()
    with pytest.raises(FingerprintMismatch, match=r"adapter c+.*adapter a+"):
        state.replace("task", make(fingerprint=Fingerprint("c" * 16, "b" * 16)))
    with pytest.raises(FingerprintMismatch, match=r"backbone c+.*backbone b+"):
        state.replace("task", make(fingerprint=Fingerprint("a" * 16, "c" * 16)))
    with pytest.raises(StateError, match=r"'task'.*\(2, 1, 3, 3\).*\(2, 1, 4, 4\)"):
        state.replace("task", make(rank=4))
    with pytest.raises(StateError, match=r"\(2, 1, 3, 3\).*\(5, 1, 3, 3\)"):
        state.replace("task", make(5))
    with pytest.raises(StateError, match=r"float32.*float64"):
        state.replace("task", replace(state, tensors={k: t.double() for k, t in state.tensors.items()}))
    with pytest.raises(StateError, match=r"other layers.*layers\.1"):
        state.replace("task", replace(state, tensors={NAMES[0]: state.tensors[NAMES[0]]}))


def test_bytes_round_trip() -> None:
    state = make()
    data = state.to_bytes()
    back = MemoryState.from_bytes(data)
    assert isinstance(data, bytes) and same_bits(back, state)
    assert back.fingerprint == state.fingerprint and dict(back.sub_states) == LAYOUT
    part = MemoryState.from_bytes(state.select("people").to_bytes())
    assert same_bits(state.reset().replace("people", part).select("people"), state.select("people"))


def test_special_numbers_survive() -> None:
    state = make()
    state.tensors[NAMES[0]][0, 0, 0] = torch.tensor([float("inf"), -0.0, 1e-45])
    back = MemoryState.from_bytes(state.to_bytes())
    one, two = (s.tensors[NAMES[0]].view(torch.int32) for s in (back, state))
    assert torch.equal(one, two)


FIXED = MemoryState(
    {
        "layers.1": torch.arange(8.0).reshape(1, 2, 2, 2),
        "layers.0": -torch.arange(8.0).reshape(1, 2, 2, 2),
    },
    {"task": (1,), "facts": (0,)},
    MADE_BY,
)
OF_FORMAT_1 = """\
eNqdkcFugzAMhrs3QT6nUwiBApdx2ksAQk5IVKllIJIdKoTEo/RNxqP0UWboYVKPc/wltmz9Spzh7bDbBE3TGY8temwayCegcPBmhBzwxYCBO6OI
E6qlElUax7HFULdS84ynPDoZZZLMapFSIAWPImlRJqlW0mYq1kadEh5nIaa71rdqnEdvHOlNFXh0lwryoAxrFlRgUXu357yeqV2hvqj+y1CzejGq
2n7s0FOtNVePnemOu/QxhJnBFW9mdO98e17rb8Om8RmJ53u2rAyZ2FbNYB9Eb60znu5VchaJ+k8i/IdEJFgi63kONqORL+Q/dK6HQ0EsxJ1Yicf6
/JXlg7aCnFiIO7ESj+IXUUd/pg=="""
SAVE = """
import sys, torch
from deltamem_agents.memory import Fingerprint, MemoryState

torch.set_num_threads(1)
layers = [f"layers.{i}" for i in range(12)]
names = ["facts", "task", "people", "places"]
if sys.argv[1] == "turned":
    layers, names = layers[::-1], names[::-1]
tensors = {name: torch.full((1, 4, 2, 2), float(name[7:])) for name in layers}
heads = {"facts": (0,), "task": (1,), "people": (2,), "places": (3,)}
state = MemoryState(tensors, {name: heads[name] for name in names}, Fingerprint("a" * 16, "b" * 16))
print(*{state.to_bytes().hex() for _ in range(5)})
"""


def test_the_same_state_gives_the_same_bytes_in_every_process() -> None:
    found = set()
    for seed, order in (("1", "straight"), ("2", "turned")):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", SAVE, order], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found |= set(done.stdout.split())
    assert len(found) == 1


def test_bytes_of_the_first_format_are_read() -> None:
    data = zlib.decompress(base64.b64decode(OF_FORMAT_1))
    state = MemoryState.from_bytes(data)
    assert same_bits(state, FIXED) and state.fingerprint == FIXED.fingerprint
    assert dict(state.sub_states) == dict(FIXED.sub_states)
    assert MemoryState.from_bytes(state.to_bytes()).to_bytes() == FIXED.to_bytes()
    for old, new in ((b"aaaa", b"aaab"), (b"task", b"tusk"), (b"[1]", b"[0]"), (b"\x80\xbf", b"\x80\x3f")):
        assert old in data
        with pytest.raises(StateError, match="checksum"):
            MemoryState.from_bytes(data.replace(old, new, 1))


def test_distances_between_states() -> None:
    one, two = make(), make(seed=1)
    got = one.distance(two)
    for name, heads in LAYOUT.items():
        apart = torch.cat([(one.tensors[key] - two.tensors[key])[:, list(heads)].flatten() for key in NAMES])
        assert got[name] == pytest.approx(float(apart.double().norm()), rel=1e-6)
    assert set(got) == set(LAYOUT) and two.distance(one) == got
    assert one.distance(one) == dict.fromkeys(LAYOUT, 0.0)
    changed = one.distance(one.replace("task", two))
    assert changed == {"facts": 0.0, "people": 0.0, "task": got["task"]}


def test_states_that_do_not_fit_have_no_distance() -> None:
    state = make()
    with pytest.raises(FingerprintMismatch, match="adapter"):
        state.distance(make(fingerprint=Fingerprint("c" * 16, "b" * 16)))
    with pytest.raises(StateError, match="layouts"):
        state.distance(state.select("task"))
    with pytest.raises(StateError, match=r"self_attn differ.*6, 3, 3.*6, 4, 4"):
        state.distance(make(rank=4))
    with pytest.raises(StateError, match="2 and 3 rows"):
        state.distance(make(3))


DATA = make(1).to_bytes()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(DATA)
    damaged[position] ^= change
    try:
        state = MemoryState.from_bytes(bytes(damaged))
    except StateError:
        return
    back = MemoryState.from_bytes(DATA)  # spaces of the header alone may change and mean the same
    assert same_bits(state, back) and (state.fingerprint, state.sub_states) == (back.fingerprint, back.sub_states)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, len(DATA) // 2, len(DATA) - 1])
def test_cut_bytes_are_noticed(cut: int) -> None:
    with pytest.raises(StateError):
        MemoryState.from_bytes(DATA[:cut])


def test_other_bytes_are_no_state() -> None:
    for data in (b"", b"{}", b"\x80\x04K\x01.", bytes(200), DATA + b"x"):
        with pytest.raises(StateError):
            MemoryState.from_bytes(data)
    with pytest.raises(StateError, match="format None"):
        MemoryState.from_bytes(save({"a": torch.zeros(1, 1, 2, 2)}))
    with pytest.raises(StateError, match="format 'deltamem-state-9'"):
        MemoryState.from_bytes(save({"a": torch.zeros(1)}, metadata={"format": "deltamem-state-9"}))
    with pytest.raises(StateError, match="not a memory state"):
        MemoryState.from_bytes(save({"a": torch.zeros(1)}, metadata={"deltamem": "[]"}))
    with pytest.raises(StateError, match="format 'deltamem-state-9'"):
        nine = json.dumps({"format": "deltamem-state-9"})
        MemoryState.from_bytes(save({"a": torch.zeros(1)}, metadata={"deltamem": nine}))
    meta = {"format": "deltamem-state-1", "adapter": "a", "backbone": "b", "sub_states": json.dumps({"shared": [0]})}
    with pytest.raises(StateError, match="sha256"):
        MemoryState.from_bytes(save({"a": torch.zeros(1, 1, 2, 2)}, metadata=meta))
    with pytest.raises(StateError, match="float64"):
        MemoryState.from_bytes(save({"a": torch.zeros(1, 1, 2, 2).double()}, metadata=meta | {"sha256": ""}))
    with pytest.raises(StateError, match="checksum"):
        MemoryState.from_bytes(save({"a": torch.zeros(1, 1, 2, 2)}, metadata=meta | {"sha256": ""}))


def test_fingerprints_are_stable_and_tell_apart() -> None:
    model, other = build(), build(seed=5)
    with attached(model, random_adapter(model)) as memory:
        first = memory.fingerprint
    with attached(model, random_adapter(model)) as memory:
        assert memory.fingerprint == first == memory.new_state().fingerprint
    with attached(model, random_adapter(model, seed=2)) as memory:
        assert memory.fingerprint.backbone == first.backbone and memory.fingerprint.adapter != first.adapter
    with attached(other, random_adapter(other)) as memory:
        assert memory.fingerprint.backbone != first.backbone and memory.fingerprint.adapter == first.adapter
    half = build().bfloat16()
    with attached(half, random_adapter(half)) as memory:
        assert memory.fingerprint == first
    assert str(first) == f"{first.adapter}/{first.backbone}"


def test_binding_a_state_that_does_not_fit_says_what_differs() -> None:
    model = build()
    memory = attach(model, random_adapter(model, num_state_heads=2, sub_states={"facts": (0,), "task": (1,)}))
    state = random_state(memory)

    def bind(bad: MemoryState, **options: object) -> None:
        with memory.bind(bad, **options):  # type: ignore[arg-type]
            model(tokens())

    made = state.fingerprint
    with pytest.raises(FingerprintMismatch, match="adapter x"):
        bind(replace(state, fingerprint=Fingerprint("x", made.backbone)))
    with pytest.raises(FingerprintMismatch, match="backbone x"):
        bind(replace(state, fingerprint=Fingerprint(made.adapter, "x")))
    with pytest.raises(StateError, match=r"layers\.0\.self_attn.*\(B, 2, 4, 4\) float32.*\(2, 2, 4, 5\)"):
        bind(state._map(lambda _, t: torch.zeros(2, 2, 4, 5)))
    with pytest.raises(StateError, match="bfloat16"):
        bind(state._map(lambda _, t: t.bfloat16()))
    with pytest.raises(StateError, match=r"sub-states.*facts.*task"):
        bind(state.select("facts"))
    with pytest.raises(StateError, match=r"other layers.*layers\.1"):
        bind(replace(state, tensors={NAMES[0]: state.tensors[NAMES[0]]}))
    with pytest.raises(StateError, match=r"3 rows.*called with 2.*new_state"):
        bind(memory.new_state(3))
    with pytest.raises(StateError, match=r"'moods'.*facts"):
        bind(state, sub_states=("facts", "moods"))
    for option in ("write", "token_mask"):
        with pytest.raises(StateError, match=r"\(2, 11\)"):
            bind(state, **{option: torch.ones(2, 11, dtype=torch.bool)})
    with pytest.raises(StateError, match=r"'task'.*\(1, 12\)"):
        bind(state, sub_states={"task": torch.ones(1, 12, dtype=torch.bool)})
    memory.detach()
    with pytest.raises(StateError, match="detached"):
        bind(state)


def test_states_move_between_two_attachments_of_the_same_adapter() -> None:
    model, adapter = build(), random_adapter(build(), num_state_heads=6, sub_states=LAYOUT)
    with torch.no_grad(), attached(model, adapter) as memory, memory.bind(memory.new_state(2)) as bound:
        model(tokens())
    data, again = bound.state.to_bytes(), build()
    with torch.no_grad(), attached(again, adapter) as memory:
        state = MemoryState.from_bytes(data)
        with memory.bind(state, write=False) as reading:
            assert again(tokens()).logits.isfinite().all()
    assert same_bits(reading.state, bound.state)


def test_without_names_there_is_one_sub_state_over_all_heads() -> None:
    assert AdapterConfig(num_state_heads=2).sub_states == {"shared": (0, 1)}
