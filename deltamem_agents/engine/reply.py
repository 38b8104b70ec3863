"""Reply: what is asked for, one answer in the making, and the finished answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .text import ChatText, Detokenizer
from .tool_calls import ARGUMENTS, NAME, OPEN, ReplySplitter, forced_names


@dataclass(frozen=True)
class Request:
    """What to generate for one conversation.

    Attributes:
        conversation: messages {"role", "content", …} (see text.normal_form).
        tools: OpenAI's tool schemas.
        max_new_tokens: at most this many tokens, fewer where the context window ends.
        stop: strings before which the reply ends.
        temperature: 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that have this probability together.
        seed: of this row's own random numbers, so that a sample does not depend on the batch. None: a fresh one.
        tool_choice: None or "auto", "none", "any" (or "required"), or the name of a tool.
        ids: token ids of the whole prompt, instead of a conversation.
    """

    conversation: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    max_new_tokens: int = 256
    stop: Sequence[str] = ()
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    tool_choice: str | None = None
    ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Generation:
    """One reply.

    Attributes:
        text: what is said, without tool calls.
        tool_calls: {"name", "arguments" (dict), "id"} of each call.
        invalid_tool_calls: {"name" or None, "arguments" (text), "id", "error"} of each malformed call.
        finish_reason: "stop", "length" or "tool_calls".
        prompt_tokens, completion_tokens: counts; the end-of-turn token counts.
    """

    text: str
    tool_calls: list[dict[str, Any]]
    invalid_tool_calls: list[dict[str, Any]]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed reply; the last one carries the whole :class:`Generation`."""

    text: str
    generation: Generation | None = None


