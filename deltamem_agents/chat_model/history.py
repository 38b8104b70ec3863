"""What the model sees of the messages of a call; what is remembered of them is turns.py's.

A policy says how much is seen:

- "turn": the current turn, which is the last human message and all after it. The default: the agent's memory holds what
  was before.
- n (1 or more): the last n messages; system messages are not counted.
- {"tokens": n}: as many of the last messages as fit, with all that is seen, in a prompt of n tokens.
- "all": every message.

Whatever the policy: system messages and the current turn are seen, and the order stays. Before the current turn, a tool
message is seen together with the reply that called the tool, and with all other results of that reply, or none of them
is. Without a human message, all messages are the current turn.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from ..store import Record
from .messages import ROLES

Policy = Literal["turn", "all"] | int | dict[Literal["tokens"], int]
Count = Callable[[list[BaseMessage]], int]


@dataclass(frozen=True)
class Plan:
    """What one call reads and writes; see turns.py.

    Attributes:
        messages: all that the call was given.
        version: the memory that the answer reads (None: the empty one).
        head: the agent's head when the plan was made.
        earlier: what is written before the answer, oldest first.
        turn: what is written with the reply.
        answered: what the journal has of the current turn already, its reply included.
        replaces: whether turn and reply take the place of ``answered``; they are written after ``version`` then.
        writes: False for a call that only reads.
        tokens: how many tokens were written before the answer.
    """

    messages: tuple[BaseMessage, ...]
    version: str | None
    head: str | None
    earlier: tuple[BaseMessage, ...] = ()
    turn: tuple[BaseMessage, ...] = ()
    answered: tuple[Record, ...] = ()
    replaces: bool = False
    writes: bool = True
    tokens: int = 0


def check_policy(policy: Any) -> Policy:
    """The policy itself. Raises ValueError when it is none."""
    number = policy["tokens"] if isinstance(policy, dict) and set(policy) == {"tokens"} else policy
    if number in ("turn", "all") and number is policy:
        return policy  # type: ignore[no-any-return]
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(
            f'history={policy!r} is no policy: give "turn", "all", a number of messages, or {{"tokens": number}}'
        )
    if number < 1:
        raise ValueError(f'history={policy!r}: the number must be 1 or more; "turn" shows the current turn alone')
    return policy  # type: ignore[no-any-return]


def check_earlier(number: int) -> None:
    """Raises ValueError when that is no number of messages for :func:`window`."""
    if number < 0:
        raise ValueError(f"history={number}: give the number of messages that stay in the prompt, 0 or more")


def role_of(message: BaseMessage) -> str:
    """The role that the message has for a chat template: "user", "assistant", "system", "tool", or one of its own."""
    kind = message.type.removesuffix("MessageChunk").lower()
    role = message.role if isinstance(message, ChatMessage) else ROLES.get(kind, kind)
    return ROLES.get(role, role)


def turn_start(roles: Sequence[str]) -> int:
    """Where the current turn begins: at the last "user", or at 0 when there is none."""
    return max((i for i, role in enumerate(roles) if role == "user"), default=0)


def seen(messages: Sequence[BaseMessage], policy: Policy, count_tokens: Count) -> list[BaseMessage]:
    """The messages that the model sees.

    Args:
        policy: see the module's description.
        count_tokens: length of a prompt of messages, in tokens; it is asked a few times, for {"tokens": n} alone.

    Raises:
        ValueError: that is no policy.
    """
    check_policy(policy)
    if policy == "all":
        return list(messages)
    roles = [role_of(message) for message in messages]
    turn = turn_start(roles)
    since = _since(messages, turn)
    always = [role == "system" or i >= turn for i, role in enumerate(roles)]

    def kept(start: int) -> list[BaseMessage]:
        return [message for i, message in enumerate(messages) if always[i] or since[i] >= start]

    if policy == "turn":
        return kept(turn)
    if isinstance(policy, int):
        plain = [i for i, role in enumerate(roles) if role != "system"]
        return kept(plain[-policy] if policy < len(plain) else 0)
    most = policy["tokens"]
    starts = range(turn + 1)  # the later the window starts, the less is in it
    return kept(bisect_left(starts, True, hi=turn, key=lambda start: count_tokens(kept(start)) <= most))


def window(messages: Sequence[BaseMessage], earlier: int) -> list[BaseMessage]:
    """The current turn and up to ``earlier`` messages from before it, by the rules of :func:`seen`."""
    roles = [role_of(message) for message in messages]
    turn = sum(role != "system" for role in roles[turn_start(roles) :])
    return seen(messages, earlier + turn if earlier else "turn", lambda _: 0)


def _since(messages: Sequence[BaseMessage], turn: int) -> list[int]:
    """For each message, the latest start of a window that shows it: its own place, or that of the reply it belongs to.

    -1: no window shows it: a result without its call, or a call without all of its results. What belongs to a message
    of the current turn is always shown.
    """
    groups: list[list[int]] = []
    missing: list[set[str]] = []
    open_calls: dict[str, int] = {}
    for i, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            group = open_calls.get(message.tool_call_id)
            if group is not None:
                groups[group].append(i)
                missing[group].discard(message.tool_call_id)
            continue
        calls = [call["id"] or "" for call in message.tool_calls] if isinstance(message, AIMessage) else []
        open_calls |= {call: len(groups) for call in calls}
        groups.append([i])
        missing.append(set(calls))
    since = [-1] * len(messages)
    for group_of, lacking in zip(groups, missing, strict=True):
        for i in group_of:
            if group_of[-1] >= turn:
                since[i] = len(messages)
            elif not lacking:
                since[i] = group_of[0]
    return since
