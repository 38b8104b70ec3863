"""Reasoning in replies: what stands between <think> and </think>, kept apart from what is said."""

from dataclasses import dataclass
from typing import Any

from .tool_calls import CLOSE, OPEN

THINK, THOUGHT = "<think>", "</think>"
CLOSING = f"\n{THOUGHT}\n\n"  # ends a thought that the prompt has begun


def thinks(tokenizer: Any) -> bool:
    """Whether the backbone marks its thoughts: its tokenizer has the mark as a token, or its template speaks of it."""
    return mark_id(tokenizer, THINK) is not None or THINK in str(tokenizer.chat_template)


def mark_id(tokenizer: Any, mark: str) -> int | None:
    """The token that is ``mark``; None: it is spelt."""
    number: int | None = tokenizer.convert_tokens_to_ids(mark)
    return number if number is not None and tokenizer.convert_ids_to_tokens(number) == mark else None


@dataclass
class ReasoningSplitter:
    """Splits the text of a reply into thoughts and the rest, piece by piece.

    White space after a thought, and at both ends of it, is dropped; two thoughts are joined by a line break. Inside
    tool calls nothing is a thought. Without ``active`` there are none.

    Attributes:
        inside: a thought is going on.
    """

    active: bool = True
    inside: bool = False
    _calling: bool = False
    _pending: str = ""
    _thought: bool = False  # some of a thought is out
    _fresh: bool = True  # nothing of this thought is out yet
    _after: bool = False  # only white space has come since a thought

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; returns what is now certain to be thought, and what is certain to be none."""
        if not self.active:
            return "", text
        self._pending += text
        thought = said = ""
        while True:
            marks = (THOUGHT,) if self.inside else (CLOSE,) if self._calling else (THINK, OPEN)
            places = [(at, mark) for mark in marks if (at := self._pending.find(mark)) >= 0]
            at, mark = min(places, default=(_certain(self._pending, marks), ""))
            part, self._pending = self._pending[:at], self._pending[at:]
            if self.inside:
                if not mark:  # white space at the end of a thought is dropped
                    whole, part = part, part.rstrip()
                    self._pending = whole[len(part) :] + self._pending
                thought += self._think(part.rstrip() if mark else part)
            else:
                said += self._say(part)
            if not mark:
                return thought, said
            said += self._pass(mark)

    def finish(self) -> tuple[str, str]:
        """The reply is over: returns the rest, as :meth:`feed`."""
        rest, self._pending = self._pending, ""
        return (self._think(rest.rstrip()), "") if self.inside else ("", self._say(rest))

    def _pass(self, mark: str) -> str:
        """Go behind a mark; those of tool calls belong to the rest."""
        self._pending = self._pending[len(mark) :]
        if mark == THINK:
            self.inside, self._fresh = True, True
        elif mark == THOUGHT:
            self.inside, self._after = False, True
        else:
            self._calling = mark == OPEN
            return self._say(mark)
        return ""

    def _think(self, text: str) -> str:
        if self._fresh:
            text = text.lstrip()
            if text:
                self._fresh = False
                text = "\n" + text if self._thought else text
        self._thought = self._thought or bool(text)
        return text

    def _say(self, text: str) -> str:
        if self._after:
            text = text.lstrip()
            self._after = not text
        return text


def _certain(text: str, marks: tuple[str, ...]) -> int:
    """How much of ``text`` cannot be the beginning of a mark."""
    sizes = (size for mark in marks for size in range(1, len(mark)) if text.endswith(mark[:size]))
    return len(text) - max(sizes, default=0)
