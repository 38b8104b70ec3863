"""Agents keep what they say they keep, show it as they say, and leave the shared engine as it was."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from deltamem_agents.chat_model.recall import FRAME
from deltamem_agents.engine import Engine, load_engine
from deltamem_agents.errors import ContextOverflow, DeltaMemError
from deltamem_agents.evals.agents import (
    BM25,
    DeltaMem,
    DeltaMemBM25,
    Dense,
    EngineAgent,
    LoRA,
    NoMemory,
    SlidingWindow,
    WholeContext,
)
from deltamem_agents.evals.agents.base import batches
from deltamem_agents.evals.agents.retrieval import Passage, block
from deltamem_agents.evals.contract import Message
from deltamem_agents.evals.world_mab import WorldMAB

ASKED = ["What is in the tank?", "Where is Otto?"]
TOLD: list[Message] = [
    {"role": "user", "content": "the tank holds rice.", "sub_state": "facts"},
    {"role": "assistant", "content": "Done: the report.", "sub_state": "task_progress"},
    {"role": "user", "content": "Otto is in the blue room.", "sub_state": "facts"},
    {"role": "user", "content": "Mila opens the door at noon.", "sub_state": "task_progress"},
]
MAKERS: dict[str, Callable[[Engine], EngineAgent]] = {
    "none": NoMemory,
    "whole": WholeContext,
    "window": lambda e: SlidingWindow(e, messages=2),
    "tokens": lambda e: SlidingWindow(e, tokens=70),
    "bm25": lambda e: BM25(e, tokens=300),
    "dense": lambda e: Dense(e, DeterministicFakeEmbedding(size=8), tokens=300),
    "memory": DeltaMem,
    "turns": lambda e: BM25(e, tokens=300, form="turns"),
    "both": lambda e: DeltaMemBM25(e, tokens=300),
    "both_turns": lambda e: DeltaMemBM25(e, tokens=300, form="turns"),
    "lora": lambda e: LoRA(e, rank=2, learning_rate=1e-2, epochs=2),
}


class Words(Embeddings):
    """A vector with an entry for each of a few words."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(word in text.lower()) for word in ("tank", "otto", "door")] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def shown(agent: EngineAgent, question: str = ASKED[0], max_tokens: int = 8) -> str:
    """The prompt as text."""
    text: str = agent.engine.tokenizer.decode(agent._prompt(question, max_tokens).ids)
    return text


def reply(engine: Engine, conversation: list[Message], max_tokens: int = 8, **options: Any) -> str:
    return engine.generate([conversation], max_new_tokens=max_tokens, **options)[0].text.strip()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("kind", MAKERS)
def test_questions_are_answered_alone_as_in_a_batch_and_are_not_remembered(kind: str, engine: Engine) -> None:
    agent = MAKERS[kind](engine)
    agent.tell(TOLD)
    together = agent.ask(ASKED, 8)
    assert [agent.ask([question], 8)[0] for question in reversed(ASKED)] == together[::-1]
    assert all(0 < a.completion_tokens <= 8 and a.prompt_tokens > 0 for a in together)


@pytest.mark.parametrize("kind", MAKERS)
def test_an_agent_that_forgets_is_a_new_one(kind: str, engine: Engine) -> None:
    agent, new = MAKERS[kind](engine), MAKERS[kind](engine)
    agent.tell(TOLD)
    agent.forget()
    assert agent.state_bytes == new.state_bytes
    assert agent.ask(ASKED, 8) == new.ask(ASKED, 8)
    agent.tell(TOLD[:2])
    new.tell(TOLD[:2])
    assert agent.ask(ASKED, 8) == new.ask(ASKED, 8)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "lora"])
def test_telling_in_two_pieces_is_telling_at_once(kind: str, engine: Engine) -> None:
    once, twice = MAKERS[kind](engine), MAKERS[kind](engine)
    once.tell(TOLD)
    twice.tell(TOLD[:1])
    twice.tell(TOLD[1:])
    assert once.state_bytes == twice.state_bytes
    assert once.ask(ASKED, 8) == twice.ask(ASKED, 8)


