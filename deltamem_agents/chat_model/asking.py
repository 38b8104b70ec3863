"""What the engine is asked for one call, and how the pieces of its reply are passed on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.utils.function_calling import convert_to_openai_tool

from ..engine import Request
from ..engine.reply import Chunk
from ..memory import MemoryState
from .calls import choice_of
from .messages import to_chunk, to_last_chunk, to_message
from .structured import schema_of


@dataclass(frozen=True)
class Asked:
    """What the engine is asked, the state that it reads, and what the reply's metadata say of both."""

    request: Request
    state: MemoryState | None
    metadata: dict[str, Any]


def to_request(
    messages: Sequence[BaseMessage], stop: Sequence[str] | str | None, options: Mapping[str, Any]
) -> Request:
    """The engine's request; ``options`` are a call's arguments over the model's own settings.

    Raises:
        ValueError: a message, a tool, a tool choice or a response format that is not understood.
    """
    tools = [convert_to_openai_tool(tool) for tool in options.get("tools") or ()]
    template = dict(options.get("chat_template_kwargs") or {})
    if options.get("thinking") is not None:
        template["enable_thinking"] = options["thinking"]
    parallel = options.get("parallel_tool_calls")
    limit = options.get("max_completion_tokens")  # of a call alone, so it goes before the model's own max_tokens
    limit = options.get("max_tokens") if limit is None else limit
    return Request(
        conversation=[to_message(message) for message in messages],
        tools=tools or None,
        max_new_tokens=256 if limit is None else limit,
        stop=_texts(stop if stop is not None else options.get("stop")),
        temperature=options.get("temperature") or 0.0,
        top_p=options.get("top_p"),
        seed=options.get("seed"),
        tool_choice=choice_of(options.get("tool_choice")),
        schema=schema_of(options.get("response_format")),
        parallel_tool_calls=parallel is None or bool(parallel),
        template_options=template or None,
    )


def with_reply_id(request: Request, messages: Sequence[BaseMessage], *read: Any) -> Request:
    """The request with an id that its reply gets again when the same call is made again.

    So a turn that is made again after a crash is the same turn, and is written once. Where the reply may be another one
    (it is sampled without a seed), or a message has no id, so that this cannot be told from another call of the same
    words, the reply gets a new id every time.

    Args:
        read: whose memory is read, at which version, and how.
    """
    ids = [message.id for message in messages if message.type != "system"]
    if not ids or None in ids or (request.temperature > 0 and request.seed is None):
        return request
    call = json.dumps([read, ids, asdict(request)], sort_keys=True, default=str)
    return replace(request, reply_id=f"deltamem-{hashlib.sha256(call.encode()).hexdigest()[:32]}")


def scaled(state: MemoryState, scale: float) -> MemoryState:
    """``state``, of which everything that is read counts ``scale`` times: S q is linear in S."""
    if scale == 1.0:
        return state
    if scale < 0:
        raise ValueError(f"memory_scale must be at least 0, got {scale}")
    return replace(state, tensors={name: tensor * scale for name, tensor in state.tensors.items()})


class Said:
    """Numbers the tool calls of one streamed reply, and ends it with its metadata."""

    def __init__(self, asked: Asked) -> None:
        self._metadata, self._id, self._calls = asked.metadata, asked.request.reply_id, 0

    def chunk(self, chunk: Chunk) -> ChatGenerationChunk:
        """One piece as LangChain passes it on."""
        first, self._calls = self._calls, self._calls + len(chunk.calls)
        message = to_chunk(chunk, first) if chunk.generation is None else to_last_chunk(chunk, first, self._metadata)
        message.id = self._id
        return ChatGenerationChunk(message=message)


def _texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
