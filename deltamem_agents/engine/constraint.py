"""Constraint: which tokens of one reply may come next, so that it conforms to a grammar and ends in time."""

from typing import Any

import torch
from torch import Tensor

from .closing import Closer

FARTHEST = 4096  # tokens of a plan that is looked for without a limit
MARGIN = 8  # with fewer tokens to spare than these, the plan is soon followed


class Constraint:
    """One reply on its way through a grammar.

    There always is a plan: tokens that end the reply as it should end. A token that leaves too little room for the plan
    after it is not taken, the next one of the plan before it is.

    Attributes:
        over: the reply conforms, and what comes next is free.
    """

    def __init__(
        self, tokenizer: Any, closer: Closer, matcher: Any, plan: list[int], until_end: bool, quoted: bool
    ) -> None:
        """
        Args:
            plan: the tokens of a short reply.
            until_end: the grammar describes all of the reply, up to its end token.
            quoted: the reply begins inside of a JSON string.
        """
        self.over = False
        self._tokenizer, self._closer, self._matcher = tokenizer, closer, matcher
        self._plan, self._until_end, self._quoted = plan, until_end, quoted
        self._escaped = False
        self._settled: tuple[int, list[int]] | None = None  # a token, and the plan after it

    def copy(self) -> "Constraint":
        """One that goes on by itself."""
        made = Constraint(
            self._tokenizer, self._closer, self._matcher.deep_copy(), self._plan, self._until_end, self._quoted
        )
        made.over, made._escaped = self.over, self._escaped
        return made

    @property
    def needed(self) -> int:
        """Tokens that are enough to end the reply."""
        return len(self._plan)

    def allowed(self, size: int) -> Tensor:
        """Which of ``size`` tokens may come next: (size,) bool, on the CPU."""
        marks = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)[:size].bool()
        mask = torch.zeros(size, dtype=torch.bool)
        mask[: len(marks)] = marks
        return mask

    def settle(self, token: int, left: int) -> int:
        """``token``, one of those allowed, if the reply can be ended after it; else one that brings the end nearer.

        Args:
            left: tokens that may still come, this one included.
        """
        plan = self._after(token, left - 1)
        if plan is None:
            token, plan = self._plan[0], self._plan[1:]
        self._settled = (token, plan)
        return token

    def push(self, token: int) -> None:
        """Take the next token. Raises ValueError when the grammar does not let it through."""
        settled, self._settled = self._settled, None
        plan = settled[1] if settled is not None and settled[0] == token else self._after(token, FARTHEST)
        if plan is None or not self._matcher.consume_token(token):
            raise ValueError(f"token {token} is none of those that the grammar of the reply lets through")
        self._quoted, self._escaped = self._closer.scan(token, self._quoted, self._escaped)
        self._plan = plan
        self.over = not self._until_end and not plan and self._matcher.is_accepting()

    def _after(self, token: int, left: int) -> list[int] | None:
        """A plan of at most ``left`` tokens for after ``token``."""
        if token == self._plan[0]:
            return self._plan[1:]
        if len(self._plan) <= left:
            going_on = [token, *self._plan]
            if self._matcher.validate_tokens(going_on) == len(going_on):
                return self._plan
        room = left - len(self._plan)
        if room < 0:  # hardly any token would lead to a shorter plan
            return None
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token):
            return None
        quoted, escaped = self._closer.scan(token, self._quoted, self._escaped)
        return self._closer.plan(matcher, quoted, self._until_end, left, escaped=escaped, hurried=room < MARGIN)
