"""Agents that keep messages as they are and show them before the question: all of them, or the newest."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...engine import Engine
from ...errors import DeltaMemError
from ..contract import Message
from .base import EngineAgent, Prompt, asking, bare, text_bytes


class WholeContext(EngineAgent):
    """Everything that was told, in the prompt before the question.

    What does not fit into the window beside the question and the longest answer is left out, the oldest messages first;
    of the oldest message shown, the beginning. ``Answer.cut_tokens`` says how much that was.
    """

    def __init__(
        self,
        engine: Engine,
        name: str = "whole context",
        *,
        window: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """``window``: tokens of prompt and answer together; None: the backbone's context window.

        Raises DeltaMemError when the backbone's window is smaller than that.
        """
        super().__init__(engine, name, template_options)
        self.window = engine.max_length if window is None else window
        if not 0 < self.window <= engine.max_length:
            raise DeltaMemError(f"window={window}, and the backbone has {engine.max_length} tokens: give no more")
        self.config["window"] = self.window
        self._told: list[Message] = []
        self._lengths: list[int] = []

    def forget(self) -> None:
        """Drop the messages."""
        self._told, self._lengths = [], []

    def tell(self, messages: Sequence[Message]) -> None:
        """Keep the messages."""
        self._told += map(bare, messages)
        self._lengths += [self.count([message]) for message in messages]

    @property
    def state_bytes(self) -> int:
        """UTF-8 bytes of the text kept."""
        return text_bytes(self._told)

    def _prompt(self, question: str, max_tokens: int) -> Prompt:
        """All that fits: whole messages first, as the sum of their lengths says, then as the rendered prompt says."""
        asked, limit = asking(question), self.window - max_tokens
        room = limit - len(self._ids([asked]))
        start = newest(self._lengths, room)
        while (over := len(ids := self._ids([*self._told[start:], asked])) - limit) > 0 and start < len(self._told):
            start += 1
        cut = sum(self._lengths[:start])
        if start > 0 and over < 0:
            size = min(-over, self._lengths[start - 1] - 1)
            while size > 0 and (part := ending(self.engine, self._told[start - 1], size)) is not None:
                longer = self._ids([part, *self._told[start:], asked])
                if len(longer) <= limit:
                    return Prompt(longer, cut - self.count([part]))
                size -= len(longer) - limit
        return Prompt(ids, cut)


class SlidingWindow(WholeContext):
    """The newest ``messages``, or the newest ``tokens``; what came before is forgotten."""

    def __init__(
        self,
        engine: Engine,
        name: str = "",
        *,
        messages: int | None = None,
        tokens: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Give one of the two sizes. Of the oldest message that reaches into ``tokens``, the beginning is forgotten.

        Raises:
            DeltaMemError: both sizes, none, or less than 1.
        """
        size = messages if tokens is None else tokens
        if (messages is None) == (tokens is None) or size is None or size < 1:
            raise DeltaMemError(
                f"a sliding window of messages={messages}, tokens={tokens}: give one of them, 1 or more"
            )
        unit = "messages" if tokens is None else "tokens"
        super().__init__(engine, name or f"last {size} {unit}", template_options=template_options)
        self.messages, self.tokens = messages, tokens
        self.config |= {"messages": messages, "tokens": tokens}

    def tell(self, messages: Sequence[Message]) -> None:
        """Keep the messages, and forget what falls out of the window."""
        super().tell(messages)
        if self.messages is not None:
            start, part = max(0, len(self._told) - self.messages), None
        else:
            assert self.tokens is not None
            start = newest(self._lengths, self.tokens)
            room = self.tokens - sum(self._lengths[start:])
            part = ending(self.engine, self._told[start - 1], room) if start > 0 and room > 0 else None
        head = [part] if part is not None else []
        self._told = [*head, *self._told[start:]]
        self._lengths = [*(self.count([m]) for m in head), *self._lengths[start:]]


def newest(lengths: Sequence[int], room: int) -> int:
    """Where the longest ending of ``lengths`` begins whose sum is at most ``room``."""
    start = len(lengths)
    while start > 0 and lengths[start - 1] <= room:
        start -= 1
        room -= lengths[start]
    return start


def ending(engine: Engine, message: Message, tokens: int) -> Message | None:
    """The message with as much of the end of its content as makes at most ``tokens`` tokens; None: not any of it.

    A message that calls tools is not cut: its calls come last.
    """
    content = message.get("content") or ""
    if message.get("tool_calls") or not content:
        return None
    spans = engine.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    markup = len(engine.text.message(message)) - len(spans)
    keep = min(tokens - markup, len(spans))
    while keep > 0:
        part = {**message, "content": content[spans[len(spans) - keep][0] :]}
        over = len(engine.text.message(part)) - tokens
        if over <= 0:
            return part if part["content"].strip() else None
        keep -= over
    return None