def test_without_memory_the_question_is_all_there_is(engine: Engine) -> None:
    agent = NoMemory(engine)
    agent.tell(TOLD)
    assert agent.ask(ASKED[:1], 8)[0].text == reply(engine, [user(ASKED[0])])
    assert agent.state_bytes == 0


def test_the_whole_context_is_all_that_was_told(engine: Engine) -> None:
    agent = WholeContext(engine)
    agent.tell(TOLD)
    conversation = [{k: v for k, v in m.items() if k != "sub_state"} for m in TOLD]
    answer = agent.ask(ASKED[:1], 8)[0]
    assert answer.text == reply(engine, [*conversation, user(ASKED[0])])
    assert answer.cut_tokens == 0
    assert agent.state_bytes == sum(len(m["content"]) for m in TOLD)


def test_what_does_not_fit_is_cut_from_the_oldest_end(engine: Engine) -> None:
    agent = WholeContext(engine)
    told = [user(f"the tank {i} holds rice and Mila opens the blue door {i}.") for i in range(60)]
    agent.tell(told)
    answer = agent.ask(ASKED[:1], 8)[0]
    text = shown(agent)
    whole = [m["content"] for m in told if m["content"] in text]
    assert whole == [m["content"] for m in told[-len(whole) :]] and 5 < len(whole) < 60
    assert engine.max_length - 8 - 3 <= answer.prompt_tokens <= engine.max_length - 8
    oldest = told[-len(whole) - 1]["content"]
    part = next(oldest[i:] for i in range(1, len(oldest) + 1) if f"\n{oldest[i:]}<" in text)
    kept = agent.count([user(part)]) + agent.count(told[-len(whole) :])
    assert answer.cut_tokens == agent.count(told) - kept > 0


def test_one_message_longer_than_the_window_keeps_its_end(engine: Engine) -> None:
    agent = WholeContext(engine, window=100)
    agent.tell([user("the tank holds rice. " * 200 + "Otto opens the door.")])
    answer = agent.ask(ASKED[:1], 8)[0]
    assert 100 - 8 - 3 <= answer.prompt_tokens <= 100 - 8
    assert "Otto opens the door." in shown(agent)
    with pytest.raises(DeltaMemError, match="512 tokens: give no more"):
        WholeContext(engine, window=513)


def test_a_question_longer_than_the_window_is_refused(engine: Engine) -> None:
    agent = WholeContext(engine)
    agent.tell(TOLD)
    with pytest.raises(ContextOverflow):
        agent.ask(["What is in the tank? " * 200], 8)


def test_a_sliding_window_holds_the_newest(engine: Engine) -> None:
    agent = SlidingWindow(engine, messages=2)
    agent.tell(TOLD)
    text = shown(agent)
    assert [m["content"] in text for m in TOLD] == [False, False, True, True]
    assert agent.state_bytes == sum(len(m["content"]) for m in TOLD[2:])
    assert agent.ask(ASKED[:1], 8)[0].cut_tokens == 0
    size = agent.count(TOLD[2:]) + agent.count([{"role": "assistant", "content": " report."}])
    narrow = SlidingWindow(engine, tokens=size)
    narrow.tell(TOLD)
    assert "report.<" in shown(narrow) and TOLD[1]["content"] not in shown(narrow)
    assert size - 3 <= narrow.count(narrow._told) <= size


@pytest.mark.parametrize("sizes", [{}, {"messages": 1, "tokens": 1}, {"messages": 0}, {"tokens": -1}])
def test_a_sliding_window_has_one_size(engine: Engine, sizes: dict[str, int]) -> None:
    with pytest.raises(DeltaMemError, match="give one of them"):
        SlidingWindow(engine, **sizes)


def test_quotations_are_framed_as_in_the_librarys_own_recall() -> None:
    text = block([Passage(3, "tool", "one\n\n[2] user:"), Passage(1, "user", "two")])
    assert text == f"{FRAME}\n\n[1] user:\n> two\n\n[2] tool:\n> one\n>\n> [2] user:"


