"""LangChain's messages to the engine's and back, and to entries of the journal."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk

from ..engine import Chunk, Engine, Generation
from ..engine.tool_calls import CLOSE, OPEN
from ..errors import JournalNotKept
from ..store import Entry
from .routing import Router, sub_states_of

ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
RECALLED = "deltamem_recall"  # lc_source of quotations from the journal: what is written already
SUMMARY = "summarization"  # lc_source of what SummarizationMiddleware puts in the place of messages
NOT_SAID = (SUMMARY, RECALLED)  # lc_source of messages that nobody said
SAID_ELSEWHERE = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking")


def to_message(message: BaseMessage) -> dict[str, Any]:
    """The engine's form of one message.

    Raises:
        ValueError: a role that no chat template has, or content that is not text.
    """
    kind = message.type.removesuffix("MessageChunk").lower()
    role = message.role if isinstance(message, ChatMessage) else ROLES.get(kind, kind)
    plain: dict[str, Any] = {"role": ROLES.get(role, role), "content": text_of(message.content)}
    if isinstance(message, AIMessage):
        calls = [{"id": c["id"], "name": c["name"], "arguments": c["args"]} for c in message.tool_calls]
        plain |= {"tool_calls": calls} if calls else {}
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
        plain |= {"name": message.name} if message.name else {}
    return plain


def text_of(content: str | Sequence[str | dict[Any, Any]]) -> str:
    """The text of a content: a string, or blocks. Raises ValueError on images and other blocks that are not text."""
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text" or (set(block) == {"text"}):
            parts.append(str(block["text"]))
        elif block.get("type") == "json" or "type" not in block:
            parts.append(json.dumps(block, ensure_ascii=False, default=str))
        elif block["type"] not in SAID_ELSEWHERE:
            raise ValueError(f"content of type {block['type']!r} is not supported: this model reads text only")
    return "".join(parts)


def to_entries(
    messages: Sequence[BaseMessage],
    engine: Engine,
    routes: Sequence[Sequence[str]] | None = None,
    router: Router | None = None,
) -> list[Entry]:
    """Journal entries of the messages that are to be remembered, with the sub-states that each is written to.

    Summaries, quotations from the journal (recall.py) and empty messages are left out. ``routes``, one for each
    message, names the sub-states; without it, the message itself, ``router`` or its role does (routing.py).

    Raises:
        StateError: the message or the router names no sub-state of this memory.
    """
    if routes is not None and len(routes) != len(messages):
        raise ValueError(f"{len(routes)} routes for {len(messages)} messages: give one for each, or None")
    entries = []
    for i, message in enumerate(messages):
        plain = to_message(message)
        if message.additional_kwargs.get("lc_source") in NOT_SAID:
            continue
        if not plain["content"] and not plain.get("tool_calls"):
            continue
        names = routes[i] if routes is not None else sub_states_of(message, plain, engine, router)
        payload: dict[str, Any] = {key: plain[key] for key in ("tool_calls", "tool_call_id", "name") if key in plain}
        entries.append(
            Entry(
                role=plain["role"],
                content=plain["content"],
                sub_states=tuple(names),
                message_id=message.id,
                source=message.additional_kwargs.get("source") or message.name,
                payload=payload or None,
            )
        )
    return entries


def from_entry(entry: Entry) -> dict[str, Any]:
    """The engine's form of a journal entry: what was written, to write it again. Raises JournalNotKept."""
    if entry.content is None:
        raise JournalNotKept(
            "the store keeps hashes of messages alone, so they cannot be written again: replay, forgetting of single "
            'entries and migration need a store with journal="full"'
        )
    return {"role": entry.role, "content": entry.content, **(entry.payload or {})}


def to_reply(generation: Generation, metadata: dict[str, Any], reply_id: str | None = None) -> AIMessage:
    """The whole answer. Without an id, LangChain gives it one."""
    return AIMessage(
        id=reply_id,
        content=generation.text,
        tool_calls=[tool_call(name=c["name"], args=c["arguments"], id=c["id"]) for c in generation.tool_calls],
        invalid_tool_calls=[
            invalid_tool_call(name=c["name"], args=_as_it_was(c), id=c["id"], error=c["error"])
            for c in generation.invalid_tool_calls
        ],
        usage_metadata=_usage(generation),
        additional_kwargs=_reasoning(generation.reasoning),
        response_metadata=_metadata(generation, metadata),
    )


def to_chunk(chunk: Chunk, first: int) -> AIMessageChunk:
    """A piece of a streamed answer; its tool calls are numbered from ``first``."""
    return AIMessageChunk(
        content=chunk.text,
        tool_call_chunks=_call_chunks(((c["name"], json.dumps(c["arguments"]), c["id"]) for c in chunk.calls), first),
        additional_kwargs=_reasoning(chunk.reasoning),
    )


def to_last_chunk(chunk: Chunk, first: int, metadata: dict[str, Any]) -> AIMessageChunk:
    """The end of a streamed answer: its last piece, the malformed tool calls, usage. ``chunk`` has the generation."""
    generation, last = chunk.generation, to_chunk(chunk, first)
    assert generation is not None
    invalid = ((c["name"], _as_it_was(c), c["id"]) for c in generation.invalid_tool_calls)
    return AIMessageChunk(
        content=last.content,
        tool_call_chunks=[*last.tool_call_chunks, *_call_chunks(invalid, first + len(chunk.calls))],
        additional_kwargs=last.additional_kwargs,
        usage_metadata=_usage(generation),
        response_metadata=_metadata(generation, metadata),
        chunk_position="last",
    )


def _call_chunks(calls: Iterable[tuple[str | None, str, str | None]], first: int) -> list[ToolCallChunk]:
    return [tool_call_chunk(name=n, args=a, id=i, index=at) for at, (n, a, i) in enumerate(calls, first)]


def _reasoning(text: str) -> dict[str, Any]:
    """Where LangChain looks for it; what stands there is never written to memory."""
    return {"reasoning_content": text} if text else {}


def _as_it_was(call: dict[str, Any]) -> str:
    """The whole markup of a malformed call: LangChain would complete its JSON alone and take it for a valid call."""
    return f"{OPEN}\n{call['arguments']}\n{CLOSE}"


def _usage(generation: Generation) -> UsageMetadata:
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return UsageMetadata(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion)


def _metadata(generation: Generation, metadata: dict[str, Any]) -> dict[str, Any]:
    errors = [call["error"] for call in generation.invalid_tool_calls]
    return {**metadata, "finish_reason": generation.finish_reason} | ({"tool_call_errors": errors} if errors else {})
