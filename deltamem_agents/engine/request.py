"""What is asked of an engine, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """What to generate for one conversation.

    Attributes:
        conversation: messages {"role", "content", …} (see text.normal_form).
        tools: OpenAI's tool schemas.
        max_new_tokens: at most this many tokens, fewer where the context window ends.
        stop: strings before which the reply ends.
        temperature: 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that have this probability together.
        seed: of this row's own random numbers, so that a sample does not depend on the batch. None: a fresh one.
        tool_choice: None or "auto", "none", "any" (or "required"), or the name of a tool. A call that must come has
            arguments that conform to the schema of that tool's parameters.
        schema: a JSON Schema to which the whole reply conforms, whatever the sampling; {"type": "object"} for any JSON
            object. With tools that may be called, the reply is either such JSON or calls of them.
        parallel_tool_calls: False: the reply ends after its first tool call.
        template_options: further variables for the chat template.
        ids: token ids of the whole prompt, instead of a conversation.
        reply_id: what the ids of tool calls are made from, so that the same reply has the same. None: random ids.
    """

    conversation: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    max_new_tokens: int = 256
    stop: Sequence[str] = ()
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    tool_choice: str | None = None
    schema: Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    template_options: Mapping[str, Any] | None = None
    ids: Sequence[int] | None = None
    reply_id: str | None = None


@dataclass(frozen=True)
class Generation:
    """One reply.

    Attributes:
        text: what is said, without tool calls and reasoning.
        tool_calls: {"name", "arguments" (dict), "id"} of each call.
        invalid_tool_calls: {"name" or None, "arguments" (text), "id", "error"} of each malformed call.
        finish_reason: "stop", "length" or "tool_calls".
        prompt_tokens, completion_tokens: counts; the end-of-turn token counts.
        reasoning: what a thinking backbone has written between <think> and </think>.
    """

    text: str
    tool_calls: list[dict[str, Any]]
    invalid_tool_calls: list[dict[str, Any]]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed reply.

    Attributes:
        text: what has been said since the last chunk.
        generation: in the last chunk, the whole reply.
        reasoning: what has been thought since the last chunk.
        calls: the valid tool calls that have become whole since the last chunk, as in :class:`Generation`.
    """

    text: str
    generation: Generation | None = None
    reasoning: str = ""
    calls: Sequence[dict[str, Any]] = ()
