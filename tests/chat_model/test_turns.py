"""What is remembered of a call: each message once, however the history is passed."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from deltamem_agents.chat_model.aligning import to_said
from deltamem_agents.chat_model.memory import AgentMemory
from deltamem_agents.chat_model.replay import forget
from deltamem_agents.chat_model.serving import Served
from deltamem_agents.chat_model.turns import finish_turn, plan_turn, write_earlier
from deltamem_agents.engine import load_engine
from deltamem_agents.store import Filter, open_store

SYSTEM = SystemMessage("Be brief.")


class Talk:
    """Calls of a model that says what it is told to, for one agent and thread."""

    texts: dict[str, str] = {}  # noqa: RUF012 - of all content hashes: a store may keep these alone

    def __init__(self, memory, agent="otto", thread=None):
        self.memory, self.who = memory, Served(agent, None, False, thread_id=thread)
        self.store = memory.store

    def call(self, messages, says):
        """Answer, and return the reply; what is passed is told for ``journal``."""
        plan = plan_turn(self.memory, self.who, messages)
        self.plan = write_earlier(self.memory, self.who, plan)
        reply = AIMessage(says, id=f"lc_run--{uuid4()}")
        self.note([*messages, reply])
        self.wrote = finish_turn(self.memory, self.who, self.plan, reply)
        return reply

    def note(self, messages):
        self.texts |= {one.entry.content_hash: one.entry.content for one in to_said(messages, self.memory.engine)}

    @property
    def head(self):
        return self.store.head(self.who.agent_id)

    @property
    def journal(self):
        """What was written on the way to the head."""
        records = self.store.journal(self.who.agent_id) if self.head else []
        return [self.texts[record.entry.content_hash] for record in records]


@pytest.fixture(params=["full", "hash"])
def memory(request, tiny_adapter, tmp_path):
    """A store of hashes alone must do."""
    with open_store(str(tmp_path / f"{request.param}.db"), journal=request.param) as store:
        yield AgentMemory(load_engine(str(tiny_adapter), device="cpu"), store)


@pytest.fixture
def full(tiny_adapter, tmp_path):
    with open_store(str(tmp_path / "memory.db")) as store:
        yield AgentMemory(load_engine(str(tiny_adapter), device="cpu"), store)


@pytest.fixture
def talk(memory):
    return Talk(memory)


def bare(messages):
    """The same messages without ids."""
    return [message.model_copy(update={"id": None}) for message in messages]


def fresh(messages):
    """The same messages with new ids."""
    return [message.model_copy(update={"id": str(uuid4())}) for message in messages]


def said(text, identity=None):
    return HumanMessage(text, id=identity)


def test_the_new_message_only(talk):
    for i in range(3):
        talk.call([SYSTEM, said("yes")], f"a{i}")
    assert talk.journal == ["yes", "a0", "yes", "a1", "yes", "a2"]
    assert talk.wrote["memory_version_after"] == talk.head and talk.wrote["tokens_written"] > 0


@pytest.mark.parametrize("form", [list, bare, fresh], ids=["ids", "no ids", "fresh ids"])
@pytest.mark.parametrize("window", [100, 4, 3, 2, 1])
def test_the_whole_history_or_a_window(talk, form, window):
    history = []
    for i in range(5):
        history.append(said("yes" if i in (2, 3) else f"h{i}", f"id{i}"))
        history.append(talk.call([SYSTEM, *form(history)[-window:]], f"a{i % 4}"))
    assert talk.journal == [message.content for message in history]


def test_what_was_said_before_is_written_before_the_answer(talk):
    old = [said("h0"), AIMessage("x0"), said("unanswered")]
    talk.call([SYSTEM, *old, said("h1")], "a1")
    assert talk.journal == ["h0", "x0", "unanswered", "h1", "a1"]
    first = talk.store.version("otto", talk.head).parent
    assert talk.plan.version == first  # the answer read it
    records = talk.store.journal("otto")
    assert talk.wrote["tokens_written"] == sum(record.entry.tokens for record in records)
    talk.call([*old, said("h1"), AIMessage("a1"), said("h2"), AIMessage("x2"), said("h3")], "a3")
    assert talk.journal == ["h0", "x0", "unanswered", "h1", "a1", "h2", "x2", "h3", "a3"]


def test_without_an_answer_the_memory_is_as_it_was(talk):
    old = [said("h0"), AIMessage("x0"), said("unanswered"), said("h1")]
    talk.call([said("first")], "a0")
    before = talk.head
    plan = write_earlier(talk.memory, talk.who, plan_turn(talk.memory, talk.who, old))
    assert talk.store.version("otto", plan.version).parent == before == talk.head  # read, and not the head
    talk.call(old, "a1")
    assert talk.journal == ["first", "a0", "h0", "x0", "unanswered", "h1", "a1"]
    assert talk.plan.version == plan.version


def test_calls_at_the_same_time_write_their_history_once(talk):
    old = [said("h0"), AIMessage("x0")]
    asked = [[*old, said("h1")], [*old, said("h2")], [said("other"), AIMessage("y"), said("h3")]]
    plans = [write_earlier(talk.memory, talk.who, plan_turn(talk.memory, talk.who, messages)) for messages in asked]
    for messages in asked:
        talk.note(messages)
    for i, plan in enumerate(plans, 1):
        reply = AIMessage(f"a{i}")
        talk.note([reply])
        finish_turn(talk.memory, talk.who, plan, reply)
    assert talk.journal == ["h0", "x0", "h1", "a1", "h2", "a2", "other", "y", "h3", "a3"]


def test_what_was_answered_elsewhere_and_missed_is_written_once(talk):
    history = [said("h0"), talk.call([said("h0")], "a0"), said("x"), AIMessage("y"), said("no answer")]
    history += [said("h1"), talk.call([said("h1")], "a1")]
    for i in range(2, 5):
        history.append(said(f"h{i}"))
        history.append(talk.call(bare(history), f"a{i}"))
    assert sorted(talk.journal) == sorted(message.content for message in history)


def test_examples_in_a_prompt_are_written_once_and_replace_nothing(memory):
    examples = [SYSTEM, said("in"), AIMessage("out")]
    for thread in (None, "t"):
        talk = Talk(memory, f"agent {thread}", thread)
        for i in range(20):
            talk.call([*examples, said(f"h{i}")], f"a{i}")
        talk.call([*examples, said("h19")], "again")
        assert talk.journal == ["in", "out", *(t for i in range(20) for t in (f"h{i}", f"a{i}")), "h19", "again"]


def test_the_same_call_again_writes_nothing_twice(talk):
    first = [said("h0", "1")]
    reply = talk.call(first, "a0")
    head = talk.head
    talk.call(first, "a0")
    assert talk.head == talk.wrote["memory_version_after"] == head and talk.wrote["tokens_written"] == 0
    second = [*first, reply, said("h1", "2")]
    talk.call(second, "a1")
    talk.call(second, "a1 otherwise")
    assert talk.journal == ["h0", "a0", "h1", "a1 otherwise"]
    Talk(talk.memory, thread="t").call([said("note")], "noted")
    talk.call(second, "a1 otherwise")
    assert talk.journal == ["h0", "a0", "h1", "a1 otherwise", "note", "noted"]
    talk.call(second, "a1 at last")
    assert talk.journal == ["h0", "a0", "h1", "a1 otherwise", "note", "noted", "a1 at last"]


def test_a_first_message_that_was_edited_by_its_id(talk):
    talk.call([said("h0", "1")], "a0")
    talk.call([said("h0 edited", "1")], "b0")
    assert talk.plan.replaces and talk.plan.version is None
    assert talk.journal == ["h0 edited", "b0"]


@pytest.mark.parametrize("form", [list, bare, fresh])
@pytest.mark.parametrize("text", ["h1", "h1 edited"])
def test_the_last_turn_regenerated_or_edited(memory, form, text):
    talk = Talk(memory, thread="t")
    history = [said("h0", "1")]
    history.append(talk.call(form(history), "a0"))
    before = talk.head
    talk.call(form([*history, said("h1", "2")]), "a1")
    old = talk.head
    talk.call(form([*history, said(text, "2")]), "b1")
    assert talk.plan.version == before  # the answer did not read what it replaces
    assert talk.journal == ["h0", "a0", text, "b1"]
    assert talk.store.version("otto", old).retired
    after = [*history, said(text, "2"), AIMessage("b1"), said("h2", "3")]
    talk.call(form(after), "a2")
    assert talk.journal == ["h0", "a0", text, "b1", "h2", "a2"]
    talk.call(form([*history, said("h1", "2")]), "late")
    written = form is list and text == "h1"  # by its id: the reply alone is new
    assert talk.journal[6:] == (["late"] if written else ["h1", "late"])


def test_of_no_thread_the_same_question_is_regenerated_and_another_is_appended(talk):
    history = [said("h0")]
    history.append(talk.call(history, "a0"))
    talk.call(bare([*history, said("h1")]), "a1")
    talk.call(bare([*history, said("h1")]), "b1")
    assert talk.journal == ["h0", "a0", "h1", "b1"]
    talk.call(bare([*history, said("h2")]), "a2")
    assert talk.journal == ["h0", "a0", "h1", "b1", "h2", "a2"]


def test_nothing_is_replaced_when_others_wrote_meanwhile(memory):
    talk = Talk(memory, thread="t")
    history = [said("h0")]
    history.append(talk.call(history, "a0"))
    talk.call([*history, said("h1")], "a1")
    note = [said("note")]
    talk.note(note)
    plan = plan_turn(memory, talk.who, [*history, said("h1 edited")])
    assert plan.replaces
    memory.remember(note, "otto")
    talk.note([said("h1 edited"), AIMessage("b1")])
    finish_turn(memory, talk.who, plan, AIMessage("b1"))
    assert talk.journal == ["h0", "a0", "h1", "a1", "note", "h1 edited", "b1"]


def test_another_thread_is_another_conversation(memory):
    one, other = Talk(memory, thread="1"), Talk(memory, thread="2")
    history = [said("h0")]
    history.append(one.call(history, "a0"))
    other.call([said("h0"), AIMessage("a0"), said("h1")], "b1")
    one.call(bare([*history, said("h1")]), "a1")
    assert one.journal == ["h0", "a0", "h0", "a0", "h1", "b1", "h1", "a1"]


def test_tools(memory):
    talk = Talk(memory, thread="t")
    asks = AIMessage("", tool_calls=[{"name": "look_up", "args": {"item": "rice"}, "id": "c1"}], id="lc_run--x")
    found = ToolMessage("room seven", tool_call_id="c1")
    question = [SYSTEM, said("where is the rice?")]
    finish_turn(memory, talk.who, plan_turn(memory, talk.who, question), asks)
    talk.note([asks])
    for says in ("seven", "in room seven"):
        talk.call([*question, asks.model_copy(update={"id": None}), found], says)
        assert talk.journal == ["where is the rice?", "", "room seven", says]
    talk.call([*question, asks, found, AIMessage("in room seven"), said("thanks")], "welcome")
    assert talk.journal == ["where is the rice?", "", "room seven", "in room seven", "thanks", "welcome"]


def test_what_was_rolled_back_or_forgotten_stays_so(full):
    talk = Talk(full)
    history = [said("h0")]
    history.append(talk.call(history, "a0"))
    first = talk.head
    for i in (1, 2):
        history.append(said(f"h{i}"))
        history.append(talk.call(history, f"a{i}"))
    talk.store.move_head("otto", first, expected=talk.head)
    for form in (list, bare):
        talk.call(form([*history, said("next")]), "so")
        assert talk.journal == ["h0", "a0", "next", "so"]
        talk.store.move_head("otto", first, expected=talk.head)
    forget(talk.memory, "otto", Filter(text="h0"))
    talk.call([*history[:2], said("last")], "end")
    assert talk.journal == ["a0", "last", "end"]


def test_routes_do_not_matter(talk):
    history = [said("h0"), AIMessage("a0")]
    talk.note(history)
    talk.memory.remember(history, "otto", routes=[["task_progress"], ["facts"]])
    talk.texts |= {r.entry.content_hash: "there" for r in talk.store.journal("otto")}
    talk.call([*history, said("h1")], "a1")
    assert talk.journal == ["there", "there", "h1", "a1"]


def test_a_pinned_version_writes_nothing(talk):
    talk.call([said("h0")], "a0")
    first = talk.head
    who = Served("otto", first, False)
    plan = write_earlier(talk.memory, who, plan_turn(talk.memory, who, [said("x"), AIMessage("y"), said("z")]))
    assert plan.version == first and not plan.earlier
    assert finish_turn(talk.memory, who, plan, AIMessage("no")) == {}
    assert talk.head == first


def test_many_at_once(talk):
    shared = [said("h0"), AIMessage("x0")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: Talk(talk.memory).call([*shared, said(f"q{i}")], f"a{i}"), range(8)))
    talk.note([said("h0")])
    assert talk.journal[:2] == ["h0", "x0"]
    pairs = {(talk.journal[k], talk.journal[k + 1]) for k in range(2, len(talk.journal), 2)}
    assert pairs == {(f"q{i}", f"a{i}") for i in range(8)} and len(talk.journal) == 18


def test_with_langchains_message_history(memory):
    talk, replies = Talk(memory), iter(f"a{i}" for i in range(9))
    kept = InMemoryChatMessageHistory()
    model = RunnableLambda(lambda messages: talk.call(messages, next(replies)))
    chain = RunnableWithMessageHistory(model, lambda session_id: kept)
    for text in ("h0", "yes", "yes", "h3"):
        chain.invoke([said(text)], {"configurable": {"session_id": "s"}})
    assert len(kept.messages) == 8
    assert talk.journal == [message.content for message in kept.messages]


TEXTS = st.sampled_from(["yes", "no", "the tank is blue", "rice"])
FORMS = st.sampled_from(["new", "ids", "bare", "fresh", "replies' ids"])
STEP = st.tuples(
    st.sampled_from(["say", "say", "say", "again", "elsewhere", "other thread"]),
    TEXTS,
    FORMS,
    st.sampled_from([2, 4, 100]),  # turns of the window
)


def passed(messages, form):
    if form == "replies' ids":
        return [one if isinstance(one, AIMessage) else bare([one])[0] for one in messages]
    return {"ids": list, "bare": bare, "fresh": fresh, "new": list}[form](messages)


@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(STEP, max_size=8))
def test_whatever_is_said_and_passed(full, steps):
    agent = f"agent {uuid4()}"
    talk, other = Talk(full, agent, "t"), Talk(full, agent, "u")
    history, expected, unwritten = [], [], []  # messages; texts; messages that were answered elsewhere
    last = None  # what was written last, by whom
    for number, (what, text, form, window) in enumerate(steps):
        text = f"{text} {number}" if what == "elsewhere" else text
        question, answer = said(text, f"h{number}"), f"reply {number}"
        if what == "elsewhere":
            history += [question, AIMessage(answer)]
            unwritten += history[-2:]
            last = None
            continue
        if what == "other thread":
            other.call([question], answer)
            expected += [text, answer]
            last = None
            continue
        if what == "again" and (last != "t" or len(history) < 4 or not history[-3].id or unwritten or form == "new"):
            what = "say"
        if what == "again":
            history, expected = history[:-2], expected[:-2]
            window = 100
        before = [] if form == "new" else history[-2 * window :]
        reply = talk.call([*passed(before, form), *passed([question], form)], answer)
        fell_out = [one for one in unwritten if one in before]
        unwritten = [one for one in unwritten if one not in before]
        expected += [*(one.content for one in fell_out), text, answer]
        history += [question, reply]
        last = "t"
        assert talk.journal == expected
