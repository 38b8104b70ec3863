"""Messages to token ids, so that no content ever becomes a control token; and token ids back to text.

A chat template pastes contents into text with control tokens, and the tokenizer cannot tell one from the other. So
every control token that stands in a content (or in a name, a key, a schema) is taken out before rendering and a
placeholder of private-use characters put there; the rendered text is split at the placeholders, and what they stood for
is encoded by the same tokenizer without its added tokens. Other text is encoded exactly as the tokenizer alone would.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from ..errors import BackboneError

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
LEFT, RIGHT = "\ue000", "\ue001"  # around the number of a placeholder
PLACEHOLDER = re.compile(f"{LEFT}(\\d+){RIGHT}")
ENDS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>")


class ChatText:
    """Rendering and encoding with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises BackboneError when the tokenizer has no chat template or no fast backend."""
        if not getattr(tokenizer, "chat_template", None):
            raise BackboneError("the tokenizer has no chat template: use an instruction-tuned backbone, or set one")
        if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            raise BackboneError(f"{type(tokenizer).__name__} has no fast backend: give the backbone a tokenizer.json")
        self.tokenizer = tokenizer
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self.added_ids = frozenset(added.values())
        names = sorted([*added, LEFT, RIGHT], key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)))
        self.ends = frozenset(added[name] for name in ENDS if name in added)
        markup = {added[name] for name in ("<tool_call>", "</tool_call>") if name in added}
        self.hidden = frozenset(tokenizer.all_special_ids) - markup

    def message(self, message: Message) -> list[int]:
        """Ids of one message rendered alone, as it is written to memory."""
        return self._encode([message], None, prompt=False)

    def prompt(self, conversation: Sequence[Message], tools: Sequence[Message] | None = None) -> list[int]:
        """Ids of a conversation up to where the assistant answers. System messages are joined into one at the start."""
        system = "\n\n".join(text for m in conversation if m["role"] == "system" and (text := m.get("content") or ""))
        first = [{"role": "system", "content": system}] if system else []
        return self._encode(first + [m for m in conversation if m["role"] != "system"], tools, prompt=True)

    def markup(self, *parts: str) -> list[int]:
        """Ids of text of our own (its control tokens are control tokens) alternating with text that is not."""
        ids = [self._own(part) if i % 2 == 0 else self.plain(part) for i, part in enumerate(parts)]
        return [number for part in ids for number in part]

    def plain(self, text: str) -> list[int]:
        """Ids of text in which nothing is a control token."""
        ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        if len(text) > 1 and not self.added_ids.isdisjoint(ids):  # a vocabulary that holds control tokens as words
            return [number for character in text for number in self.plain(character)]
        return ids

    def sentences(self, ids: Sequence[int]) -> list[int]:
        """Number of the sentence, from 0, of each token: a sentence ends with its punctuation or at a line break."""
        texts = [self.tokenizer.decode([number]) for number in ids]
        numbers, current = [], 0
        for i, text in enumerate(texts):
            numbers.append(current)
            after = texts[i + 1] if i + 1 < len(texts) else ""
            spaced = not after or (after[0].isspace() and "\n" not in after) or ids[i + 1] in self.added_ids
            current += "\n" in text or (spaced and text.rstrip().endswith((".", "!", "?", "。", "！", "？")))
        return numbers

    def _own(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _encode(self, messages: Sequence[Message], tools: Sequence[Message] | None, *, prompt: bool) -> list[int]:
        taken: list[str] = []
        safe = [self._protect(normal_form(m), taken) for m in messages]
        safe_tools = [self._protect(tool, taken) for tool in tools] if tools else None
        try:
            rendered = self.tokenizer.apply_chat_template(
                safe, tools=safe_tools, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # templates raise what they like
            roles = [m["role"] for m in messages]
            raise BackboneError(f"the backbone's chat template refuses messages with roles {roles}: {error}") from error
        parts = PLACEHOLDER.split(rendered)
        return self.markup(*(taken[int(part)] if i % 2 else part for i, part in enumerate(parts)))

    def _protect(self, value: Any, taken: list[str]) -> Any:
        """``value`` with a placeholder for each control token in its strings and keys; ``taken`` collects them."""
        if isinstance(value, str):
            return self._protect_text(value, taken)
        if isinstance(value, Mapping):
            return {self._protect(key, taken): self._protect(item, taken) for key, item in value.items()}
        return [self._protect(item, taken) for item in value] if isinstance(value, list | tuple) else value

    def _protect_text(self, text: str, taken: list[str]) -> str:
        def hide(part: str) -> str:
            taken.append(part)
            return f"{LEFT}{len(taken) - 1}{RIGHT}"

        text = text.encode("utf-8", "replace").decode()  # lone surrogates have no encoding
        normal = self._normalizer.normalize_str(text) if self._normalizer is not None else text
        if len(self._control.findall(normal)) > len(self._control.findall(text)):
            return hide(text)  # the tokenizer's own normalisation would make control tokens
        return self._control.sub(lambda match: hide(match.group()), text)

    @property
    def _normalizer(self) -> Any:
        return self.tokenizer.backend_tokenizer.normalizer

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


def _normal_call(call: Message) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # else kept as it was written
            arguments = json.loads(arguments)
    normal = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return normal | ({"id": call["id"]} if call.get("id") else {})


class Detokenizer:
    """Text from tokens one by one, never half a character."""

    def __init__(self, text: ChatText) -> None:
        self._text = text
        self._ids: list[int] = []
        self._done = 0  # ids before this are out
        self._context = 0  # ids from this on are decoded together with new ones

    def push(self, token: int) -> str:
        """The text that ``token`` completes; "" while a character is incomplete."""
        if token in self._text.hidden:
            return ""
        self._ids.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith("\ufffd"):
            return ""
        self._context, self._done = self._done, len(self._ids)
        return fresh

    def finish(self) -> str:
        """What was held back, without a last character that never became whole."""
        return self._fresh().rstrip("\ufffd")

    def _fresh(self) -> str:
        before = self._decode(self._ids[self._context : self._done])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        decoded: str = self._text.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded
