"""Batch: replies that join, leave and go on between steps say what they would have said alone."""

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "memory"))

from memory_backbones import BACKBONES, OTHERS, build, random_adapter

from deltamem_agents.engine import Engine, Request
from deltamem_agents.engine.batch import Batch
from deltamem_agents.engine.generate import Decoding
from deltamem_agents.engine.lane import Lane
from deltamem_agents.engine.reply import Generation
from deltamem_agents.engine.ring import windows
from deltamem_agents.errors import BackboneError
from deltamem_agents.memory import MemoryState, attach


def alone(engine: Engine, request: Request, state: MemoryState | None) -> Generation:
    """The reply as the backbone's own cache gives it, one row and no padding."""
    row = engine.row(request)
    decoding = Decoding(engine, [row], state)
    while not decoding.finished:
        decoding.step()
    return row.result()


def in_a_crowd(engine, requests, states, seed, limit=8) -> list[Generation]:
    """The replies when rows come at random moments, and are now and then put back and come again."""
    batch, rng = Batch(engine, limit), random.Random(seed)
    rows = [engine.row(request) for request in requests]
    waiting = list(range(len(rows)))
    while waiting or batch.rows:
        if waiting and rng.random() < 0.4:
            fit = batch.room([rows[i] for i in waiting])
            now, waiting = waiting[:fit], waiting[fit:]
            if now:
                batch.join([rows[i] for i in now], [states[i] for i in now])
        if batch.rows and rng.random() < 0.05:
            batch.leave(row := rng.choice(batch.rows))
            waiting.append(rows.index(row))
        assert len(batch.rows) <= limit
        batch.step()
    return [row.result() for row in rows]


def ask(i: int, **options) -> Request:
    told = [{"role": "user", "content": "Where is the rice? " * (1 + i % 5)}]
    return Request(told, max_new_tokens=5 + 7 * (i % 6), seed=i, **options)


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_answers_like_its_rows(engine, seed):
    states = [
        None
        if i % 4 == 0
        else engine.write(engine.new_state(), [{"role": "user", "content": f"The {word} is in the tank."}])
        for i, word in enumerate(["rice", "report", "door", "Mila"] * 4)
    ]
    requests = [ask(i, temperature=0.0 if i % 3 else 0.8, top_p=0.9 if i % 2 else None) for i in range(16)]
    want = [alone(engine, request, state) for request, state in zip(requests, states, strict=True)]
    assert in_a_crowd(engine, requests, states, seed) == want


@pytest.mark.parametrize("name", [*BACKBONES, *OTHERS])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_backbone(engine, name, attention):
    """Prompts longer than the sliding windows (8) too, and backbones whose cache is no ring."""
    model = build(name)
    try:
        model.set_attn_implementation(attention)
    except ValueError:
        pytest.skip(f"{name} has no {attention} attention")
    if name == "gemma2" and attention == "sdpa":
        pytest.skip("its capped scores need eager attention")
    heads = tuple(h for h in (BACKBONES | OTHERS)[name].heads if h in "qo")
    memory = attach(model, random_adapter(model, delta_heads=heads))
    own = Engine(model, engine.tokenizer, memory)
    rng = random.Random(1)
    requests = [Request(ids=[rng.randrange(3, 64) for _ in range(3 + 2 * i)], max_new_tokens=12) for i in range(6)]
    states = [_random_state(own, i) for i in range(6)]
    want = [alone(own, request, state) for request, state in zip(requests, states, strict=True)]
    assert in_a_crowd(own, requests, states, seed=2, limit=4) == want


def test_the_ring_goes_round(engine, monkeypatch):
    """Replies one after the other in one lane, until its columns have been used more than once."""
    monkeypatch.setattr("deltamem_agents.engine.batch.FEWEST_COLUMNS", 64)
    batch, requests = Batch(engine), [ask(4 * i, stop=()) for i in range(12)]
    long = engine.row(Request(ask(0).conversation, max_new_tokens=40))
    got, want = [], [alone(engine, request, None) for request in requests]
    batch.join([long], [None])
    for request in requests:
        row = engine.row(request)
        batch.join([row], [None])
        while row.finish_reason is None:
            batch.step()
        got.append(row.result())
    assert got == want
    assert long.result() == alone(engine, long.request, None)


def test_shapes_are_bounded_and_memory_is_given_back(engine, monkeypatch):
    made = []
    before = Lane.__init__
    monkeypatch.setattr(Lane, "__init__", lambda self, *a: (made.append(a[1:3]), before(self, *a))[1])
    in_a_crowd(engine, [ask(i) for i in range(40)], [None] * 40, seed=5, limit=16)
    assert {rows for rows, _ in made} <= {1, 2, 4, 8, 16} and {columns for _, columns in made} == {256}
    batch = Batch(engine)
    batch.join([engine.row(ask(1))], [None])
    batch.trim()
    assert len(batch.rows) == 1
    batch.leave(batch.rows[0])
    batch.trim()
    assert batch.room([engine.row(ask(1))]) == 1


def test_room(engine, monkeypatch):
    rows = [engine.row(ask(i)) for i in range(10)]
    assert Batch(engine, limit=4).room(rows) == 4
    monkeypatch.setattr("deltamem_agents.engine.batch.CACHE_TOKENS", 128)
    assert 1 <= Batch(engine).room(rows) < 4
    monkeypatch.setattr("deltamem_agents.engine.batch.PROMPT_TOKENS", 1)
    assert Batch(engine).room(rows) == 1


def test_what_cannot_be_is_said(engine, tiny_adapter):
    with pytest.raises(BackboneError, match=r"decode='fast'.*eager, graph, compile"):
        Engine(engine.model, engine.tokenizer, engine.memory, decode="fast")
    assert windows(build("qwen3")) == {"full_attention": None}
    assert windows(build("mistral")) == {"sliding_attention": 8}
    assert windows(build("gemma2")) == {"full_attention": None, "sliding_attention": 8}


def _random_state(engine: Engine, seed: int) -> MemoryState:
    generator = torch.Generator().manual_seed(seed)
    state = engine.new_state()
    tensors = {name: 0.3 * torch.randn(t.shape, generator=generator) for name, t in state.tensors.items()}
    return MemoryState(tensors, state.sub_states, state.fingerprint)
