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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages that the model sees, the last of them the assistant's answer to learn."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Record:
    """One memory and the conversations asked of it."""

    memory: list[Message]
    conversations: list[Conversation]
    reset: tuple[str, ...] = ()


def parse_record(data: Any, where: str) -> Record:
    """A Record from one JSON object; RecipeError says what is wrong and ``where``."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: a record must be a JSON object, got {data!r}")
    memory, seen = data.get("memory", []), data.get("messages")
    if not isinstance(memory, list) or not isinstance(seen, list) or not seen:
        raise RecipeError(f"{where}: expected lists 'memory' and 'messages' (not empty), got keys {sorted(data)}")
    tools = data.get("tools")
    if isinstance(seen[0], dict) and "role" in seen[0]:
        seen = [seen]
    conversations = []
    for item in seen:
        own = item if isinstance(item, dict) else {"messages": item}
        messages = _messages(own.get("messages") or [], where)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise RecipeError(f"{where}: a conversation is a question, and at its end the assistant message to learn")
        conversations.append(Conversation(messages, own.get("tools", tools)))
    reset = data.get("reset") or []
    return Record(_messages(memory, where), conversations, (reset,) if isinstance(reset, str) else tuple(reset))


def _messages(items: Any, where: str) -> list[Message]:
    """``items``, or RecipeError when they are no list of messages."""
    if not isinstance(items, list):
        raise RecipeError(f"{where}: expected a list of messages, got {items!r}")
    for item in items:
        if not isinstance(item, dict) or "role" not in item or not ("content" in item or "tool_calls" in item):
            raise RecipeError(f"{where}: a message needs 'role' and 'content', got {item!r}")
    return items


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a JSONL file, in order. Raises RecipeError naming file and line."""
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"training file {path} does not exist")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    data = json.loads(line)
                except ValueError as error:
                    raise RecipeError(f"{path}:{number}: not JSON ({error})") from error
                yield parse_record(data, f"{path}:{number}")
