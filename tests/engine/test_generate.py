"""Generation: batches, stop strings, streams, sampling, limits."""

import gc
from threading import Event, Thread

import pytest

from deltamem_agents.engine import Request, load_engine
from deltamem_agents.engine.pending import Chunks
from deltamem_agents.engine.text import ChatText
from deltamem_agents.errors import ContextOverflow, StateError
from deltamem_agents.memory import MemoryState

ASK = [{"role": "user", "content": "Where is the rice?"}]
LONGER = [
    {"role": "system", "content": "You are Otto."},
    *ASK,
    {"role": "assistant", "content": "In room seven."},
    *ASK,
]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "",
        "parameters": {"type": "object", "properties": {"item": {"type": "string"}}},
    },
}


def script(monkeypatch, engine, text, end=True):
    """Let the model say ``text``, whatever it is asked."""
    from deltamem_agents.engine.reply import Row

    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"] + (
        [engine.tokenizer.eos_token_id] if end else []
    )
    monkeypatch.setattr(Row, "forced", property(lambda self: True))
    monkeypatch.setattr(Row, "choose", lambda self, _: ids[len(self.tokens) % len(ids)])


@pytest.fixture(scope="module")
def memories(engine):
    told = [[{"role": "user", "content": f"The {thing} is in the tank."}] for thing in ("rice", "report", "door")]
    return engine.write_batch(engine.new_state(3), told)


def test_a_batch_answers_like_its_rows(engine, memories):
    conversations = [ASK, LONGER, ASK]
    together = engine.generate(conversations, memories, max_new_tokens=20)
    for i, conversation in enumerate(conversations):
        (alone,) = engine.generate([conversation], memories.rows([i]), max_new_tokens=20)
        assert together[i] == alone


def test_rows_may_end_at_different_times(engine, memories):
    requests = [Request(ASK, max_new_tokens=n) for n in (2, 17, 3)]
    for i, generation in enumerate(engine.generate_requests(requests, memories)):
        (alone,) = engine.generate_requests([requests[i]], memories.rows([i]))
        assert generation == alone


def test_memory_is_read_and_left_out(engine, memories):
    texts = {g.text for g in engine.generate([ASK] * 3, memories, max_new_tokens=20)}
    (without,) = engine.generate([ASK], max_new_tokens=20)
    (empty,) = engine.generate([ASK], engine.new_state(), max_new_tokens=20)
    assert without == empty
    assert len(texts | {without.text}) > 1


def test_counts_and_length(engine):
    (generation,) = engine.generate([ASK], max_new_tokens=4)
    assert generation.prompt_tokens == len(engine.text.prompt(ASK))
    assert (generation.finish_reason, generation.completion_tokens) == ("length", 4)
    with pytest.raises(ValueError, match="at least 1"):
        engine.generate([ASK], max_new_tokens=0)


@pytest.mark.parametrize("text", ["The tank is blue.", "Grüße 🙂 naïve 東京", "", "  spaced\n\n lines \n"])
def test_streaming_equals_generate(engine, monkeypatch, text):
    script(monkeypatch, engine, text)
    (whole,) = engine.generate([ASK])
    chunks = list(engine.stream(ASK))
    assert whole.text == text == "".join(chunk.text for chunk in chunks)
    assert chunks[-1].generation == whole
    assert all(chunk.generation is None for chunk in chunks[:-1])
    assert "\ufffd" not in "".join(chunk.text for chunk in chunks)


def test_streaming_equals_generate_for_the_real_model(engine, memories):
    (whole,) = engine.generate([LONGER], memories.rows([1]), max_new_tokens=40)
    chunks = list(engine.stream(LONGER, memories.rows([1]), max_new_tokens=40))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].generation == whole


def test_a_character_cut_off_by_the_limit_is_dropped(engine, monkeypatch):
    script(monkeypatch, engine, "ab🙂")
    (generation,) = engine.generate([ASK], max_new_tokens=4)
    assert generation.text == "ab"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["tank is"], "The "),
        (["k is b"], "The tan"),
        (["zzz", "e."], "The tank is blu"),
        (["blue", "tank is"], "The "),
        (["blue. The"], "The tank is blue."),
        ([""], "The tank is blue."),
    ],
)
def test_stop_strings(engine, monkeypatch, stop, expected):
    script(monkeypatch, engine, "The tank is blue.")
    (generation,) = engine.generate([ASK], stop=stop)
    assert (generation.text, generation.finish_reason) == (expected, "stop")
    assert "".join(chunk.text for chunk in engine.stream(ASK, stop=stop)) == expected


def test_half_a_stop_string_is_never_streamed(engine, monkeypatch):
    script(monkeypatch, engine, "The report is in the tank")
    seen = ""
    for chunk in engine.stream(ASK, stop=["report is in the tank"]):
        seen += chunk.text
        assert "r" not in seen


def test_closing_a_stream_ends_the_generation(engine, monkeypatch):
    steps = []
    stream = engine.stream(ASK, max_new_tokens=200)
    monkeypatch.setattr(
        engine.model, "forward", lambda *a, f=engine.model.forward, **k: (steps.append(1), f(*a, **k))[1]
    )
    next(stream)
    stream.close()
    gc.collect()
    assert 0 < len(steps) < 10
    assert engine.generate([ASK], max_new_tokens=1)


def test_an_open_stream_blocks_nobody(engine):
    stream = engine.stream(ASK, max_new_tokens=30)
    next(stream)
    assert engine.generate([ASK], max_new_tokens=2)
    stream.close()


def test_cancel(engine):
    event = Event()
    event.set()
    (generation,) = engine.generate([ASK], cancel=event)
    assert generation.completion_tokens == 0


def test_samples_depend_on_the_seed_not_on_the_batch(engine, memories):
    options = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 12}
    one, again, other = (engine.generate([ASK], memories.rows([0]), seed=s, **options)[0] for s in (1, 1, 2))
    assert one == again != other
    together = engine.generate([LONGER, ASK], memories.rows([1, 0]), seed=1, **options)
    assert together[1] == one
    assert len({g.text for g in engine.generate([ASK] * 4, temperature=1.0, max_new_tokens=12)}) > 1


def test_prompts_beyond_the_window(engine):
    long = [{"role": "user", "content": "tank " * 600}]
    with pytest.raises(ContextOverflow, match=r"\d+ tokens.*512"):
        engine.generate([long])
    nearly = [{"role": "user", "content": "7 " * 242}]
    room = engine.max_length - len(engine.text.prompt(nearly))
    assert 0 < room < 20
    (generation,) = engine.generate([nearly], max_new_tokens=256)
    assert generation.completion_tokens <= room


def test_answers(engine, memories):
    answers = engine.answer(memories, ["Where?", ASK, "When?"], batch_size=2, max_new_tokens=6)
    assert answers[1] == engine.generate([ASK], memories.rows([1]), max_new_tokens=6)[0].text
    assert len(engine.answer(memories.rows([0]), ["Where?"] * 3, max_new_tokens=2)) == 3
    assert len(engine.answer(None, ["Where?"], max_new_tokens=2)) == 1
    with pytest.raises(StateError, match="3 rows of state"):
        engine.answer(memories, ["Where?"] * 2)
    with pytest.raises(StateError, match="3 rows of state for 1"):
        engine.generate([ASK], memories)


