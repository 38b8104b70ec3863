"""Records, their token ids, and batches of them."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_data import PORTS, RECORDS, file_recipe, recipe_file, tiny_model, write_records

from deltamem_agents.errors import RecipeError
from deltamem_agents.training.attention import block_causal_mask
from deltamem_agents.training.chat_format import END, START
from deltamem_agents.training.data import AdapterBatches, BackboneBatches, batches
from deltamem_agents.training.encoding import EncodedRecord, Encoder
from deltamem_agents.training.packing import IGNORE, Packed, Shape, pack_batch, pack_rows
from deltamem_agents.training.recipe import load_recipe
from deltamem_agents.training.records import Conversation, parse_record, read_records

ASKED = {"role": "user", "content": "Which port?"}
ANSWER = {"role": "assistant", "content": "8443"}
TELL = {"role": "user", "content": "The port is 8443."}
NAMES = ("facts", "task_progress")
PAD = 0
SEQUENCE = st.lists(st.integers(1, 99), min_size=2, max_size=9)
ROWS = st.lists(st.lists(SEQUENCE, max_size=4), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_model()[1]


def test_records_are_read_in_order(tmp_path: Path) -> None:
    records = list(read_records(write_records(tmp_path / "r.jsonl")))
    assert [r.memory for r in records] == [r["memory"] for r in RECORDS]
    assert [r.conversations[0].messages[-1]["content"] for r in records] == list(PORTS.values())
    assert [r.reset for r in records] == [(), (), (), ("task_progress",)]


def test_the_three_forms_of_messages() -> None:
    tools = [{"type": "function"}]
    single = parse_record({"memory": [TELL], "messages": [ASKED, ANSWER], "tools": tools}, "here")
    assert single.conversations == [Conversation([ASKED, ANSWER], tools)]
    many = parse_record(
        {"messages": [[ASKED, ANSWER], {"messages": [ASKED, ANSWER], "tools": []}], "tools": tools}, "here"
    )
    assert many.conversations == [Conversation([ASKED, ANSWER], tools), Conversation([ASKED, ANSWER], [])]
    assert many.memory == []
    assert parse_record({"messages": [ASKED, ANSWER], "reset": "facts"}, "here").reset == ("facts",)


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "3", '"text"', "{}",
        json.dumps({"messages": []}),
        json.dumps({"messages": "text"}),
        json.dumps({"messages": ["text"]}),
        json.dumps({"messages": [[]]}),
        json.dumps({"messages": [3]}),
        json.dumps({"messages": [{"messages": ANSWER}]}),
        json.dumps({"messages": [ASKED]}),
        json.dumps({"messages": [ANSWER]}),
        json.dumps({"messages": [ANSWER, ASKED]}),
        json.dumps({"messages": [[ASKED, {"role": "assistant"}]]}),
        json.dumps({"messages": [ASKED, ANSWER], "memory": {}}),
        json.dumps({"messages": [ASKED, ANSWER], "memory": ["text"]}),
        json.dumps({"messages": [ASKED, ANSWER], "memory": [{"role": "user"}]}),
        json.dumps({"messages": [ASKED, ANSWER], "memory": [{"content": "text"}]}),
        json.dumps({"messages": [ASKED, ANSWER | {"content": 8443}]}),
        json.dumps({"messages": [ASKED | {"content": None}, ANSWER]}),
        json.dumps({"messages": [ASKED, ANSWER], "memory": [TELL | {"content": ["text"]}]}),
        json.dumps({"messages": [ASKED, ANSWER], "memory": [TELL | {"sub_state": 3}]}),
        json.dumps({"messages": [ASKED, ANSWER], "memory": [TELL | {"tool_calls": "text"}]}),
        json.dumps({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "look"}]}]}),
        json.dumps({"messages": [ASKED, ANSWER], "tools": "text"}),
        json.dumps({"messages": [{"messages": [ASKED, ANSWER], "tools": ["text"]}]}),
        json.dumps({"messages": [ASKED, ANSWER], "reset": {"facts": 1}}),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(RECORDS[0]) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bad\.jsonl:3: "):
        list(read_records(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize("role", ["robot", "User", "<|im_start|>", None, 3])
def test_unknown_roles_are_refused_by_name(role: Any) -> None:
    for more in ({"memory": [TELL | {"role": role}]}, {"messages": [[ASKED | {"role": role}, ANSWER]]}):
        with pytest.raises(RecipeError, match=f"here: role {re.escape(repr(role))} is not one of system, user"):
            parse_record({"messages": [ASKED, ANSWER]} | more, "here")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(RECORDS[0]).encode() + b"\n\xff\n")
    with pytest.raises(RecipeError, match=r"bad\.jsonl:2: not JSON"):
        list(read_records(tmp_path / "bad.jsonl"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.jsonl"):
        list(read_records(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("message", "several", "one"),
    [
        (TELL, NAMES, ("shared",)),
        (TELL | {"sub_state": "facts"}, ("facts",), ("shared",)),
        (TELL | {"sub_state": ["task_progress", "facts"]}, ("task_progress", "facts"), ("shared",)),
    ],
)
def test_routes(tokenizer: Any, message: dict[str, Any], several: tuple[str, ...], one: tuple[str, ...]) -> None:
    assert Encoder(tokenizer, NAMES).route(message) == several
    assert Encoder(tokenizer, ("shared",)).route(message) == one


def test_each_message_is_encoded_alone_and_answers_begin_where_they_are_learnt(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, NAMES)
    record = encoder.record(parse_record(RECORDS[3], "here"))
    assert [tokenizer.decode(ids) for ids in record.memory] == [
        f"{START}user\nThe port of delta is 5151.{END}\n",
        f"{START}assistant\nNoted. {END}\n",
    ]
    assert record.routes == [("facts",), ("task_progress",)]
    assert record.reset == ("task_progress",)
    ids, start = record.asked[0]
    assert tokenizer.decode(ids[:start]) == f"{START}user\nWhich port has delta?{END}\n{START}assistant\n"
    assert tokenizer.decode(ids[start:]) == f"5151{END}"


def test_templates_that_change_what_came_before_give_the_plain_answer(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, NAMES)
    encoder.render = lambda messages, tools=None, prompt=False: f"{len(messages)} messages"  # type: ignore[method-assign]
    assert encoder.split(Conversation([ASKED, ANSWER])) == ("1 messages", f"8443{END}")


@pytest.mark.parametrize(
    "more", [{"memory": [TELL | {"sub_state": "dreams"}]}, {"reset": ["dreams"]}], ids=["written", "reset"]
)
def test_unknown_sub_states_are_named(tmp_path: Path, tokenizer: Any, more: dict[str, Any]) -> None:
    write_records(tmp_path / "records.jsonl", [RECORDS[0], {"messages": [ASKED, ANSWER]} | more])
    recipe = file_recipe(tmp_path, tmp_path)
    with pytest.raises(RecipeError, match=r"records\.jsonl:2: no sub-state 'dreams' .*facts"):
        AdapterBatches(recipe, recipe.adapter.train, tokenizer, NAMES)


def unpacked(packed: Packed) -> list[list[list[int]]]:
    """The sequences of each row, by ``segment_ids``."""
    return [
        [ids[numbers == s].tolist() for s in range(int(numbers.max()) + 1)]
        for ids, numbers in zip(packed.input_ids, packed.segment_ids, strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 5))
def test_packed_rows_hold_the_sequences_and_nothing_else(rows: list[list[list[int]]], spare: int) -> None:
    length = max(1, max(sum(map(len, row)) for row in rows) + spare)
    packed = pack_rows(rows, length, 5 * len(rows), PAD)
    assert unpacked(packed) == rows
    assert packed.input_ids.shape == packed.labels.shape == (len(rows), length)
    assert (packed.token_mask == (packed.segment_ids >= 0)).all()
    assert (packed.input_ids[~packed.token_mask] == PAD).all() and (packed.position_ids[~packed.token_mask] == 0).all()
    assert (packed.labels == IGNORE).all()
    boundaries = packed.cu_seqlens.tolist()
    assert len(boundaries) == 5 * len(rows) + 1 and boundaries[0] == 0 and boundaries[-1] == len(rows) * length
    flat, positions = packed.input_ids.flatten().tolist(), packed.position_ids.flatten().tolist()
    pieces = list(pairwise(boundaries))
    assert all(a <= b for a, b in pieces)
    told = [(a, b) for a, b in pieces if b > a and flat[a] != PAD]
    assert [flat[a:b] for a, b in told] == [sequence for row in rows for sequence in row]
    assert all(positions[a:b] == list(range(b - a)) for a, b in told)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.data())
def test_labels_are_the_next_tokens_of_the_part_to_learn(rows: list[list[list[int]]], data: st.DataObject) -> None:
    starts = [[data.draw(st.integers(1, len(sequence))) for sequence in row] for row in rows]
    length = 1 + max(sum(map(len, row)) for row in rows)
    packed = pack_rows(rows, length, 5 * len(rows), PAD, label_starts=starts)
    for b, row in enumerate(rows):
        for s, sequence in enumerate(row):
            labels = packed.labels[b][packed.segment_ids[b] == s].tolist()
            first = starts[b][s]
            assert labels == [IGNORE] * (first - 1) + sequence[first:] + [IGNORE]
    assert (packed.labels[~packed.token_mask] == IGNORE).all()


@settings(max_examples=50, deadline=None)
@given(ROWS, st.data())
def test_routes_mark_the_tokens_of_their_sequences(rows: list[list[list[int]]], data: st.DataObject) -> None:
    routes = [[data.draw(st.sets(st.sampled_from(NAMES))) for _ in row] for row in rows]
    length = 1 + max(sum(map(len, row)) for row in rows)
    packed = pack_rows(
        rows, length, 5 * len(rows), PAD, routes=[[sorted(r) for r in row] for row in routes], names=NAMES
    )
    for name in NAMES:
        for b, row in enumerate(routes):
            chosen = [s for s, route in enumerate(row) if name in route]
            assert (packed.sub_states[name][b] == torch.isin(packed.segment_ids[b], torch.tensor(chosen))).all()


def test_too_many_sequences_are_an_error() -> None:
    with pytest.raises(ValueError, match="4 sequences in a batch made for 3"):
        pack_rows([[[1], [2], [3]]], 10, 3, PAD)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_tokens_see_only_what_came_before_in_their_sequence(rows: list[list[list[int]]]) -> None:
    length = 1 + max(sum(map(len, row)) for row in rows)
    packed = pack_rows(rows, length, 5 * len(rows), PAD)
    mask = block_causal_mask(packed.cu_seqlens, len(rows), length)[:, 0]
    for b in range(len(rows)):
        own = packed.segment_ids[b]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        assert (mask[b] == ((own[:, None] == own[None, :]) & causal)).all()


def record_of(memory: list[int], asked: list[tuple[int, int]], reset: tuple[str, ...] = ()) -> EncodedRecord:
    return EncodedRecord([[1] * n for n in memory], [NAMES] * len(memory), [([2] * n, s) for n, s in asked], reset)


def test_shapes_refuse_what_does_not_fit() -> None:
    shape = Shape(contexts=1, memory_tokens=10, asked_tokens=8, answer_tokens=4, sequences=4)
    assert shape.fits(record_of([5, 5], [(8, 2)]))
    assert not shape.fits(record_of([5, 6], [(8, 2)]))
    assert not shape.fits(record_of([5], []))
    assert not shape.fits(record_of([5], [(9, 2)]))  # nothing could be asked
    assert shape.fits(record_of([5], [(9, 2), (8, 2)]))
    assert not shape.fits(record_of([1] * 4, [(8, 2)]))


def test_a_batch_leaves_out_what_does_not_fit_and_names_what_is_learnt() -> None:
    shape = Shape(contexts=2, memory_tokens=10, asked_tokens=8, answer_tokens=4, sequences=4)
    records = [record_of([5], [(5, 2), (9, 1), (3, 1)]), record_of([4, 4], [(8, 7)], ("facts",))]
    batch = pack_batch(records, shape, PAD, NAMES)
    assert [[len(s) for s in row] for row in unpacked(batch.asked)] == [[5, 3], [8]]
    assert {name: rows.tolist() for name, rows in batch.reset.items()} == {
        "facts": [False, True],
        "task_progress": [False, False],
    }
    assert batch.answer_at.tolist() == [1, 2, 3, 5, 6, 14, 0, 0]
    assert batch.answers.tolist() == [2] * 6 + [IGNORE] * 2
    assert batch.to("cpu").answers.equal(batch.answers)


def same(a: Any, b: Any) -> bool:
    if a is None:
        return b is None
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return all(same(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, list | tuple) else same(vars(a), vars(b))


def test_batches_depend_on_seed_and_step_alone(tmp_path: Path, tokenizer: Any) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    assert recipe.backbone.train is not None
    for source in (
        AdapterBatches(recipe, recipe.adapter.train, tokenizer, NAMES),
        BackboneBatches(recipe, recipe.backbone.train, tokenizer),
    ):
        alone = list(batches(source, 0, 5, workers=0))
        assert all(same(a, b) for a, b in zip(alone, batches(source, 0, 5, workers=2), strict=True))
        assert all(same(a, b) for a, b in zip(alone[3:], batches(source, 3, 5, workers=0), strict=True))
        assert not same(alone[0], alone[1])
    first, second = (
        AdapterBatches(loaded, loaded.adapter.train, tokenizer, NAMES)(0)
        for loaded in (recipe, load_recipe(recipe_file(tmp_path), {"seed": 2}))
    )
    assert not same(first.answers, second.answers)


def test_the_world_is_encoded_as_the_chat_template_would(tmp_path: Path, tokenizer: Any) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    source = AdapterBatches(recipe, recipe.adapter.train, tokenizer, NAMES)
    plain = Encoder(tokenizer, NAMES)
    for record in [parse_record(RECORDS[i], "here") for i in range(4)]:
        assert source.encoder.record(record) == plain.record(record)
    batch = source(0)
    assert batch.memory.input_ids.shape[1] in (256, 1536)
    assert set(batch.memory.sub_states) == set(NAMES)


def test_memories_that_cannot_be_emptied_are_not_trained_to_forget(tmp_path: Path, tokenizer: Any) -> None:
    recipe = load_recipe(recipe_file(tmp_path), {"adapter.train.rows": 16})
    several = AdapterBatches(recipe, recipe.adapter.train, tokenizer, NAMES)
    assert any(several(step).reset["task_progress"].any() for step in range(4))
    shared = AdapterBatches(recipe, recipe.adapter.train, tokenizer, ("shared",))
    assert not any(shared(step).reset["shared"].any() for step in range(4))


def test_backbone_rows_weigh_answers_fully_and_the_rest_little(tmp_path: Path, tokenizer: Any) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    train = recipe.backbone.train
    assert train is not None
    packed, weights = BackboneBatches(recipe, train, tokenizer)(0)
    assert packed.input_ids.shape == weights.shape == (train.rows, train.length)
    assert set(weights.unique().tolist()) <= {0.0, 1.0, torch.tensor(train.other_weight).item()}
    assert (weights[packed.labels == IGNORE] == 0).all()
    learnt = packed.labels[weights == 1.0]
    assert tokenizer.eos_token_id in learnt.tolist()


def from_file(folder: Path, tokenizer: Any, records: list[Any], **overrides: Any) -> AdapterBatches:
    write_records(folder / "records.jsonl", records)
    recipe = file_recipe(folder, folder, **overrides)
    return AdapterBatches(recipe, recipe.adapter.train, tokenizer, NAMES)


@pytest.mark.parametrize(
    ("records", "changes", "message"),
    [
        (RECORDS, {"memory_tokens": [4]}, r"0 of 4 .* left out: 4 with a memory longer than 4 tokens"),
        (RECORDS, {"asked_tokens": 4}, r"4 with no conversation of at most 4 tokens \(asked_tokens\)"),
        ([{"messages": [ASKED, ANSWER]}] * 2, {}, "0 of 2 .* 2 with nothing in their memory"),
        ([], {}, "holds no records"),
    ],
    ids=["memory", "asked", "empty", "none"],
)  # fmt: skip
def test_files_of_which_nothing_fits_are_an_error(
    tmp_path: Path, tokenizer: Any, records: list[Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=rf"records\.jsonl.*{message}"):
        from_file(tmp_path, tokenizer, records, **{f"adapter__train__{name}": value for name, value in changes.items()})


def test_what_of_a_file_is_left_out_is_said(tmp_path: Path, tokenizer: Any) -> None:
    assert from_file(tmp_path, tokenizer, RECORDS).summary.endswith("records.jsonl: 4 of 4 records can be learnt")
    long = {"memory": [TELL | {"content": "The port is 8443. " * 40}], "messages": [ASKED, ANSWER]}
    much = {"memory": [TELL], "messages": [[ASKED, ANSWER]] * 9}
    source = from_file(tmp_path, tokenizer, [*RECORDS, long, {"messages": [ASKED, ANSWER]}, much])
    assert "5 of 7 records can be learnt; left out: 1 with a memory longer than 96 tokens" in source.summary
    assert "1 with nothing in their memory" in source.summary
    count = 8 + 9 - sum(len(source.shapes[-1].asked(record)) for record in source.file[source.shapes[-1]])
    assert count > 0 and f"; {count} of their 17 conversations do not fit beside the others" in source.summary
    cut = from_file(tmp_path, tokenizer, RECORDS, adapter__train__answer_tokens=2)
    assert "answers have" in cut.summary and "answer_tokens" in cut.summary


def test_a_rare_length_in_a_file_is_found(tmp_path: Path, tokenizer: Any) -> None:
    long = {"memory": [TELL | {"content": "The port is 8443. " * 20}], "messages": [ASKED, ANSWER]}
    source = from_file(tmp_path, tokenizer, [long, *RECORDS * 100], adapter__train__memory_tokens=[64, 512])
    lengths = {source(step).memory.input_ids.shape[1] for step in range(1500)}
    assert lengths == {64, 512}


def test_sessions_that_never_fit_are_an_error(tmp_path: Path, tokenizer: Any) -> None:
    recipe = load_recipe(recipe_file(tmp_path), {"adapter.train.memory_tokens": [4], "backbone.train.length": 8})
    with pytest.raises(RecipeError, match=r"200 sessions in a row do not fit.*memory_tokens"):
        AdapterBatches(recipe, recipe.adapter.train, tokenizer, NAMES)(0)
    assert recipe.backbone.train is not None
    with pytest.raises(RecipeError, match=r"at most 8 tokens \(length\)"):
        BackboneBatches(recipe, recipe.backbone.train, tokenizer)(0)
