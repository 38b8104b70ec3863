"""Grammars of constrained replies: what a JSON Schema or a forced tool call lets through, by llguidance."""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import BackboneError
from .closing import Closer
from .constraint import FARTHEST, Constraint
from .text import ChatText
from .tool_calls import ARGUMENTS, CLOSE, NAME, OPEN, tool_names

SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}  # a space or none, no lines
VALUES = ("const", "default", "enum", "examples")  # keywords of a schema that hold values, not schemas
KEPT = 64  # grammars that are kept compiled


class Grammars:
    """The grammars of one tokenizer, compiled once each."""

    def __init__(self, text: ChatText, ends: frozenset[int]) -> None:
        """Raises ImportError without llguidance, BackboneError when it cannot read the tokenizer."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise ImportError("a schema or a forced tool call needs llguidance: pip install llguidance") from error
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(text.tokenizer, eos_token=sorted(ends))
        except Exception as error:  # of any kind, from a library in another language
            raise BackboneError(f"llguidance cannot read the backbone's tokenizer: {error}") from error
        self._compile = partial(llguidance.LLMatcher, self._tokenizer, log_level=0)
        self._from_lark = llguidance.LLMatcher.grammar_from_lark
        self._closer = Closer(self._tokenizer)
        self._added = {text.tokenizer.decode([number]) for number in text.added_ids}
        self._compiled: OrderedDict[tuple[str, bool, bool], Constraint] = OrderedDict()
        self._lock = Lock()

    def reply(self, schema: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] | None, single: bool) -> Constraint:
        """A whole reply: JSON that conforms to ``schema`` or, where there are ``tools``, calls of them instead.

        Raises ValueError when the schema cannot be followed.
        """
        rules = [f"json: {_json(schema)}"]
        if not tools:
            return self._constraint("the schema", ["start: json", *rules])
        more = "" if single else ' ("\\n" call)*'
        rules = [f"start: json | call{more}", *rules, f"call: {self._mark(OPEN)} {_text(NAME)} named"]
        return self._constraint("the schema or a tool", [*rules, *self._named(tools)])

    def call(self, tools: Sequence[Mapping[str, Any]], name: str | None) -> Constraint:
        """The rest of a tool call that was begun: after ``name`` and its mark, or after the mark before a name.

        Raises ValueError when a schema of the parameters cannot be followed.
        """
        if name is None:
            rules = ["start: named", *self._named(tools)]
            return self._constraint("the parameters of a tool", rules, until_end=False, quoted=True)
        tool = tools[tool_names(tools).index(name)]
        rules = [f'start: " " arguments {self._end()}', f"arguments: {_json(_parameters(tool))}"]
        return self._constraint(f"the parameters of tool {name!r}", rules, until_end=False)

    def _named(self, tools: Sequence[Mapping[str, Any]]) -> list[str]:
        """Rules for the rest of a call, from the name on."""
        rules = ["named: " + " | ".join(f"named{i}" for i in range(len(tools)))]
        for i, (name, tool) in enumerate(zip(tool_names(tools), tools, strict=True)):
            rules.append(f"named{i}: {_text(name + ARGUMENTS + ' ')} arguments{i} {self._end()}")
            rules.append(f"arguments{i}: {_json(_parameters(tool))}")
        return rules

    def _end(self) -> str:
        return f"{_text('}' + chr(10))} {self._mark(CLOSE)}"

    def _mark(self, mark: str) -> str:
        """A mark is a token of its own, or text where the tokenizer has no such token."""
        return mark if mark in self._added else _text(mark)

    def _constraint(self, what: str, rules: list[str], until_end: bool = True, quoted: bool = False) -> Constraint:
        key = ("\n".join(rules), until_end, quoted)
        with self._lock:
            if (kept := self._compiled.get(key)) is not None:
                self._compiled.move_to_end(key)
                return kept.copy()
        matcher = self._compile(self._from_lark(key[0]))
        if matcher.is_error():
            raise ValueError(f"{what} cannot be followed: {_reason(matcher.get_error())}")
        plan = self._closer.plan(matcher, quoted, until_end, FARTHEST, thorough=True)
        if plan is None:
            raise ValueError(
                f"{what} cannot be followed within {FARTHEST} tokens: it asks for too much, or refers to itself "
                "without an end; make what refers to itself optional"
            )
        made = Constraint(self._tokenizer, self._closer, matcher, plan, until_end, quoted)
        with self._lock:
            self._compiled[key] = made
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return made.copy()


_grammars: "WeakKeyDictionary[ChatText, Grammars]" = WeakKeyDictionary()
_lock = Lock()


def grammars(text: ChatText, ends: frozenset[int]) -> Grammars:
    """The grammars of a tokenizer, made at the first call. Raises as :class:`Grammars`."""
    with _lock:
        if (found := _grammars.get(text)) is None:
            found = _grammars[text] = Grammars(text, ends)
        return found


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return "%json " + json.dumps({**schema, "x-guidance": SPACING}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"a schema is no JSON: {error}") from error


def closed(schema: Any) -> Any:
    """The schema, in which objects with named properties have no others, unless it says so itself.

    One whose objects are put together from several schemas stays as it is: what one part names, another would forbid.
    """
    return schema if _puts_together(schema) else _closed(schema)


def _puts_together(schema: Any) -> bool:
    """Whether some object must conform to several schemas at once."""
    if isinstance(schema, list):
        return any(map(_puts_together, schema))
    if not isinstance(schema, Mapping):
        return False
    own = isinstance(schema.get("properties"), Mapping) and {"anyOf", "oneOf", "$ref"} & set(schema)
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return bool(own or several) or any(_puts_together(item) for name, item in schema.items() if name not in VALUES)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    inner = {name: item if name in VALUES else _closed(item) for name, item in schema.items()}
    named = isinstance(schema.get("properties"), Mapping) and schema.get("type", "object") == "object"
    open_otherwise = {"additionalProperties", "allOf", "anyOf", "oneOf", "$ref", "patternProperties"} & set(schema)
    return inner if not named or open_otherwise else inner | {"additionalProperties": False}


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """What a call may say: the properties that are named and no others; where none is, any object."""
    return closed({"type": "object"} | dict(tool.get("function", tool).get("parameters") or {}))  # type: ignore[no-any-return]


def _text(text: str) -> str:
    """A literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def _reason(error: str) -> str:
    """What an error of llguidance says, without the place in the grammar and the dumps of it."""
    said = re.split(r"\n\s*\d+ \||<state>", error)[0].rpartition("failed to compile JSON schema:")[2]
    return " ".join(said.split())[:400]
