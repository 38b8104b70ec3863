"""Padding and rows that have ended, where the calls do not show them: generate(), static caches, prepared masks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_backbones import attached, build, close, close_states, random_adapter, random_state, same_bits, tokens
from torch import Tensor, nn
from transformers import CompileConfig, StoppingCriteria

from deltamem_agents.errors import StateError
from deltamem_agents.memory import DeltaMemory, MemoryState

PLAIN = ("llama", "qwen3", "gemma2", "mistral")
EVERY = {"num_state_heads": 2, "delta_heads": ("q", "k", "v", "o")}
IDS = tokens(2, 6)
MASK = torch.ones_like(IDS)
MASK[1, :2] = 0
ALONE = [IDS[:1], IDS[1:, 2:]]  # each row without its padding


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def generate(
    memory: DeltaMemory, start: MemoryState, ids: Tensor, mask: Tensor | None = None, write: bool = True, **options: Any
) -> tuple[list[list[int]], MemoryState]:
    """The new tokens of each row, and the state; static if ``options`` say so."""
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    with memory.bind(start, write=write) as bound:
        out = memory.model.generate(ids, attention_mask=mask, **options)  # type: ignore[operator]
    return out[:, ids.shape[1] :].tolist(), bound.state


def compiled() -> CompileConfig:
    config = CompileConfig(backend="aot_eager", fullgraph=True, mode=None)
    config._compile_all_devices = True
    return config


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_static_dynamic_and_each_row_alone(name: str, write: bool) -> None:
    model = build(name)
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start = random_state(memory)
        dynamic, want = generate(memory, start, IDS, MASK, write)
        static, state = generate(memory, start, IDS, MASK, write, cache_implementation="static")
        assert static == dynamic
        close_states(state, want)
        assert same_bits(state, start) is not write
        for i, ids in enumerate(ALONE):
            answer, alone = generate(memory, start.rows([i]), ids, write=write)
            assert answer[0] == dynamic[i]
            close_states(alone, want.rows([i]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"prefill_chunk_size": 4}),
        ("gemma2", {"prefill_chunk_size": 4}),
        ("llama", {"compile_config": compiled()}),
    ],
    ids=["llama in chunks", "gemma2 in chunks", "llama compiled"],
)
def test_static_generation_in_chunks_and_compiled(name: str, options: dict[str, Any]) -> None:
    model = build(name)
    torch.compiler.reset()
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start = random_state(memory)
        dynamic, want = generate(memory, start, IDS, MASK)
        static, state = generate(memory, start, IDS, MASK, cache_implementation="static", **options)
    assert static == dynamic
    close_states(state, want)
    torch.compiler.reset()


def test_a_static_cache_without_padding() -> None:
    """transformers drops a mask of ones, and still prepares masks."""
    model = build()
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        dynamic, want = generate(memory, start, IDS)
        static, state = generate(memory, start, IDS, cache_implementation="static")
    assert static == dynamic
    close_states(state, want)


class EndsAt(StoppingCriteria):
    """Ends the second of two rows once it has so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([False, input_ids.shape[1] >= self.length])


def ends_of_row_one(answers: list[list[int]]) -> tuple[int, int]:
    """A token that ends the second row early and the first row never, and where."""
    first, second = answers
    return next((token, second.index(token)) for token in second if token not in first)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("pad", ["own", "end"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_row_that_has_ended_does_not_write(name: str, pad: str, cache: str) -> None:
    model = build(name)
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        end, at = ends_of_row_one(generate(memory, start, IDS, MASK)[0])
        options = {"eos_token_id": end, "pad_token_id": 0 if pad == "own" else end}
        answers, state = generate(memory, start, IDS, MASK, cache_implementation=cache, **options)
        assert at < 4 and answers[1] == [*answers[1][: at + 1], *[options["pad_token_id"]] * (5 - at)]
        for i, ids in enumerate(ALONE):
            answer, alone = generate(memory, start.rows([i]), ids, **options)
            assert answer[0] == answers[i][: len(answer[0])] and len(answer[0]) == (6, at + 1)[i]
            close_states(alone, state.rows([i]))


def test_a_row_that_another_criterion_ends_does_not_write() -> None:
    model = build()
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        _, state = generate(memory, start, IDS, MASK, stopping_criteria=[EndsAt(8)], eos_token_id=63)
        for i, ids in enumerate(ALONE):
            _, alone = generate(memory, start.rows([i]), ids, max_new_tokens=(6, 2)[i], eos_token_id=63)
            close_states(alone, state.rows([i]))


def test_what_has_ended_is_forgotten_with_its_generation() -> None:
    model = build()
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        end, _ = ends_of_row_one(generate(memory, start, IDS, MASK)[0])
        with memory.bind(start) as bound:
            options = {"do_sample": False, "pad_token_id": 0}
            model.generate(IDS, attention_mask=MASK, max_new_tokens=6, eos_token_id=end, **options)  # type: ignore[operator]
            for call in (
                lambda: model(IDS),
                lambda: model.generate(IDS, attention_mask=MASK, max_new_tokens=1, **options),  # type: ignore[operator]
            ):
                before = bound.state.rows([1])
                call()
                assert not same_bits(bound.state.rows([1]), before)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"use_cache": False}], ids=["beams", "no cache"])
