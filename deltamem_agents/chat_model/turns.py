"""What is remembered of the messages of a call: each exactly once, however a caller passes the history.

:func:`plan_turn` compares what a call was given with the agent's journal; :func:`write_earlier` writes what has to be
in the memory before the answer is computed; :func:`finish_turn` writes the turn and the reply. The rules:

1. System messages, summaries and recalled quotations are never written.
2. The current turn is the last human message and what follows it; before it lies the history. A message of the history
   is written already when one of these holds:
   a. the journal has its id with the same content, on the way to the head or on a version that was rolled back or
      replaced; or its id was forgotten;
   b. it has no id, and (a) holds of the next reply: they were written together;
   c. it is aligned with the newest entries on the way to the head. The alignment goes by role and content, routes left
      aside: the most messages that the journal has in the same order, of the same thread where one is given, the latest
      where there is a choice. An entry whose id the call gives to some message is that message's alone;
   d. it is among the newest entries in another place, together with all that stands between it, the reply before it
      and the next reply, and is not aligned;
   e. it stands before all that is aligned so, and older entries have its content, in the same order; or entries of
      versions that were rolled back or replaced have it, in the same order.
   What is left of the history is new, and is written before the answer, in its order: beside the head, which moves
   there when the reply is whole.
3. Of the current turn, all is new except: what comes before a reply of its own (which called a tool) that is written
   already; messages whose id and content are on the way to the head. So a human message alone is new, whatever earlier
   one it equals, unless its id says otherwise. A turn that was answered with the same words is not written
   again.
4. The current turn replaces the last one when that is the last thing that was written, by the same thread, to the end
   of the agent's memory; when the history is written, and nothing of the thread lies between it and that turn; and when
   one of these shows that the caller means it:
   a. one of its messages has the id of a message of that turn (ids are taken to be unique within a thread); without a
      history this is enough;
   b. it has the same messages, and comes after a reply that LangChain gave an id to, as it does to those of models;
   c. the call names a thread, and it comes after such a reply.
   Then the answer reads what that turn read, the head moves to the new turn, and the old one stays in the store,
   retired. Else the turn is appended: an edited message without an id, of no thread, cannot be told from another
   conversation, nor a new message after fixed examples from an edited one. The memory then holds both.
5. Nothing is replaced when somebody else writes before the turn ends: the turn is written after the new head.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from ..errors import HeadConflict
from ..store import Record
from .aligning import Past, Said, same, to_said
from .history import Plan, turn_start
from .memory import AgentMemory
from .routing import Router
from .serving import Served

REPLY_IDS = ("lc_run-", "run-")  # how LangChain's ids of replies begin
PATIENCE = 300.0  # seconds for which a write is tried again while other processes are first


def plan_turn(memory: AgentMemory, who: Served, messages: Sequence[BaseMessage]) -> Plan:
    """Compare the messages of one call with the agent's journal. Nothing is written.

    A call with a pinned version only reads.
    """
    if who.pinned is not None:
        return Plan(tuple(messages), who.pinned, None, writes=False)
    said = to_said(messages, memory.engine)
    start = turn_start([one.entry.role for one in said])
    past = Past(memory.store, who, said)
    known = past.known(said[:start])
    earlier = [one for i, one in enumerate(said[:start]) if i not in known]
    places = past.aligned | past.moved
    count, last = past.begun(said[start:], max(places.values(), default=-1))
    turn = said[start + count :]
    plan = Plan(tuple(messages), past.head, past.head, _messages(earlier), _messages(turn))
    if not turn or not past.tail:
        return plan
    if not earlier and (count or not start or start - 1 in places):
        reply = last if count else places.get(start - 1, -1)  # what the turn comes after
        place = _place(past, who, turn, last, follows=bool(start or count))
        if _replaceable(memory, who, past, turn, place, reply):
            answered = past.tail[place:]
            before = memory.store.version(who.agent_id, answered[0].version_id).parent
            return replace(plan, version=before, answered=tuple(answered), replaces=True)
    left = [one for one in turn if not past.on_way(one)]
    there = [at for one in turn if (at := past.at(one)) is not None]
    after = past.tail[max(there) + 1 :] if there and not left else []
    answered = after[:1] if after and after[0].entry.role == "assistant" else []
    return replace(plan, turn=_messages(left), answered=tuple(answered))


def _place(past: Past, who: Served, turn: Sequence[Said], last: int, *, follows: bool) -> int:
    """Where in the tail of the journal stands what may be replaced: what the thread wrote after ``last``, or, of a call
    without anything that is written already, what has the ids of the turn. The end of the tail: nowhere."""
    ids = {one.key for one in turn if one.key is not None}
    own = [j for j, record in enumerate(past.tail) if record.entry.thread_id == who.thread_id]
    if follows and who.thread_id is None:
        return last + 1 if last >= 0 else len(past.tail)
    found = [j for j in own if (last >= 0 and j > last if follows else past.tail[j].entry.message_id in ids)]
    return found[0] if found else len(past.tail)


def _replaceable(memory: AgentMemory, who: Served, past: Past, turn: Sequence[Said], place: int, reply: int) -> bool:
    """Rule 4: whether what the tail has from ``place`` on is one turn, the last one, and ``turn`` is meant instead.

    ``reply`` is the place of what comes before the turn; -1: nothing does.
    """
    later = past.tail[place:]
    if not later or not _is_turn(later, turn[0].entry.role) or (place == 0 and not past.complete):
        return False
    versions = list(dict.fromkeys(record.version_id for record in later))
    if place and past.tail[place - 1].version_id == versions[0]:
        return False
    newest = memory.store.history(who.agent_id, past.head, limit=len(versions))
    if [version.version_id for version in reversed(newest)] != versions:
        return False
    if any(record.entry.thread_id != who.thread_id for record in later):
        return False
    ids = {one.key for one in turn if one.key is not None}
    if any(record.entry.message_id in ids for record in later):
        return True
    if reply < 0 or not _is_reply(past.tail[reply]):
        return False
    again = len(turn) < len(later) and all(same(one.entry, r) for one, r in zip(turn, later, strict=False))
    return who.thread_id is not None or (again and later[len(turn)].entry.role == "assistant")


def _is_turn(records: Sequence[Record], role: str) -> bool:
    """Whether these are one turn with its answers, or (role "tool") the end of one: what began it stands together."""
    roles = [record.entry.role for record in records]
    begun = next((i for i, one in enumerate(roles) if one == "assistant"), len(roles))
    rest = {*roles[begun:]} <= {"assistant", "tool"}
    together = len({record.version_id for record in records[:begun]}) == 1
    return roles[0] == role and {*roles[:begun]} <= {"user", "tool"} and rest and together


def _is_reply(record: Record) -> bool:
    """Whether a chat model of LangChain gave this reply, by its id."""
    return record.entry.role == "assistant" and (record.entry.message_id or "").startswith(REPLY_IDS)


def write_earlier(memory: AgentMemory, who: Served, plan: Plan, router: Router | None = None) -> Plan:
    """Write what the memory has to hold before the answer, beside the agent's head; the plan that then holds.

    :func:`finish_turn` moves the head there: a call that gets no whole answer leaves the memory as it was.
    """
    if not plan.writes or not plan.earlier:
        return plan
    with memory.writing(who.agent_id):
        plan = plan_turn(memory, who, plan.messages)  # what another call wrote meanwhile is not written again
        if not plan.earlier:
            return plan
        options: dict[str, Any] = {"thread_id": who.thread_id, "run_id": who.run_id, "router": router}
        version = memory.remember(plan.earlier, who.agent_id, plan.head, move_head=False, **options)
        return replace(plan, version=version)


def _keep_earlier(memory: AgentMemory, who: Served, plan: Plan, router: Router | None) -> Plan:
    """Move the head to what was written before the answer, or write it after the head that others have moved, once."""
    until = time.monotonic() + PATIENCE
    options: dict[str, Any] = {"thread_id": who.thread_id, "run_id": who.run_id, "router": router}
    with memory.writing(who.agent_id):
        while True:
            now = plan_turn(memory, who, plan.messages)
            if not now.earlier:  # others wrote all of it
                return replace(plan, head=now.head, earlier=())
            try:
                version = memory.remember(now.earlier, who.agent_id, now.head, **options)
            except HeadConflict:  # another process was first
                if time.monotonic() > until:
                    raise
                continue
            tokens = _tokens(memory, who.agent_id, version, now.head)
            return replace(plan, head=version, earlier=(), tokens=tokens)


def finish_turn(
    memory: AgentMemory, who: Served, plan: Plan, reply: AIMessage, router: Router | None = None
) -> dict[str, Any]:
    """Write the current turn and its reply.

    Returns:
        ``memory_version_after``: the version that holds the turn; ``tokens_written``: in this call, also before the
        answer. Nothing for a call that only reads.
    """
    if not plan.writes:
        return {}
    if plan.earlier:
        plan = _keep_earlier(memory, who, plan, router)
    said = to_said([*plan.turn, reply], memory.engine)
    answered = plan.answered
    if answered and len(said) == len(answered) and all(map(same, (one.entry for one in said), answered)):
        return {"memory_version_after": answered[-1].version_id, "tokens_written": plan.tokens}
    messages = _messages(said)
    version = _replace(memory, who, plan, messages, router) if plan.replaces else None
    if version is None:
        options: dict[str, Any] = {"thread_id": who.thread_id, "run_id": who.run_id, "router": router}
        version = memory.remember(messages, who.agent_id, **options)
    tokens = _tokens(memory, who.agent_id, version, plan.head)
    return {"memory_version_after": version, "tokens_written": plan.tokens + tokens}


def _replace(
    memory: AgentMemory, who: Served, plan: Plan, messages: Sequence[BaseMessage], router: Router | None
) -> str | None:
    """Write the turn after what it reads, and make that the head; None: somebody else wrote, and nothing is moved."""
    with memory.writing(who.agent_id):
        if memory.store.head(who.agent_id) != plan.head:
            return None
        options: dict[str, Any] = {"thread_id": who.thread_id, "run_id": who.run_id, "router": router}
        version = memory.remember(messages, who.agent_id, plan.version, move_head=False, **options)
        if version is None or version == plan.version:  # all of it was forgotten
            return None
        try:
            memory.store.move_head(who.agent_id, version, expected=plan.head)
        except HeadConflict:
            return None
        return version


def _messages(said: Sequence[Said]) -> tuple[BaseMessage, ...]:
    return tuple(one.message for one in said)


def _tokens(memory: AgentMemory, agent_id: str, version: str | None, before: str | None) -> int:
    """How many tokens a version wrote; 0 when it is the one that was there before."""
    if version is None or version == before:
        return 0
    records = memory.store.journal(agent_id, version, after=memory.store.version(agent_id, version).parent)
    return sum(record.entry.tokens or 0 for record in records)
