"""Reply: one answer in the making, token by token."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .constraint import Constraint
from .grammar import grammars
from .reasoning import CLOSING, THINK, THOUGHT, ReasoningSplitter, mark_id, thinks
from .request import Chunk, Generation, Request
from .sampling import sample
from .text import ChatText, Detokenizer
from .tool_calls import ARGUMENTS, NAME, OPEN, ReplySplitter, forced_names


class Row:
    """One reply in the making: from token ids to text, reasoning, tool calls and the reason of its end."""

    def __init__(self, text: ChatText, request: Request, ends: frozenset[int]) -> None:
        """
        Raises:
            ValueError: the request's tool choice names no tool, a schema cannot be followed, it asks for no tokens, or
                there is no such sampling.
            ImportError: a schema or a forced tool, without llguidance.
        """
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {request.max_new_tokens}")
        if request.temperature < 0 or not 0 < (1.0 if request.top_p is None else request.top_p) <= 1:
            raise ValueError(
                f"temperature {request.temperature} and top_p {request.top_p} cannot be sampled with: give a "
                "temperature of at least 0, and a top_p above 0 and at most 1"
            )
        tools = None if request.tool_choice == "none" else request.tools or None
        names = forced_names(tools, request.tool_choice)
        if names and request.schema is not None:
            raise ValueError(f"tool_choice {request.tool_choice!r} and a schema for the reply: ask for one of them")
        self.request = request
        self.ends = ends
        self.prompt = list(request.ids) if request.ids is not None else _prompt(text, request, tools)
        self.tokens: list[int] = []  # of the reply so far
        self.finish_reason: str | None = None
        self._limit = request.max_new_tokens
        self._said: list[str] = []
        self._thought: list[str] = []
        self._taken = (0, 0, 0)  # pieces said and thought, and calls, that have been passed on
        self._heard = False  # some text of a reply with a schema
        self._unstopped = ""  # text that may be the beginning of a stop string
        self._stops = [stop for stop in request.stop if stop]
        self._detokenizer = Detokenizer(text)
        self._splitter = ReplySplitter(tools is not None, not request.parallel_tool_calls, request.reply_id)
        self._reasoning = self._begin(text, constrained=bool(names) or request.schema is not None)
        self._marks = _hidden_marks(text) if self._reasoning.active else {}
        self._constraint: Constraint | None = None
        self._generator: torch.Generator | None = None
        if names:
            self._force(text, names)
        elif request.schema is not None:
            single = not request.parallel_tool_calls
            self._constraint = grammars(text, ends).reply(request.schema, tools, single)

    def fit(self, window: int) -> None:
        """Let prompt and reply together stay within ``window`` tokens.

        Raises ValueError when that leaves too few for what the reply must hold.
        """
        self._limit = min(self._limit, window - len(self.prompt))
        needed = self._constraint.needed if self._constraint is not None else 0
        if needed > self._limit:
            raise ValueError(
                f"the shortest reply of this form has {needed} tokens, and there is room for {self._limit} "
                f"(max_new_tokens {self.request.max_new_tokens}, after a prompt of {len(self.prompt)} in a context "
                f"window of {window}): allow more, or ask for less"
            )

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
        if self._constraint is not None:
            self._constraint.push(token)
            if self._constraint.over:
                self._constraint = None
        fresh = self._detokenizer.push(token) or self._marks.get(token, "")
        self._listen(*self._reasoning.feed(fresh))
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
        assert self._constraint is not None
        mask = self._constraint.allowed(len(logits)).to(logits.device)
        logits = logits.masked_fill(~mask, -torch.inf)
        if self.request.temperature > 0:
            numbers = torch.tensor([self.request.temperature, self.request.top_p or 1.0], device=logits.device)
            point = torch.tensor([self.draw()], dtype=torch.float64, device=logits.device)
            token = int(sample(logits[None], numbers[:1], numbers[1:], point))
        else:
            token = int(logits.argmax())
        return self._constraint.settle(token, self._limit - len(self.tokens))

    @property
    def forced(self) -> bool:
        """Whether only some tokens may come next."""
        return self._constraint is not None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken next."""
        return self.request.temperature <= 0 and not self.forced

    def give_up(self) -> None:
        """End the reply where it is."""
        if self.finish_reason is None:
            self._finish("stop")

    def take(self) -> Chunk:
        """What has come since the last call: text, reasoning, and tool calls; all may be empty."""
        said, thought, calls = self._taken
        found = self._splitter.calls
        self._taken = (len(self._said), len(self._thought), len(found))
        return Chunk("".join(self._said[said:]), None, "".join(self._thought[thought:]), found[calls:])

    def result(self) -> Generation:
        """The reply so far; whole once ``finish_reason`` is set."""
        calls, invalid = self._splitter.calls, self._splitter.invalid
        reason = "tool_calls" if calls and self.finish_reason == "stop" else self.finish_reason or "stop"
        said, thought = "".join(self._said), "".join(self._thought)
        return Generation(said, calls, invalid, reason, len(self.prompt), len(self.tokens), thought)

    def _begin(self, text: ChatText, constrained: bool) -> ReasoningSplitter:
        """What takes the reasoning out of the reply; in a constrained reply there is none."""
        if not thinks(text.tokenizer):
            return ReasoningSplitter(active=False)
        inside = text.tokenizer.decode(self.prompt[-16:]).rstrip().endswith(THINK)
        if constrained and inside:
            self.prompt = self.prompt + text.markup(CLOSING)
        return ReasoningSplitter(active=not constrained, inside=inside and not constrained)

    def _force(self, text: ChatText, names: list[str]) -> None:
        """Begin the reply with a tool call: of a tool named, or of one among several."""
        known = (names[0], ARGUMENTS) if len(names) == 1 else ()
        self.prompt = self.prompt + text.markup(OPEN + NAME, *known)
        self._splitter.feed("".join((OPEN + NAME, *known)))
        self._constraint = grammars(text, self.ends).call(self.request.tools or (), names[0] if known else None)

    def _listen(self, thought: str, text: str) -> None:
        if thought:
            self._thought.append(thought)
        if text:
            self._hear(text)

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
        if self._splitter.over:
            self._finish("stop", cut=True)

    def _say(self, text: str) -> None:
        if text and self.request.schema is not None and not self._heard:
            self._splitter.active = self._splitter.active and text.startswith(OPEN[0])  # calls, or JSON: no calls in it
            self._heard = True
        if visible := self._splitter.feed(text):
            self._said.append(visible)

    def _finish(self, reason: str, cut: bool = False) -> None:
        """End the reply; unless it was ``cut`` before what is held back, that belongs to it and may hold a stop."""
        if not cut:
            rest = self._detokenizer.finish()
            pieces = [self._reasoning.feed(rest), self._reasoning.finish()]
            self.finish_reason = None
            for piece in pieces:
                self._listen(*piece)
                if self.finish_reason is not None:
                    return
        self.finish_reason = reason
        self._say(self._unstopped)
        if rest := self._splitter.finish():
            self._said.append(rest)


def _begun(text: str, stops: Iterable[str]) -> int:
    """Length of the longest end of ``text`` that a stop string begins with."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)


def _prompt(text: ChatText, request: Request, tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
    if request.template_options is None:
        return text.prompt(request.conversation, tools)
    return text.prompt(request.conversation, tools, request.template_options)


def _hidden_marks(text: ChatText) -> dict[int, str]:
    """Marks of reasoning that are special tokens, and so never come as text."""
    ids = ((mark_id(text.tokenizer, mark), mark) for mark in (THINK, THOUGHT))
    return {number: mark for number, mark in ids if number is not None and number in text.hidden}