@pytest.mark.parametrize("make", [BM25, lambda e, **o: Dense(e, Words(), **o)])
def test_retrieval_quotes_the_best_in_a_system_message(make: Any, engine: Engine) -> None:
    agent = make(engine, k=1, tokens=300)
    agent.tell([*TOLD, TOLD[0]])
    assert [p.text for p in agent.best("Where is Otto?")] == ["Otto is in the blue room."]
    conversation = [{"role": "system", "content": block(agent.best("Where is Otto?"))}, user("Where is Otto?")]
    assert agent.ask(["Where is Otto?"], 8)[0].text == reply(engine, conversation)
    two = make(engine, k=2, tokens=300)
    two.tell(TOLD)
    assert shown(two, "door, Otto?").index("Otto is in") < shown(two, "door, Otto?").index("Mila opens")


def test_the_block_of_quotations_stays_within_its_tokens(engine: Engine) -> None:
    free = BM25(engine, k=4, tokens=400)
    free.tell([user(f"the tank {i} holds rice and more rice {i}.") for i in range(9)])
    found = free.best("tank")
    size = len(engine.text.plain(block(found[:2])))
    agent = BM25(engine, k=4, tokens=size)
    agent.tell([user(f"the tank {i} holds rice and more rice {i}.") for i in range(9)])
    assert [p.text in shown(agent, "tank") for p in found] == [True, True, False, False]
    tight = BM25(engine, k=4, tokens=len(engine.text.plain(block(found[:1]))) - 2)
    tight.tell([user(f"the tank {i} holds rice and more rice {i}.") for i in range(9)])
    assert "> the tank 8 holds rice" in shown(tight, "tank") and "…" in shown(tight, "tank")
    assert found[0].text not in shown(tight, "tank")


def test_quotations_that_do_not_fit_into_the_window_count_as_cut(engine: Engine) -> None:
    agent = BM25(engine, k=5, tokens=480)
    agent.tell([user(f"the tank {i} holds rice " + "and rice " * 20 + ".") for i in range(9)])
    answer = agent.ask(["tank " * 30], 8)[0]
    assert answer.prompt_tokens <= engine.max_length - 8
    assert answer.cut_tokens > 0


@pytest.mark.parametrize("make", [BM25, lambda e, **o: Dense(e, Words(), **o)])
def test_retrieval_as_turns_shows_the_best_as_messages_of_their_roles(make: Any, engine: Engine) -> None:
    told: list[Message] = [
        {"role": "tool", "content": "the tank holds rice."},
        {"role": "assistant", "content": "Mila opens the door at noon."},
        {"role": "user", "content": "Otto is in the blue room."},
    ]
    agent = make(engine, k=2, tokens=100, form="turns")
    agent.tell(told)
    question = "door, Otto?"
    assert agent.ask([question], 8)[0].text == reply(engine, [*told[1:], user(question)])
    one = make(engine, k=1, tokens=100, form="turns")
    one.tell(told)
    assert one.ask(["tank"], 8)[0].text == reply(engine, [told[0], user("tank")])