def test_generation_that_takes_tokens_back_only_reads(options: dict[str, Any]) -> None:
    model = build()
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory).repeat(options.get("num_beams", 1))
        with pytest.raises(StateError, match="write=False"):
            generate(memory, start, IDS, MASK, **options)
        generate(memory, start, IDS, MASK, write=False, **options)


def prepared(mask: Tensor) -> Tensor:
    """The 4-D mask (B, 1, T, T) of causal attention with padding."""
    seen = mask[:, None, None, :].bool() & torch.ones(mask.shape[1], mask.shape[1]).tril().bool()
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_prepared_mask_needs_a_token_mask(name: str, write: bool) -> None:
    model = build(name)
    masks: dict[str, Any] = {"full_attention": prepared(MASK), "sliding_attention": prepared(MASK)}
    given = masks if name == "gemma2" else masks["full_attention"]
    with attached(model, random_adapter(model, **EVERY)) as memory:
        start = random_state(memory)
        with memory.bind(start, write=write) as flat:
            want = model(IDS, attention_mask=MASK).logits
        with memory.bind(start, write=write) as bound:
            model(IDS, attention_mask=MASK)  # what it says of its padding ends with it
            before = bound.state
            with pytest.raises(StateError, match="token_mask"):
                model(IDS, attention_mask=given)
            assert same_bits(bound.state, before)
        with memory.bind(start, write=write, token_mask=MASK.bool()) as told:
            got = model(IDS, attention_mask=given).logits
    close(got[MASK.bool()], want[MASK.bool()])
    close_states(told.state, flat.state)


@pytest.mark.parametrize("failing", [False, True])
def test_no_mask_outlives_its_call(failing: bool) -> None:
    model = build("llama")
    layer = model.model.layers[1]  # type: ignore[union-attr, index]
    with attached(model, random_adapter(model)) as memory, memory.bind(random_state(memory)) as bound:
        if failing:
            handle = layer.register_forward_pre_hook(lambda *_: 1 // 0)  # type: ignore[union-attr]
            with pytest.raises(ZeroDivisionError):
                model(IDS, attention_mask=MASK)
            handle.remove()
        model(IDS, attention_mask=MASK)
        states = [bound.state]
        assert bound.attention_mask is None
        with pytest.raises(StateError, match="token_mask"):
            model.model.layers[0](torch.zeros(2, 6, 32), position_embeddings=(torch.ones(1, 6, 8),) * 2)  # type: ignore[union-attr, index, operator]
        for i, other in enumerate((MASK.flip(1), None)):
            with memory.bind(states[0]) as alone:
                model(tokens(2, 6, i), attention_mask=other)
            states.append(alone.state)
            with memory.bind(states[0]) as after:
                model(IDS, attention_mask=MASK)
                after.current = dict(states[0].tensors)
                model(tokens(2, 6, i), attention_mask=other)
            assert same_bits(after.state, alone.state)


CALLS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "decoder": lambda model, ids, mask: model.model(ids, attention_mask=mask),
    "positional": lambda model, ids, mask: model(ids, mask),
    "decoder, positional": lambda model, ids, mask: model.model(ids, mask),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_mask_is_found_however_the_model_is_called(call: str) -> None:
    model = build("llama")
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        with memory.bind(start) as want:
            model(IDS, attention_mask=MASK)
        with memory.bind(start) as got:
            CALLS[call](model, IDS, MASK)
    assert same_bits(got.state, want.state)


def test_a_cache_in_the_place_of_the_mask_is_no_mask() -> None:
    """gpt2 takes its cache second and its mask third."""
    model = build("gpt2")
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        with memory.bind(start) as want:
            cache = model(IDS, attention_mask=MASK, use_cache=True).past_key_values
            model(IDS[:, :1], past_key_values=cache)
        with memory.bind(start) as got:
            cache = model(IDS, None, MASK, use_cache=True).past_key_values
            model(IDS[:, :1], cache)
    assert same_bits(got.state, want.state)


def test_the_outermost_call_is_believed() -> None:
    """Composite models prepare the mask themselves before they call their decoder."""
    model = build("llama")
    decoder: nn.Module = model.model  # type: ignore[assignment]
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"attention_mask": prepared(kwargs["attention_mask"])}),
        with_kwargs=True,
    )
    with attached(model, random_adapter(model)) as memory:
        start = random_state(memory)
        with memory.bind(start) as got:
            model(IDS, attention_mask=MASK)
            with pytest.raises(StateError, match="token_mask"):
                decoder(IDS, attention_mask=MASK)
        with memory.bind(start, token_mask=MASK.bool()) as want:
            model(IDS, attention_mask=MASK)
    assert same_bits(got.state, want.state)


def test_a_token_mask_must_fit_each_call() -> None:
    model = build()
    with attached(model, random_adapter(model)) as memory, memory.bind(random_state(memory), token_mask=MASK.bool()):
        model(IDS)
        with pytest.raises(StateError, match=r"token_mask.*\(2, 6\).*\(2, 1\)"):
            model(IDS[:, :1])


def test_generation_outside_of_a_binding_and_after_detaching() -> None:
    model = build()
    generate_method, before = model.generate, dict(vars(model))  # type: ignore[operator]
    options: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    want = generate_method(IDS, **options)
    with attached(model, random_adapter(model)) as memory:
        assert torch.equal(generate_method(IDS, **options), want)
        assert memory.model is model
    assert torch.equal(generate_method(IDS, **options), want)
    assert vars(model).keys() == before.keys()
