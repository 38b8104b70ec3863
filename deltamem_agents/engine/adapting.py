"""Messages told in another way where a chat template would refuse them or leave something out (templates.py).

Where a template knows no tools, they are described in the system text, calls of them are text between <tool_call> and
</tool_call>, and their results are what a user says between <tool_response> and </tool_response>. A tokenizer that has
these marks as tokens tells ours from any in contents. For one that has not, contents hold none: their "<" is written
"&lt;" there, and \\u003c inside of JSON, which is the same string.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..content import Contents, Message
from .templates import Habits, typed
from .tool_calls import CLOSE, OPEN

MARKS = ("tools", "tool_call", "tool_response")
TOOLS = (
    "You can call tools. Each line between these tags is the JSON schema of one:\n<tools>\n{}\n</tools>\n\n"
    "To call a tool, reply with a JSON object that holds its name and its arguments, between tags:\n<tool_call>\n"
    '{{"name": <name of the tool>, "arguments": <object with its arguments>}}\n</tool_call>\n'
    "For several calls, write several such blocks. You are given what a tool returns between <tool_response> and "
    "</tool_response>."
)

Own = dict[str, Any]  # a message whose contents are protected


class Marks:
    """Keeps the marks of tools that are mere text for a tokenizer out of contents."""

    def __init__(self, contents: Contents) -> None:
        added = {token.content for token in contents.tokenizer.added_tokens_decoder.values()}
        names = [name for name in MARKS if not {f"<{name}>", f"</{name}>"} <= added]
        self._normalizer = contents.tokenizer.backend_tokenizer.normalizer
        self._begin = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(names)})\b)", re.IGNORECASE) if names else None

    def text(self, text: str) -> str:
        """``text`` without such marks."""
        return self._escape(text, "&lt;")

    def json(self, value: Any) -> str:
        """``value`` as JSON without such marks."""
        return self._escape(json.dumps(value, ensure_ascii=False), "\\u003c")

    def _escape(self, text: str, sign: str) -> str:
        if self._begin is None:
            return text
        escaped = self._begin.sub(lambda _: sign, text)
        normal = self._normal
        if self._begin.search(normal(escaped)):  # the tokenizer's own normalisation would make marks
            return "".join(sign if "<" in normal(character) else character for character in text)
        return escaped

    def _normal(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode()
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))


def adapt(
    messages: Sequence[Message],
    tools: Sequence[Message] | None,
    habits: Habits,
    marks: Marks,
    protect: Callable[[Any], Any],
) -> tuple[list[Own], Any, bool]:
    """What to render: messages, tools, and whether the first message is a filler that nobody said.

    Args:
        messages: in normal form, a system message only at the start.
        protect: takes control tokens out of what others have written (:meth:`Contents.protect`).
    """
    if habits.tools:
        told = [protect(message) for message in messages]
        tools = protect(tools) if tools else None
    else:
        told = [_in_words(message, marks, protect) for message in messages]
        if tools:
            listed = "\n".join(protect(marks.json(tool)) for tool in tools)
            told, tools = _with_system(told, TOOLS.format(listed)), None
    told = _system_first(told, habits)
    rest = _after_system(told)
    opens = bool(rest) and rest[0]["role"] != "user"
    filled = opens and not habits.opening
    if filled:
        told = [*told[: len(told) - len(rest)], {"role": "user", "content": ""}, *rest]
    told = told if habits.repeats else _alternate(told)
    return (told if habits.plain else [typed(message) for message in told]), tools or None, filled


def _in_words(message: Message, marks: Marks, protect: Callable[[Any], Any]) -> Own:
    """A message whose tool calls, or which as a tool's result, is text."""
    content = protect(marks.text(message["content"]))
    own: Own = {"role": message["role"], "content": content}
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        bodies = [protect(marks.json(call["function"])) for call in calls]
        blocks = [f"{OPEN}\n{body}\n{CLOSE}" for body in bodies]
        own["content"] = "\n".join([content, *blocks] if content else blocks)
    return own | ({"name": protect(marks.text(message["name"]))} if message.get("name") else {})


def _after_system(messages: list[Own]) -> list[Own]:
    return messages[1:] if messages and messages[0]["role"] == "system" else messages


def _with_system(messages: list[Own], text: str) -> list[Own]:
    """``messages`` with ``text`` at the end of the system message, or as one."""
    rest = _after_system(messages)
    before = messages[0]["content"] if len(rest) < len(messages) else ""
    return [{"role": "system", "content": _joined(before, text)}, *rest]


def _system_first(messages: list[Own], habits: Habits) -> list[Own]:
    """The system text as a system message, or in front of what the user says first."""
    rest = _after_system(messages)
    if len(rest) == len(messages) or (habits.system if rest else habits.lone_system):
        return messages
    system: str = messages[0]["content"]
    if rest and rest[0]["role"] == "user":
        return [rest[0] | {"content": _joined(system, rest[0]["content"])}, *rest[1:]]
    return [{"role": "user", "content": system}, *rest]


def _alternate(messages: list[Own]) -> list[Own]:
    """User and assistant by turns. Tool calls and their results, where templates know them, are no turns."""
    turns: list[Own] = []
    last: Own | None = None
    for message in messages:
        if message["role"] not in ("user", "assistant") or message.get("tool_calls"):
            turns.append(message)
            continue
        if last is not None and last["role"] == message["role"]:
            if turns[-1] is last:
                last = turns[-1] = last | {"content": _joined(last["content"], message["content"])}
                continue
            turns.append({"role": "assistant" if message["role"] == "user" else "user", "content": ""})
        turns.append(message)
        last = message
    return turns


def _joined(first: str, second: str) -> str:
    return "\n\n".join(text for text in (first, second) if text)