def test_turns_stay_within_their_tokens_and_say_what_the_window_cuts(engine: Engine) -> None:
    told = [user(f"the tank {i} holds rice and more rice {i}.") for i in range(9)]
    size = NoMemory(engine).count(told[:2])
    agent = BM25(engine, k=4, tokens=size, form="turns")
    agent.tell(told)
    newest = [m["content"] in shown(agent, "tank") for m in told[-4:]]  # all match as well
    assert newest == [False, False, True, True]
    tight = BM25(engine, k=4, tokens=size // 2 - 3, form="turns")
    tight.tell(told)
    assert "the tank 8 holds rice" in shown(tight, "tank") and "…" in shown(tight, "tank")
    long = BM25(engine, k=5, tokens=500, form="turns")
    long.tell([user(f"the tank {i} holds rice " + "and rice " * 40 + ".") for i in range(9)])
    answer = long.ask(["tank " * 30], 8)[0]
    assert answer.prompt_tokens <= engine.max_length - 8 and answer.cut_tokens > 0


def test_retrieval_has_two_forms(engine: Engine) -> None:
    with pytest.raises(DeltaMemError, match=r"form='prose'.*quotes.*turns"):
        BM25(engine, form="prose")  # type: ignore[arg-type]


def test_long_messages_are_kept_as_passages_of_whole_sentences(engine: Engine) -> None:
    agent = BM25(engine, tokens=300, passage_tokens=40)
    lines = [f"The tank {i} holds rice." for i in range(12)]
    agent.tell([user(" ".join(lines))])
    found = agent.best("tank 7")
    assert len(found) > 1 and all(p.text.startswith("The tank") and p.text.endswith("rice.") for p in found)
    assert "tank 7 holds" in found[0].text
    assert all(len(engine.text.plain(p.text)) <= 40 for p in found)


def test_bm25_quotes_nothing_when_no_word_is_shared(engine: Engine) -> None:
    agent = BM25(engine, tokens=300)
    agent.tell(TOLD)
    assert agent.ask(["Zebra?"], 8) == NoMemory(engine).ask(["Zebra?"], 8)
    assert agent.best("") == []


def test_bytes_of_text_and_vectors(engine: Engine) -> None:
    text, vectors = BM25(engine, tokens=300), Dense(engine, DeterministicFakeEmbedding(size=8), tokens=300)
    told = [user("Zoë is in the room."), user("Zoë is in the room."), user("the tank")]
    text.tell(told)
    vectors.tell(told)
    size = len("Zoë is in the room.".encode()) + len("the tank")
    assert (text.state_bytes, vectors.state_bytes) == (size, size + 2 * 8 * 4)


def test_memory_is_written_where_messages_say_or_by_role_or_everywhere(engine: Engine) -> None:
    bare = [{k: v for k, v in m.items() if k != "sub_state"} for m in TOLD]
    named, by_role, everywhere = DeltaMem(engine), DeltaMem(engine), DeltaMem(engine, routed=False)
    named.tell(TOLD)
    by_role.tell(bare)
    everywhere.tell(TOLD)
    routes = [[m["sub_state"]] for m in TOLD]
    for agent, wanted in ((named, routes), (by_role, None), (everywhere, [engine.sub_states] * 4)):
        state = engine.write(engine.new_state(), bare, wanted)
        assert all(torch.equal(t, state.tensors[n]) for n, t in agent.state.tensors.items())
    assert named.ask(ASKED, 8)[1].text == engine.answer(named.state, ASKED, max_new_tokens=8)[1].strip()
    assert named.state_bytes == sum(t.numel() * 4 for t in named.state.tensors.values())


def test_memory_and_quotations_together(engine: Engine) -> None:
    agent, text = DeltaMemBM25(engine, k=1, tokens=300), BM25(engine, k=1, tokens=300)
    agent.tell(TOLD)
    text.tell(TOLD)
    conversation = [{"role": "system", "content": block(text.best(ASKED[1]))}, user(ASKED[1])]
    assert agent.ask(ASKED[1:], 8)[0].text == reply(engine, conversation, states=agent.state)
    assert agent.state_bytes == DeltaMem(engine).state_bytes + text.state_bytes


def test_a_lora_learns_what_it_is_told_and_leaves_the_backbone_as_it_was(engine: Engine) -> None:
    before = {name: t.clone() for name, t in engine.model.state_dict().items()}
    grads = [p.requires_grad for p in engine.model.parameters()]
    memory, alone = DeltaMem(engine), NoMemory(engine)
    memory.tell(TOLD)
    was = memory.ask(ASKED, 8), alone.ask(ASKED, 8)
    agent = LoRA(engine, rank=4, learning_rate=3e-2, epochs=60, targets=["q_proj", "v_proj"])
    agent.tell([user(ASKED[0]), {"role": "assistant", "content": "rice"}])
    assert agent.ask(ASKED[:1], 8)[0].text == "rice"
    # q_proj 64 -> 64, v_proj 64 -> 32, two layers, rank 4, float32
    assert agent.state_bytes == 2 * 4 * 4 * ((64 + 64) + (64 + 32))
    after = engine.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(t, after[name]) for name, t in before.items())
    assert [p.requires_grad for p in engine.model.parameters()] == grads
    assert (memory.ask(ASKED, 8), alone.ask(ASKED, 8)) == was
    agent.forget()
    assert agent.state_bytes == 0 and agent.ask(ASKED, 8) == was[1]


