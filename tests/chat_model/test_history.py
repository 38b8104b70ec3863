"""What the model sees of what it is given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from deltamem_agents.chat_model.history import check_policy, seen


def words(messages: list[BaseMessage]) -> int:
    return sum(len(str(message.content).split()) for message in messages)


def calls(*ids: str) -> AIMessage:
    return AIMessage("call", tool_calls=[{"name": "look_up", "args": {}, "id": one} for one in ids])


def result(identity: str) -> ToolMessage:
    return ToolMessage(f"result {identity}", tool_call_id=identity)


SYSTEM, H1, A1, H2, A2, H3 = (
    SystemMessage("be brief"),
    HumanMessage("one"),
    AIMessage("two"),
    HumanMessage("three"),
    AIMessage("four"),
    HumanMessage("five"),
)
TALK = [SYSTEM, H1, A1, H2, A2, H3]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("turn", [SYSTEM, H3]),
        ("all", TALK),
        (1, [SYSTEM, H3]),
        (2, [SYSTEM, A2, H3]),
        (5, TALK),
        (50, TALK),
        ({"tokens": 1}, [SYSTEM, H3]),
        ({"tokens": 4}, [SYSTEM, A2, H3]),
        ({"tokens": 7}, TALK),
    ],
)
def test_policies(policy, expected):
    assert seen(TALK, policy, words) == expected


def test_the_turn_begins_at_the_last_human_message_and_holds_its_tools():
    turn = [H3, calls("a"), result("a")]
    assert seen([H1, A1, *turn], "turn", words) == turn
    assert seen([H1, A1, *turn], 1, words) == turn
    as_user = ChatMessage(role="user", content="six")
    assert seen([H1, A1, as_user, A2], "turn", words) == [as_user, A2]
    assert seen([SYSTEM, A1], "turn", words) == [SYSTEM, A1]
    assert seen([], "turn", words) == []


def test_calls_and_results_stay_together():
    talk = [H1, calls("a", "b"), result("a"), result("b"), A1, H2]
    assert [len(seen(talk, n, words)) for n in range(1, 7)] == [1, 2, 2, 2, 5, 6]
    assert seen([H1, result("x"), A1, calls("y"), H2], 10, words) == [H1, A1, H2]
    late = [H1, calls("a"), H2, result("a")]
    assert seen(late, "turn", words) == late[1:]


@pytest.mark.parametrize("policy", ["some", 0, -1, True, 1.5, None, {}, {"tokens": 0}, {"tokens": "9"}, {"words": 9}])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(ValueError, match="history="):
        check_policy(policy)
    with pytest.raises(ValueError, match="history="):
        seen(TALK, policy, words)


ANY = st.lists(
    st.one_of(
        st.sampled_from(TALK),
        st.lists(st.sampled_from("abc"), max_size=2, unique=True).map(lambda ids: calls(*ids)),
        st.sampled_from("abc").map(result),
    ),
    max_size=12,
)


def tools_of(message: BaseMessage) -> set[str]:
    """The ids of the calls that a message makes or answers."""
    if isinstance(message, ToolMessage):
        return {message.tool_call_id}
    return {str(call["id"]) for call in message.tool_calls} if isinstance(message, AIMessage) else set()


@given(ANY, st.one_of(st.just("turn"), st.integers(1, 12), st.integers(1, 30).map(lambda n: {"tokens": n})))
def test_of_any_messages(messages, policy):
    got = seen(messages, policy, words)
    places = iter(range(len(messages)))
    at = [next(i for i in places if messages[i] is one) for one in got]  # raises when the order changed
    humans = [i for i, one in enumerate(messages) if isinstance(one, HumanMessage)]
    turn = humans[-1] if humans else 0
    must = {id(one) for i, one in enumerate(messages) if i >= turn or isinstance(one, SystemMessage)}
    assert must <= {id(one) for one in got}
    if isinstance(policy, dict):
        assert words(got) <= policy["tokens"] or len(at) == len(seen(messages, "turn", words))
    elif policy != "turn" and len(got) > len(seen(messages, "turn", words)):
        owed = {one.tool_call_id for one in messages[turn:] if isinstance(one, ToolMessage)}  # their calls come along
        assert sum(not isinstance(one, SystemMessage) and not tools_of(one) & owed for one in got) <= policy
    asked: set[str] = set()
    for one in got[: next((k for k, i in enumerate(at) if i >= turn), len(at))]:
        if isinstance(one, ToolMessage):
            assert one.tool_call_id in asked
        asked |= tools_of(one)