class Row:
    """One reply in the making: from token ids to visible text, tool calls and the reason of its end."""

    def __init__(self, text: ChatText, request: Request, ends: frozenset[int]) -> None:
        """Raises ValueError when the request's tool choice names no tool, or it asks for no tokens."""
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {request.max_new_tokens}")
        tools = None if request.tool_choice == "none" else request.tools or None
        self.request = request
        self.ends = ends
        self.prompt = list(request.ids) if request.ids is not None else text.prompt(request.conversation, tools)
        self.tokens: list[int] = []  # of the reply so far
        self.finish_reason: str | None = None
        self._limit = request.max_new_tokens
        self._said: list[str] = []
        self._taken = 0
        self._unstopped = ""  # text that may be the beginning of a stop string
        self._stops = [stop for stop in request.stop if stop]
        self._detokenizer = Detokenizer(text)
        self._splitter = ReplySplitter(active=tools is not None)
        self._chooser = NameChooser(text, [])
        self._generator: torch.Generator | None = None
        self._force(text, forced_names(tools, request.tool_choice))

    def fit(self, window: int) -> None:
        """Let prompt and reply together stay within ``window`` tokens."""
        self._limit = min(self._limit, window - len(self.prompt))

    @property
    def ids(self) -> list[int]:
        """Prompt and reply so far: what to go on from."""
        return self.prompt + self.tokens

    @property
    def longest(self) -> int:
        """Tokens of prompt and reply at the most."""
        return len(self.prompt) + self._limit

    def push(self, token: int) -> None:
        """Take the next token of the reply."""
        self.tokens.append(token)
        if token in self.ends:
            self._finish("stop")
            return
        fresh = self._detokenizer.push(token)
        self._chooser.push(fresh)
        self._hear(fresh)
        if self.finish_reason is None and len(self.tokens) >= self._limit:
            self._finish("length")

    def draw(self) -> float:
        """The row's next random number, uniform in [0, 1): by its own generator, whatever else is in the batch."""
        if self._generator is None:
            self._generator = torch.Generator()
            if self.request.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.request.seed)
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def choose(self, logits: Tensor) -> int:
        """The next token of a row that is not free to take any, from logits (V,)."""
        return self._chooser.choose(logits)

    @property
    def forced(self) -> bool:
        """Whether only some tokens may come next."""
        return self._chooser.active

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken next."""
        return self.request.temperature <= 0 and not self.forced

    def give_up(self) -> None:
        """End the reply where it is."""
        if self.finish_reason is None:
            self._finish("stop")

    def take(self) -> str:
        """The visible text that has come since the last call."""
        fresh = "".join(self._said[self._taken :])
        self._taken = len(self._said)
        return fresh

    def result(self) -> Generation:
        """The reply so far; whole once ``finish_reason`` is set."""
        calls, invalid = self._splitter.calls, self._splitter.invalid
        reason = "tool_calls" if calls and self.finish_reason == "stop" else self.finish_reason or "stop"
        return Generation("".join(self._said), calls, invalid, reason, len(self.prompt), len(self.tokens))

    def _force(self, text: ChatText, names: list[str]) -> None:
        """Begin the reply with a tool call: of a tool named, or of one among several."""
        if not names:
            return
        known = (names[0], ARGUMENTS) if len(names) == 1 else ()
        self.prompt = self.prompt + text.markup(OPEN + NAME, *known)
        self._splitter.feed("".join((OPEN + NAME, *known)))
        if not known:
            self._chooser = NameChooser(text, [f'{name}"' for name in names])

    def _hear(self, text: str) -> None:
        self._unstopped += text
        found = [at for stop in self._stops if (at := self._unstopped.find(stop)) >= 0]
        if found:
            self._unstopped = self._unstopped[: min(found)]
            self._finish("stop", cut=True)
            return
        ready = len(self._unstopped) - _begun(self._unstopped, self._stops)
        self._say(self._unstopped[:ready])
        self._unstopped = self._unstopped[ready:]

    def _say(self, text: str) -> None:
        if visible := self._splitter.feed(text):
            self._said.append(visible)

    def _finish(self, reason: str, cut: bool = False) -> None:
        self.finish_reason = reason
        if not cut and (rest := self._detokenizer.finish()):
            self.finish_reason = None
            self._hear(rest)  # may hold a stop string
            if self.finish_reason is not None:
                return
            self.finish_reason = reason
        self._say(self._unstopped)
        if rest := self._splitter.finish():
            self._said.append(rest)


class NameChooser:
    """Lets only tokens through that spell one of some names, until one is spelt."""

    def __init__(self, text: ChatText, names: Sequence[str]) -> None:
        self._text = text
        self._names = list(names)
        self._spelt = ""

    @property
    def active(self) -> bool:
        return bool(self._names) and not any(self._spelt.startswith(name) for name in self._names)

    def push(self, text: str) -> None:
        self._spelt += text if self.active else ""

    def choose(self, logits: Tensor) -> int:
        """The likeliest token of logits (V,) that goes on with a name."""
        order = logits.argsort(descending=True).tolist()
        return next((token for token in order if self._fits(token)), order[0])

    def _fits(self, token: int) -> bool:
        if token in self._text.added_ids:
            return False
        spelt = self._spelt + self._text.tokenizer.decode([token])
        return spelt != self._spelt and any(name.startswith(spelt) or spelt.startswith(name) for name in self._names)


def choose_tokens(rows: Sequence[Row], logits: Tensor, likeliest: Sequence[int]) -> list[int]:
    """The next token of each row, from logits (B, V), in which the ``likeliest`` are already known."""
    tokens = list(likeliest)
    for i, row in enumerate(rows):
        if row.forced:
            tokens[i] = row.choose(logits[i])
    if drawn := [i for i, row in enumerate(rows) if not row.greedy and not row.forced]:
        numbers = torch.tensor([(rows[i].request.temperature, rows[i].request.top_p or 1.0) for i in drawn])
        points = torch.tensor([rows[i].draw() for i in drawn], dtype=torch.float64)
        picked = logits.index_select(0, torch.tensor(drawn, device=logits.device))
        found = sample(picked, *(x.to(logits.device) for x in (*numbers.unbind(1), points))).tolist()
        for i, token in zip(drawn, found, strict=True):
            tokens[i] = token
    return tokens


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, points: Tensor) -> Tensor:
    """A token (N,) from each row of logits (N, V), by temperature (N,) and nucleus (N,).

    ``points`` (N,) in [0, 1) say where in the cumulative distribution of the nucleus, likeliest tokens first.
    """
    chances, order = torch.softmax(logits.float() / temperature[:, None], -1).sort(dim=-1, descending=True, stable=True)
    chances = chances.double()
    before = chances.cumsum(-1) - chances
    inside = before < top_p[:, None].double()
    inside[:, 0] = True
    reach = torch.where(inside, chances, 0.0).cumsum(-1)
    index = torch.searchsorted(reach, points[:, None] * reach[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return order.gather(1, torch.minimum(index, inside.sum(-1, keepdim=True) - 1))[:, 0]


def _begun(text: str, stops: Iterable[str]) -> int:
    """Length of the longest end of ``text`` that a stop string begins with."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)