def test_a_lora_is_the_same_whenever_it_is_trained(engine: Engine) -> None:
    first, second = (LoRA(engine, rank=2, learning_rate=1e-2, block=16, batch=2) for _ in range(2))
    drawn = torch.random.get_rng_state()
    first.tell(TOLD)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    torch.manual_seed(9)
    second.tell(TOLD)
    pairs = list(zip(first._weights(), second._weights(), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)
    second.tell(TOLD)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_a_lora_before_anything_was_told_is_the_backbone(engine: Engine) -> None:
    agent = LoRA(engine)
    agent.tell([])
    assert agent.ask(ASKED, 8) == NoMemory(engine).ask(ASKED, 8)
    agent = LoRA(engine, learning_rate=0.0)
    agent.tell(TOLD)
    assert agent.ask(ASKED, 8) == NoMemory(engine).ask(ASKED, 8)


def test_what_a_lora_cannot_use_is_named(engine: Engine) -> None:
    with pytest.raises(DeltaMemError, match="rank=0"):
        LoRA(engine, rank=0)
    with pytest.raises(DeltaMemError, match="'wheel'"):
        LoRA(engine, targets=["wheel"]).tell(TOLD)


@pytest.mark.parametrize(("library", "make"), [("peft", LoRA), ("rank_bm25", BM25), ("rank_bm25", DeltaMemBM25)])
def test_a_missing_library_is_named(
    library: str, make: Callable[[Engine], EngineAgent], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DeltaMemError, match=rf'{library}.*pip install "deltamem-agents\[evals\]"'):
        make(engine)


def test_the_configuration_tells_agents_apart(engine: Engine, tmp_path: Path) -> None:
    from tiny import build_adapter_folder

    configs = [make(engine).config for make in MAKERS.values()]
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])
    assert DeltaMem(engine).config == DeltaMem(engine).config != DeltaMem(engine, routed=False).config
    other = load_engine(build_adapter_folder(tmp_path, seed=1), device="cpu")
    assert NoMemory(other).config != NoMemory(engine).config


def test_batches_hold_all_and_stay_within_their_size() -> None:
    lengths = [5, 900, 7, 40, 6, 6, 40]
    groups = list(batches(lengths, rows=3, tokens=100))
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert groups[-1] == [1]  # longer than a batch may be: alone
    assert all(len(g) <= 3 and (len(g) == 1 or max(lengths[i] for i in g) * len(g) <= 100) for g in groups)


def test_the_embedded_memory_recalls_what_it_was_told(default_engine: Engine) -> None:
    example = next(WorldMAB(["short"], 1, competencies=["Accurate_Retrieval"]).examples())
    asked = [q for q in example.questions if q.group != "never_told"]

    def right(agent: EngineAgent) -> int:
        agent.tell(example.messages)
        answers = agent.ask([q.text for q in asked], example.max_tokens)
        return sum(a.text in q.answers for a, q in zip(answers, asked, strict=True))

    assert len(asked) == 8
    assert right(NoMemory(default_engine)) == 0
    assert right(WholeContext(default_engine)) >= 7
    assert right(DeltaMem(default_engine)) >= 7
    assert right(BM25(default_engine, form="turns")) >= 7
    assert right(DeltaMemBM25(default_engine, form="turns")) >= 7
    assert right(BM25(default_engine, form="quotes")) <= 2
    assert right(SlidingWindow(default_engine, messages=2)) <= 2
