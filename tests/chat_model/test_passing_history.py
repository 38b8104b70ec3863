"""The chat model itself, under callers that pass history in their own ways; test_turns.py has the rules one by one."""

from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables.history import RunnableWithMessageHistory

ASKED = ["The tank is blue.", "The rice is in room seven.", "The door opens at noon.", "Where is Otto?"]


def journal(model, agent="otto"):
    store = model.opened_store
    return [(r.entry.role, r.entry.content) for r in store.journal(agent, store.head(agent))]


def told(turns):
    return [pair for asked, reply in turns for pair in (("user", asked), ("assistant", reply.content))]


def test_however_history_is_passed_each_message_is_written_once(make_model):
    model = make_model()
    for way in ("new", "whole", "window", "whole without ids"):
        turns, messages = [], []
        for text in ASKED:
            messages.append(HumanMessage(text))
            if way == "new":
                given = messages[-1:]
            elif way == "window":
                given = messages[-3:]
            else:
                given = [m.model_copy(update={"id": None}) for m in messages] if "without" in way else messages
            reply = model.invoke(list(given), agent_id=way)
            messages.append(reply)
            turns.append((text, reply))
        assert journal(model, way) == told(turns), way


def test_with_message_history(make_model):
    model = make_model(agent_id="otto")
    sessions: dict[str, InMemoryChatMessageHistory] = {}
    chain = RunnableWithMessageHistory(
        model, lambda session_id: sessions.setdefault(session_id, InMemoryChatMessageHistory())
    )
    turns = [(text, chain.invoke(text, {"configurable": {"session_id": "monday"}})) for text in ASKED]
    assert journal(model) == told(turns)
    more = [(text, chain.invoke(text, {"configurable": {"session_id": "tuesday"}})) for text in ASKED[:2]]
    assert journal(model) == told(turns + more)


def test_what_fell_out_of_the_window_is_in_memory_before_the_answer(make_model):
    model = make_model(agent_id="otto")
    past = [HumanMessage("The tank is blue."), AIMessage("Noted.")]
    reply = model.invoke([*past, HumanMessage("Where is Otto?")])
    alone = model.invoke("Where is Otto?", agent_id="nina").usage_metadata["input_tokens"]
    assert reply.usage_metadata["input_tokens"] == alone  # the current turn is all that is seen
    assert reply.response_metadata["memory_version"] is not None  # of what was passed and not seen
    assert journal(model)[:2] == [("user", "The tank is blue."), ("assistant", "Noted.")]
    everything = model.invoke([*past, HumanMessage("Where?")], history="all", agent_id="mila")
    assert everything.usage_metadata["input_tokens"] > alone


def test_a_regenerated_answer_replaces_the_last_one(make_model):
    model = make_model(agent_id="otto", temperature=1.0, seed=1)
    thread = {"configurable": {"thread_id": "monday"}}
    first, second = HumanMessage("The tank is blue."), HumanMessage("Where is Otto?")
    noted = model.invoke([first], thread)
    model.invoke([first, noted, second], thread)
    again = model.invoke([first, noted, second], thread, seed=2)
    assert journal(model) == told([(first.content, noted), (second.content, again)])
    edited = HumanMessage("Where is Mila?")
    answer = model.invoke([first, noted, edited], thread, seed=3)
    assert journal(model) == told([(first.content, noted), (edited.content, answer)])
