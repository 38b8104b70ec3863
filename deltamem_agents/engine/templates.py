"""What a chat template can do, found out by rendering harmless messages, whatever the model is called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tool_calls import OPEN

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, Sequence[Mapping[str, Any]] | None], str]  # raises what the template raises

IDS = "call_0123456789abcdef01234567", "call_0123456789abcdef01234568"
NAME = "look_up"


@dataclass(frozen=True)
class Habits:
    """What a chat template takes as it is. Whatever is False must be said in another way.

    Attributes:
        plain: contents are text; False: lists of typed parts.
        system: a system message before others.
        lone_system: a system message and nothing else.
        opening: conversations that begin with the assistant, or with the result of a tool.
        repeats: several messages of one role in a row.
        tools: schemas of tools, and conversations with calls (several in one message, text beside them) and results, in
            the form in which calls are found in replies (tool_calls.py). A template with a form of its own, as those of
            Llama 3 and Mistral have it, is not asked to use that.
    """

    plain: bool = True
    system: bool = True
    lone_system: bool = True
    opening: bool = True
    repeats: bool = True
    tools: bool = True


def probe(render: Render) -> Habits:
    """The habits of a template. It takes something when it neither raises nor leaves any of it out."""
    schemas = [_tool()]
    plain = _shows(render, [_said("user", 0)]) or not _shows(render, [typed(_said("user", 0))])

    def takes(*messages: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] | None = None) -> bool:
        return _shows(render, messages if plain else [typed(m) for m in messages], tools)

    def talk(call: Mapping[str, Any], *results: Mapping[str, Any]) -> bool:
        messages = [_said("user", 0), call, *results, _said("assistant", 6)]
        return _shows(render, messages if plain else [typed(m) for m in messages], schemas, OPEN)

    one, other = IDS
    user, assistant = _said("user", 0), _said("assistant", 1)
    called = [_calling(one), _result(one, 4)]
    tools = (
        talk(_calling(one) | {"content": _word(1)}, _result(one, 4))
        and talk(_calling(one, other), _result(one, 4), _result(other, 5))
        and all(takes(alone, tools=schemas) for alone in (assistant, *called, _said("system", 7)))
    )
    return Habits(
        plain=plain,
        system=takes(_said("system", 7), user),
        lone_system=takes(_said("system", 7)),
        opening=all(takes(first) for first in (assistant, *(called if tools else ()))),
        repeats=takes(user, _said("user", 2), assistant, _said("assistant", 6), _said("user", 7)),
        tools=tools,
    )


def typed(message: Mapping[str, Any]) -> dict[str, Any]:
    """``message`` with its text as a list of typed parts."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _shows(
    render: Render, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None, mark: str = ""
) -> bool:
    """Whether all words of ours, and ``mark``, are in what is rendered."""
    try:
        rendered = render(messages, tools)
    except Exception:  # a template refuses in its own way, and that is the answer
        return False
    return mark in rendered and all(word in rendered for word in _words([*messages, *(tools or ())]))


def _words(value: Any) -> list[str]:
    """The words of ours in it."""
    if isinstance(value, str):
        return [value] if value.startswith("quill") else []
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [word for item in inner for word in _words(item)]


def _word(number: int) -> str:
    return f"quill{number}zebra"


def _said(role: str, number: int) -> dict[str, Any]:
    return {"role": role, "content": _word(number)}


def _calling(*ids: str) -> dict[str, Any]:
    calls = [
        {"id": id, "type": "function", "function": {"name": NAME, "arguments": {"of": _word(2 + i)}}}
        for i, id in enumerate(ids)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _result(id: str, number: int) -> dict[str, Any]:
    return _said("tool", number) | {"tool_call_id": id, "name": NAME}


def _tool() -> dict[str, Any]:
    of = {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]}
    return {"type": "function", "function": {"name": NAME, "description": _word(9), "parameters": of}}