def test_threads_do_not_mix_memories(engine, memories):
    expected = [engine.generate([ASK], memories.rows([i]), max_new_tokens=12)[0].text for i in range(3)]
    states = [engine.write(memories.rows([i]), ASK) for i in range(3)]
    wrong = []

    def work(i):
        for _ in range(4):
            if engine.generate([ASK], memories.rows([i]), max_new_tokens=12)[0].text != expected[i]:
                wrong.append(i)
            written = engine.write(memories.rows([i]), ASK)
            if any((written.tensors[n] != t).any() for n, t in states[i].tensors.items()):
                wrong.append(i)

    threads = [Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_engine_for_all_threads(tiny_adapter, engine):
    found = []
    threads = [Thread(target=lambda: found.append(load_engine(str(tiny_adapter), device="cpu"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one is engine for one in found)
    assert isinstance(engine.new_state(2), MemoryState)


def test_tool_calls_are_taken_out_of_streams(engine, monkeypatch):
    call = '<tool_call>\n{"name": "look_up", "arguments": {"item": "rice"}}\n</tool_call>'
    script(monkeypatch, engine, f"Let me see. \n{call}\n{call}")
    (whole,) = engine.generate([ASK], tools=[TOOL])
    assert (whole.text, whole.finish_reason) == ("Let me see.", "tool_calls")
    assert [(c["name"], c["arguments"]) for c in whole.tool_calls] == [("look_up", {"item": "rice"})] * 2
    assert len({c["id"] for c in whole.tool_calls}) == 2
    assert "".join(chunk.text for chunk in engine.stream(ASK, tools=[TOOL])) == "Let me see."
    (plain,) = engine.generate([ASK])
    assert plain.text.endswith(call) and not plain.tool_calls


def test_streams_show_each_call_when_it_is_whole(engine, monkeypatch):
    call = '<tool_call>\n{"name": "look_up", "arguments": {"item": "rice"}}\n</tool_call>'
    script(monkeypatch, engine, f"{call}<tool_call>[]</tool_call> One. {call} Two.")
    chunks = list(engine.stream(ASK, tools=[TOOL]))
    whole = chunks[-1].generation
    assert [c for chunk in chunks for c in chunk.calls] == whole.tool_calls and len(whole.tool_calls) == 2
    assert len(whole.invalid_tool_calls) == 1 and whole.text == "One.\nTwo."
    shown = [i for i, chunk in enumerate(chunks) if chunk.calls]
    said = ["".join(chunk.text for chunk in chunks[: i + 1]) for i in shown]
    assert said[0] == "" and said[1].endswith("One.") and "Two" not in said[1]


def test_without_parallel_calls_a_reply_ends_after_the_first(engine, monkeypatch):
    call = '<tool_call>\n{"name": "look_up", "arguments": {"item": "rice"}}\n</tool_call>'
    script(monkeypatch, engine, f"See. {call}\n{call} done")
    (whole,) = engine.generate([ASK], tools=[TOOL], parallel_tool_calls=False, stop=["zzz"])
    assert (whole.text, len(whole.tool_calls), whole.finish_reason) == ("See.", 1, "tool_calls")
    (both,) = engine.generate([ASK], tools=[TOOL])
    assert whole.completion_tokens < both.completion_tokens and len(both.tool_calls) == 2


def test_template_options_reach_the_template(engine, monkeypatch):
    seen = []
    monkeypatch.setattr(ChatText, "prompt", lambda self, *given: (seen.append(given), [5, 6])[1])
    engine.generate([ASK], max_new_tokens=1)
    engine.generate([ASK], template_options={"enable_thinking": False}, max_new_tokens=1)
    assert seen == [(ASK, None), (ASK, None, {"enable_thinking": False})]


def test_a_stream_that_takes_too_long(engine):
    engine.lock.acquire()
    try:
        reply = engine.scheduler.submit(Request(ASK, max_new_tokens=200))
        with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
            next(Chunks(reply, timeout=0.05))
    finally:
        engine.lock.release()
    assert reply.result().completion_tokens < 200
    in_time = Chunks(engine.scheduler.submit(Request(ASK, max_new_tokens=3)), timeout=20)
    assert list(in_time)[-1].generation.completion_tokens == 3


def test_a_named_tool_is_called(engine, monkeypatch):
    script(monkeypatch, engine, ' {"item": "rice"}}\n</tool_call>')
    (generation,) = engine.generate([ASK], tools=[TOOL], tool_choice="look_up")
    assert [(c["name"], c["arguments"]) for c in generation.tool_calls] == [("look_up", {"item": "rice"})]
    with pytest.raises(ValueError, match="none of the tools"):
        engine.generate([ASK], tools=[TOOL], tool_choice="fly")


def test_some_tool_is_called(engine, memories):
    other = {"type": "function", "function": {"name": "report", "parameters": {}}}
    for generation in engine.generate([ASK] * 3, memories, [TOOL, other], tool_choice="any", max_new_tokens=40):
        calls = [*generation.tool_calls, *generation.invalid_tool_calls]
        assert calls[0]["name"] in ("look_up", "report")
    (free,) = engine.generate([ASK], tools=[TOOL], tool_choice="none", max_new_tokens=5)
    assert free == engine.generate([ASK], max_new_tokens=5)[0]
