"""Tool calls in replies (the Hermes form that Qwen uses), taken out of the text while it is being generated.

<tool_call>
{"name": "look_up", "arguments": {"item": "rice"}}
</tool_call>
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from uuid import NAMESPACE_OID, uuid4, uuid5

OPEN, CLOSE = "<tool_call>", "</tool_call>"
NAME, ARGUMENTS = '\n{"name": "', '", "arguments":'  # what follows OPEN, and what follows the name
UNFINISHED = f"the reply ended before {CLOSE}"


@dataclass
class ReplySplitter:
    """Splits the text of a reply into what is said and what is called, piece by piece.

    White space beside a tool call belongs to the markup and is dropped; two pieces of text with calls between them are
    joined by a line break. Without ``active`` everything is text. With ``single``, what comes after the first call is
    dropped. Calls get random ids, or, with ``reply_id``, the same in every reply of that id.

    Attributes:
        calls: {"name", "arguments" (dict), "id"} of each valid call so far.
        invalid: {"name" or None, "arguments" (the text as it was), "id", "error"} of each malformed one.
    """

    active: bool = True
    single: bool = False
    reply_id: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    invalid: list[dict[str, Any]] = field(default_factory=list)
    _pending: str = ""
    _inside: bool = False
    _said: bool = False  # some text is out
    _after_call: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing is taken any more."""
        return self.single and bool(self.calls or self.invalid)

    def feed(self, text: str) -> str:
        """Take the next piece of the reply; returns the text that is now certain to be text."""
        if not self.active:
            return text
        self._pending += text
        out = ""
        while True:
            if self.over:
                self._pending = ""
                return out
            if self._inside:
                if not self._close():
                    return out
            elif (at := self._pending.find(OPEN)) >= 0:
                out += self._say(self._pending[:at].rstrip())
                self._pending, self._inside = self._pending[at + len(OPEN) :], True
            else:
                ready = self._pending[: _certain(self._pending)]
                self._pending = self._pending[len(ready) :]
                return out + self._say(ready)

    def finish(self) -> str:
        """The reply is over: returns the rest of the text; a call that was not closed is parsed if it is whole."""
        if self._inside:
            self._take(self._pending, unfinished=True)
            self._pending, self._inside = "", False
            return ""
        rest, self._pending = self._pending, ""
        return self._say(rest)

    def _say(self, text: str) -> str:
        if self._after_call:
            text = text.lstrip()
            if text:
                self._after_call = False
                text = "\n" + text if self._said else text
        self._said = self._said or bool(text)
        return text

    def _close(self) -> bool:
        """Take the open call if its end has come. An end mark inside a JSON string is not the end."""
        start = 0
        while (at := self._pending.find(CLOSE, start)) >= 0:
            body = self._pending[:at]
            if not _in_string(body):
                self._take(body)
                self._pending, self._inside = self._pending[at + len(CLOSE) :], False
                return True
            start = at + len(CLOSE)
        return False

    def _take(self, body: str, unfinished: bool = False) -> None:
        self._after_call = True
        number = len(self.calls) + len(self.invalid)
        made = uuid4() if self.reply_id is None else uuid5(NAMESPACE_OID, f"{self.reply_id}/{number}")
        identity = f"call_{made.hex[:24]}"
        try:
            name, arguments = parse_call(body)
        except ValueError as error:
            reason = f"{UNFINISHED}: {error}" if unfinished else str(error)
            found = re.match(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"', body)
            name_or_none = found.group(1) if found else None
            self.invalid.append({"name": name_or_none, "arguments": body.strip(), "id": identity, "error": reason})
        else:
            self.calls.append({"name": name, "arguments": arguments, "id": identity})


def parse_call(body: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the JSON between the marks. Raises ValueError with the reason when it is no call."""
    try:
        call = json.loads(body, strict=False, parse_constant=_refuse)
        if isinstance(call, dict) and isinstance(call.get("arguments"), str):
            call["arguments"] = json.loads(call["arguments"], strict=False, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise ValueError('a tool call is a JSON object with a "name"')
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, dict):
        raise ValueError(f'"arguments" must be a JSON object, got {type(arguments).__name__}')
    return call["name"], arguments


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of tools in OpenAI's form, nested or flat."""
    return [str(tool.get("function", tool)["name"]) for tool in tools]


def forced_names(tools: Sequence[Mapping[str, Any]] | None, tool_choice: str | None) -> list[str]:
    """Names of which one must be called; empty when the model is free.

    Args:
        tool_choice: None or "auto": free; "any" or "required": some tool; else the name of a tool.

    Raises:
        ValueError: the choice names no tool.
    """
    if tool_choice in (None, "auto", "none"):
        return []
    names = tool_names(tools or ())
    if tool_choice in ("any", "required") and names:
        return names
    if tool_choice not in names:
        raise ValueError(f"tool_choice {tool_choice!r} is none of the tools {names}")
    return [str(tool_choice)]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _in_string(body: str) -> bool:
    """Whether ``body`` ends inside a JSON string."""
    return re.sub(r"\\.", "", body, flags=re.DOTALL).count('"') % 2 == 1


def _certain(text: str) -> int:
    """How much of ``text`` cannot be the beginning of a tool call or white space before one."""
    end = len(text)
    for size in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if OPEN.startswith(text[-size:]):
            end = len(text) - size
            break
    return len(text[:end].rstrip())
