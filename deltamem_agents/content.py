"""Contents of messages, in which nothing may become a control token.

A chat template pastes contents into text with control tokens, and the tokenizer cannot tell one from the other. So
every control token that stands in a content (or in a name, a key, a schema) is taken out before rendering and a
placeholder of private-use characters put there; the rendered text is split at the placeholders, and what they stood for
is encoded by the same tokenizer without its added tokens. Other text is encoded exactly as the tokenizer alone would.
Engine and training share this: what is learnt are the tokens that are seen later.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from .errors import BackboneError

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
LEFT, RIGHT = "\ue000", "\ue001"  # around the number of a placeholder
PLACEHOLDER = re.compile(f"{LEFT}(\\d+){RIGHT}")


class Contents:
    """Takes control tokens out of messages before they are rendered, and encodes what was rendered."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises BackboneError when the tokenizer has no fast backend."""
        if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            raise BackboneError(f"{type(tokenizer).__name__} has no fast backend: give the backbone a tokenizer.json")
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        names = sorted([*(token.content for token in added.values()), LEFT, RIGHT], key=len, reverse=True)
        self.added_ids = frozenset(added)
        self._control = re.compile("|".join(map(re.escape, names)))

    def protect(self, value: Any, taken: list[str]) -> Any:
        """``value`` with a placeholder for each control token in its strings and keys; ``taken`` collects them."""
        if isinstance(value, str):
            return self._protect_text(value, taken)
        if isinstance(value, Mapping):
            return {self.protect(key, taken): self.protect(item, taken) for key, item in value.items()}
        return [self.protect(item, taken) for item in value] if isinstance(value, list | tuple) else value

    def encode(self, rendered: Sequence[str], taken: Sequence[str] = ()) -> list[list[int]]:
        """Ids of rendered texts: control tokens in them are control tokens, what was ``taken`` out is none."""
        split = [PLACEHOLDER.split(text) for text in rendered]
        own = [part for parts in split for part in parts[::2]]
        ids = iter(self.tokenizer(own, add_special_tokens=False)["input_ids"] if own else ())
        return [
            [n for i, part in enumerate(parts) for n in (self.plain(taken[int(part)]) if i % 2 else next(ids))]
            for parts in split
        ]

    def plain(self, text: str) -> list[int]:
        """Ids of text in which nothing is a control token."""
        ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        if len(text) > 1 and not self.added_ids.isdisjoint(ids):  # a vocabulary that holds control tokens as words
            return [number for character in text for number in self.plain(character)]
        return ids

    def _protect_text(self, text: str, taken: list[str]) -> str:
        def hide(part: str) -> str:
            taken.append(part)
            return f"{LEFT}{len(taken) - 1}{RIGHT}"

        text = text.encode("utf-8", "replace").decode()  # lone surrogates have no encoding
        pieces, end = [], 0
        for match in self._control.finditer(text):
            pieces += [self._protect_normal(text[end : match.start()], hide), hide(match.group())]
            end = match.end()
        return "".join([*pieces, self._protect_normal(text[end:], hide)])

    def _protect_normal(self, text: str, hide: Callable[[str], str]) -> str:
        """Text without control tokens, so that the tokenizer's own normalisation makes none of it either."""
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        if normalizer is None or not self._control.search(normalizer.normalize_str(text)):
            return text
        rest = "".join(c for c in text if normalizer.normalize_str(c) == c)
        if self._control.search(normalizer.normalize_str(rest)):  # made of several characters together
            return hide(text)
        return "".join(c if normalizer.normalize_str(c) == c else hide(c) for c in text)

    @cached_property
    def _core(self) -> Tokenizer:
        document = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return Tokenizer.from_str(json.dumps(document | {"added_tokens": [], "post_processor": None}))


def normal_form(message: Message) -> dict[str, Any]:
    """A message with text content, and tool calls in OpenAI's nested form with their arguments as objects.

    Raises:
        ValueError: a role that is not one of :data:`ROLES`, or content that is not text.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"message role {role!r} is not one of {ROLES}")
    if not isinstance(content, str | None):
        raise ValueError(f"message content must be text, got {type(content).__name__}")
    normal: dict[str, Any] = {"role": role, "content": content or ""}
    if calls := message.get("tool_calls"):
        normal["tool_calls"] = [_normal_call(call) for call in calls]
    return normal | {key: message[key] for key in ("name", "tool_call_id") if message.get(key)}


def one_system(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with the system messages among them joined into one at the start, as templates want it."""
    system = "\n\n".join(text for m in messages if m["role"] == "system" and (text := m.get("content") or ""))
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*first, *(m for m in messages if m["role"] != "system")]


def _normal_call(call: Message) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # else kept as it was written
            arguments = json.loads(arguments)
    normal = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return normal | ({"id": call["id"]} if call.get("id") else {})
