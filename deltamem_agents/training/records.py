"""Training records: what is written into the memory, and the conversations that are asked of it.

One JSON object a line:

    {"memory":   [{"role": "user", "content": "The port of atlas is 8443.", "sub_state": "facts"}, …],
     "messages": [{"role": "user", "content": "Which port does atlas use?"}, {"role": "assistant", "content": "8443"}],
     "tools": […], "reset": ["task_progress"]}

``messages`` is what the model sees: a conversation that ends with the assistant message to learn, or a list of such
conversations, all asked of the same memory (the cheap way: the memory is written once). ``tools`` and ``reset``
(sub-states emptied after writing) may be left out; a conversation with tools of its own is
{"messages": […], "tools": […]}.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecipeError

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Messages that the model sees, the last of them the assistant's answer to learn; ``whole``: all are to learn."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Record:
    """One memory and the conversations asked of it; ``where`` it was read, for messages."""

    memory: list[Message]
    conversations: list[Conversation]
    reset: tuple[str, ...] = ()
    where: str = field(default="", compare=False)


def parse_record(data: Any, where: str) -> Record:
    """A Record from one JSON object; RecipeError says what is wrong and ``where``."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: a record must be a JSON object, got {data!r}")
    memory, seen = data.get("memory", []), data.get("messages")
    if not isinstance(memory, list) or not isinstance(seen, list) or not seen:
        raise RecipeError(f"{where}: expected lists 'memory' and 'messages' (not empty), got keys {sorted(data)}")
    tools, reset = _tools(data.get("tools"), where), data.get("reset") or ()
    if isinstance(seen[0], dict) and "role" in seen[0]:
        seen = [seen]
    conversations = []
    for item in seen:
        own = item if isinstance(item, dict) else {"messages": item}
        messages = _messages(own.get("messages") or [], where)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise RecipeError(f"{where}: a conversation is a question, and at its end the assistant message to learn")
        conversations.append(Conversation(messages, _tools(own["tools"], where) if "tools" in own else tools))
    return Record(_messages(memory, where), conversations, _names(reset, "reset", where), where)


def _messages(items: Any, where: str) -> list[Message]:
    """``items``, or RecipeError when they are no list of messages."""
    if not isinstance(items, list):
        raise RecipeError(f"{where}: expected a list of messages, got {items!r}")
    for item in items:
        if not isinstance(item, dict) or "role" not in item or not ("content" in item or "tool_calls" in item):
            raise RecipeError(f"{where}: a message needs 'role' and 'content', got {item!r}")
        if item["role"] not in ROLES:
            raise RecipeError(f"{where}: role {item['role']!r} is not one of {', '.join(ROLES)}")
        calls = item.get("tool_calls") or []
        if not isinstance(calls, list) or not all(map(_is_call, calls)):
            raise RecipeError(f"{where}: 'tool_calls' must be a list of objects with name and arguments, got {calls!r}")
        content = item.get("content")
        if not isinstance(content, str) and (content is not None or not calls):
            raise RecipeError(f"{where}: 'content' must be text, got {content!r}")
        _names(item.get("sub_state") or (), "sub_state", where)
    return items


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def _tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RecipeError(f"{where}: 'tools' must be a list of objects, got {tools!r}")
    return tools


def _names(names: Any, field: str, where: str) -> tuple[str, ...]:
    """One name or several; RecipeError when they are no names."""
    found = [names] if isinstance(names, str) else names
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise RecipeError(f"{where}: '{field}' must be the name of a sub-state or a list of names, got {names!r}")
    return tuple(found)


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a JSONL file, in order. Raises RecipeError naming file and line."""
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"training file {path} does not exist")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    data = json.loads(line)
                except ValueError as error:  # what is not UTF-8 as well
                    raise RecipeError(f"{path}:{number}: not JSON ({error})") from error
                yield parse_record(data, f"{path}:{number}")
