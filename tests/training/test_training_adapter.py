"""What training computes: writes as the engine does them, and gradients in the adapter alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from training_data import CONFIG, RECORDS, tiny_memory, tiny_model

from deltamem_agents.engine import Engine
from deltamem_agents.errors import RecipeError
from deltamem_agents.memory import Adapter, AdapterConfig, attach, new_adapter
from deltamem_agents.training.encoding import EncodedRecord, Encoder
from deltamem_agents.training.packing import Batch, Shape, pack_batch
from deltamem_agents.training.records import parse_record
from deltamem_agents.training.sft import asked_loss, widen, write_packed

NAMES = ("facts", "task_progress")
SHAPE = Shape(contexts=len(RECORDS), memory_tokens=128, asked_tokens=128, answer_tokens=32)


def encoded(tokenizer: Any, **changes: Any) -> list[EncodedRecord]:
    encoder = Encoder(tokenizer, NAMES)
    return [replace(encoder.record(parse_record(record, "here")), **changes) for record in RECORDS]


def batch_of(tokenizer: Any, **changes: Any) -> Batch:
    return pack_batch(encoded(tokenizer, **changes), SHAPE, tokenizer.pad_token_id, NAMES)


@pytest.mark.parametrize("granularity", ["token", "message_mean"])
def test_packed_writes_are_the_writes_of_the_engine(granularity: str) -> None:
    model, tokenizer = tiny_model()
    memory = tiny_memory(model, memory_write_granularity=granularity)
    batch = batch_of(tokenizer)
    with torch.no_grad():
        packed = write_packed(model, memory, memory.new_state(len(RECORDS)), batch.memory)
    engine = Engine(model, tokenizer, memory)
    for i, record in enumerate(RECORDS):
        state = engine.new_state()
        for message in record["memory"]:
            state = engine.write(state, [message], [[message["sub_state"]]])
        for name, written in state.tensors.items():
            assert written.abs().max() > 1e-3
            torch.testing.assert_close(packed.rows([i]).tensors[name], written, atol=1e-5, rtol=1e-5)


def test_a_second_write_goes_on_from_the_first() -> None:
    model, tokenizer = tiny_model()
    memory = tiny_memory(model)
    rows = batch_of(tokenizer).memory
    with torch.no_grad():
        once = write_packed(model, memory, memory.new_state(len(RECORDS)), rows)
        twice = write_packed(model, memory, once, rows)
    engine = Engine(model, tokenizer, memory)
    said = RECORDS[0]["memory"] * 2
    expected = engine.write(engine.new_state(), said, [[m["sub_state"]] for m in said])
    for name, written in expected.tensors.items():
        torch.testing.assert_close(twice.rows([0]).tensors[name], written, atol=1e-5, rtol=1e-5)


def test_the_loss_is_that_of_each_conversation_alone() -> None:
    model, tokenizer = tiny_model()
    memory = tiny_memory(model)
    records = encoded(tokenizer, reset=())
    loss, accuracy = asked_loss(model, memory, batch_of(tokenizer, reset=()))
    engine = Engine(model, tokenizer, memory)
    losses, right = [], []
    for record, source in zip(records, RECORDS, strict=True):
        said = source["memory"]
        state = engine.write(engine.new_state(), said, [[m["sub_state"]] for m in said])
        for ids, start in record.asked:
            with torch.no_grad(), memory.bind(state, write=False):
                logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            losses.append(cross_entropy(logits, torch.tensor(ids[start:]), reduction="none"))
            right.append(logits.argmax(-1) == torch.tensor(ids[start:]))
    torch.testing.assert_close(loss.detach(), torch.cat(losses).mean(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(accuracy, torch.cat(right).float().mean())


def test_only_the_adapter_gets_gradients_and_all_of_it_does() -> None:
    model, tokenizer = tiny_model()
    model.requires_grad_(False)
    memory = tiny_memory(model, trainable=True)
    loss, _ = asked_loss(model, memory, batch_of(tokenizer))
    loss.backward()
    own = dict(memory.named_parameters())
    assert own and all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())
    others = [p for p in model.parameters() if all(p is not q for q in own.values())]
    assert others and all(p.grad is None for p in others)


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_empties_one_sub_state_of_its_rows_alone(name: str) -> None:
    model, tokenizer = tiny_model()
    memory = tiny_memory(model)
    batch = batch_of(tokenizer, reset=())
    chosen = [1, 3]
    rows = torch.tensor([i in chosen for i in range(len(RECORDS))])
    seen = []
    bind = memory.bind

    def watched(state: Any, **options: Any) -> Any:
        seen.append(state)
        return bind(state, **options)

    memory.bind = watched  # type: ignore[method-assign]
    with torch.no_grad():
        asked_loss(model, memory, replace(batch, reset=batch.reset | {name: rows}))
        full = write_packed(model, memory, memory.new_state(len(RECORDS)), batch.memory)
    read = seen[1]  # the state that the conversations see
    for i in range(len(RECORDS)):
        expected = full.rows([i]).reset(name) if i in chosen else full.rows([i])
        for key, tensor in expected.tensors.items():
            assert torch.equal(read.rows([i]).tensors[key], tensor)


def test_a_reset_of_everything_is_as_if_nothing_was_written() -> None:
    model, tokenizer = tiny_model()
    memory = tiny_memory(model)
    with torch.no_grad():
        told, _ = asked_loss(model, memory, batch_of(tokenizer, reset=()))
        reset, _ = asked_loss(model, memory, batch_of(tokenizer, reset=NAMES))
        empty, _ = asked_loss(model, memory, batch_of(tokenizer, memory=[], routes=[], reset=()))
    torch.testing.assert_close(reset, empty)
    assert (told - empty).abs() > 1e-4


def pair(model: Any, **wider: Any) -> tuple[Adapter, Adapter]:
    old = new_adapter(model, AdapterConfig.from_dict(CONFIG), output_std=0.05, seed=1)
    layout = {"num_state_heads": 6, "sub_states": {"facts": [0, 1, 4], "task_progress": [2, 3, 5]}}
    return old, new_adapter(model, AdapterConfig.from_dict(CONFIG | layout | wider), output_std=0.0, seed=2)


def test_a_widened_adapter_computes_what_it_did() -> None:
    model, tokenizer = tiny_model()
    old, fresh = pair(model)
    losses = []
    for adapter in (old, widen(old, fresh), fresh):
        memory = attach(model, adapter, dtype=torch.float32)
        with torch.no_grad():
            losses.append(asked_loss(model, memory, batch_of(tokenizer))[0])
        memory.detach()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    assert (losses[2] - losses[0]).abs() > 1e-4


def test_an_adapter_that_differs_otherwise_cannot_be_widened() -> None:
    model, _ = tiny_model()
    old, fresh = pair(model, rank=4)
    with pytest.raises(RecipeError, match="state heads"):
        widen(old, fresh)
    old, fresh = pair(model)
    with pytest.raises(RecipeError, match="state heads"):
        widen(fresh, old)
