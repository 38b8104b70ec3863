"""Closing: a short way from anywhere in a JSON reply to an end that its grammar allows."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BEGINNINGS = b'}],:"0123456789ntf[{-'  # of what stands outside of strings, from what ends soonest
SEPARATORS, NESTING = (b",", b":", b'"', b"}", b"]"), (b"[", b"{")
QUICK = (("wide", 0), ("short", 0), ("long", 0), ("short", 1))  # styles of a way, and how much is tried out
THOROUGH = (("wide", 2), ("short", 2), ("long", 2))
RECENT = 2  # so many tokens of a string are not taken again at once
TRIES = 96  # so many ways are tried out for one plan
FEW, TRIED = 64, 8  # where so few tokens can come inside a string, so many of them are tried out
AGAIN = 1 << 20  # what taking a token once more costs, above all ranks


class Closer:
    """Finds plans for the replies of one tokenizer: nothing but what the grammar asks for, and the end."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: llguidance's."""
        self.end: int = tokenizer.eos_token
        self.spelt = [
            b"" if tokenizer.is_special_token(i) else tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)
        ]
        closing = sorted((i for i, s in enumerate(self.spelt) if s), key=lambda i: (-len(self.spelt[i]), i))
        self.outside = [i for i in closing if not self.spelt[i].strip(b"}]\n") and self.spelt[i][:1] != b"\n"]
        self.inside = [i for i in closing if self.spelt[i][:1] == b'"' and not self.spelt[i][1:].strip(b"}]\n")]
        self.ranks = {
            name: torch.tensor([rank(spelt) for spelt in self.spelt])
            for name, rank in (
                ("outside", _rank_outside),
                ("short", _rank_short),
                ("wide", _rank_short),
                ("long", _rank_long),
            )
        }

    def scan(self, token: int, quoted: bool, escaped: bool) -> tuple[bool, bool]:
        """Whether JSON is inside a string, and behind a backslash in it, after ``token``."""
        for byte in self.spelt[token]:
            if quoted and escaped:
                escaped = False
            elif quoted and byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                quoted = not quoted
        return quoted, escaped

    def plan(
        self,
        matcher: Any,
        quoted: bool,
        until_end: bool,
        limit: int,
        *,
        escaped: bool = False,
        thorough: bool = False,
        hurried: bool = False,
    ) -> list[int] | None:
        """Tokens that end the reply of ``matcher``, which stays as it is; None: none found of ``limit`` or fewer.

        ``thorough``: look for a shorter one, for longer. ``hurried``: look once.
        """
        best: list[int] | None = None
        for style, depth in THOROUGH if thorough else QUICK[: 1 if hurried else None]:
            way = _Way(self, matcher.deep_copy(), quoted, escaped, until_end, style)
            found = way.go(limit if best is None else len(best) - 1, depth)
            best = found if found is not None else best
            if not way.chose or (best is not None and not thorough):
                break
        return best


class _Way:
    """One way to the end."""

    def __init__(self, closer: Closer, matcher: Any, quoted: bool, escaped: bool, until_end: bool, style: str) -> None:
        self.chose = False  # at least once another style would have gone elsewhere
        self._closer, self._matcher, self._until_end, self._style = closer, matcher, until_end, style
        self._quoted, self._escaped = quoted, escaped
        self._tokens: list[int] = []
        self._taken: Counter[int] = Counter()  # where there was a choice
        self._recent: list[int] = []  # the last of them
        self._tries = TRIES

    def go(self, limit: int, depth: int) -> list[int] | None:
        """The tokens up to the end. ``depth``: 0 tries out nothing, 1 at the first choice alone, 2 at each."""
        while len(self._tokens) + self._until_end <= limit:
            if self._matcher.is_accepting():
                return self._tokens + [self._closer.end] * self._until_end
            if self._close():
                continue
            if forced := self._matcher.compute_ff_tokens():
                self._take(forced)
                continue
            token = self._choose(limit, depth)
            if token is None:
                return None
            depth = depth if depth != 1 or not self.chose else 0
            self._take([token])
        return None

    def _close(self) -> bool:
        """Take the token that closes most, if one can come."""
        for token in self._closer.inside if self._quoted else self._closer.outside:
            if self._matcher.validate_tokens([token]) == 1:
                self._take([token])
                return True
        return False

    def _choose(self, limit: int, depth: int) -> int | None:
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed = bias.nonzero()[:, 0]
        if not len(allowed):
            return None
        self.chose = self.chose or self._quoted
        if self._quoted and depth and len(allowed) <= FEW and self._tries > 0:
            return self._try_out(allowed[self._ranks(allowed, "long").argsort(stable=True)[:TRIED]].tolist(), limit)
        token = int(allowed[self._ranks(allowed, self._style if self._quoted else "outside").argmin()])
        self._count(token)
        return token

    def _count(self, token: int) -> None:
        if self._quoted or self._closer.spelt[token][:1] not in SEPARATORS:
            self._taken[token] += 1
            self._recent = [*self._recent, token][-RECENT:]

    def _ranks(self, allowed: Tensor, style: str) -> Tensor:
        """Of the tokens that can come, the lowest first; those that came before rank behind all others.

        Inside strings, the long style takes what fills most, the others what is short. The short one soon forgets what
        came before, as a pattern may ask for a sign again and again; the wide one never does.
        """
        ranks = self._closer.ranks[style][allowed]
        taken = Counter(self._recent) if self._quoted and self._style == "short" else self._taken
        for token, times in taken.items():
            ranks[allowed == token] += AGAIN * times
        return ranks

    def _try_out(self, tokens: Sequence[int], limit: int) -> int:
        """The token after which the end is nearest."""
        self._tries -= len(tokens)
        best, room = tokens[0], limit - len(self._tokens) - 1
        for token in tokens:
            way = _Way(
                self._closer, self._matcher.deep_copy(), self._quoted, self._escaped, self._until_end, self._style
            )
            way._taken, way._recent = Counter(self._taken), list(self._recent)
            way._take([token])
            if (found := way.go(room + 1, 0)) is not None:
                best, room = token, len(found) - 2
        self._count(best)
        return best

    def _take(self, tokens: Sequence[int]) -> None:
        self._matcher.consume_tokens(tokens)
        self._tokens += tokens
        for token in tokens:
            self._quoted, self._escaped = self._closer.scan(token, self._quoted, self._escaped)
            if not self._quoted and self._closer.spelt[token][-1:] in SEPARATORS:  # what is nested may be so for ever
                nested = {t: n for t, n in self._taken.items() if self._closer.spelt[t][:1] in NESTING}
                self._taken = Counter(nested)


def _rank_outside(spelt: bytes) -> int:
    place = BEGINNINGS.find(spelt[:1]) if spelt else -1
    return (place if place >= 0 else len(BEGINNINGS)) * 256 + min(len(spelt), 255)


def _rank_short(spelt: bytes) -> int:
    """Inside of strings: signs before digits before letters, as patterns use signs to go on to their next part."""
    if not spelt or not spelt.isascii() or b"\\" in spelt or not spelt.decode().isprintable():
        return 4096
    kind = 2 if spelt[:1].isalpha() else 1 if spelt[:1].isdigit() else 0
    return min(len(spelt), 255) * 4 + kind


def _rank_long(spelt: bytes) -> int:
    """Inside of strings: what fills most."""
    plain = spelt.isalnum() and spelt.isascii()
    return 256 - min(len(spelt), 255) if plain else 512 + min(len(spelt), 255)
