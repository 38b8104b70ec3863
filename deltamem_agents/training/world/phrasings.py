"""How facts are told, asked for and changed: frames, made of a few building blocks so that there are very many.

A frame is a core ("the {n} of {e} is {v}") that gets a lead ("By the way, ") and a tail (" now."). ``{n}`` is the noun of
the kind of fact, ``{e}`` the entity, ``{v}`` the value. The ``HELD_OUT_…`` cores are never used in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

PLAIN = 0.5  # share of sentences without a lead

_ITS = ("the {n} of {e}", "{e}'s {n}", "the {n} for {e}")
_MY = ("my {n}",)


@dataclass(frozen=True)
class Frame:
    """A core with the leads and tails that suit it."""

    core: str
    leads: tuple[str, ...]
    tails: tuple[str, ...]

    def say(self, rng: Random, noun: str, entity: str, value: str = "") -> str:
        """One sentence; its first letter is a capital unless it is that of a name."""
        lead = "" if rng.random() < PLAIN else rng.choice(self.leads)
        tail = rng.choice(self.tails)
        core = self.core.replace("{n}", noun).replace("{e}", entity).replace("{v}", value)
        named = self.core.startswith(("{e}", "{v}")) and not entity.startswith("the ")
        if not lead and not named:
            core = core[:1].upper() + core[1:]
        return lead + core + tail


def _frames(
    cores: Sequence[str], it: Sequence[str], leads: tuple[str, ...], tails: tuple[str, ...]
) -> tuple[Frame, ...]:
    """A frame for each core; those with ``{it}`` once for each way to name the fact."""
    texts = [core.replace("{it}", name) for core in cores for name in (it if "{it}" in core else ("",))]
    return tuple(Frame(text, leads, tails) for text in texts)


_LEADS = (
    "Please note that ", "Remember that ", "Keep in mind that ", "It turns out that ", "You should know that ",
    "I was told that ", "Just to let you know, ", "FYI, ", "FYI: ", "By the way, ", "For your notes, ", "Just so you know, ",
    "One thing to remember: ", "I want you to know that ", "Actually, ", "As far as I know, ", "Note: ", "OK, ", "So ",
    "Also, ", "And ", "Hi, ", "Hey, ", "For the record: ", "Please remember: ", "I think ", "I heard that ", "We decided that ",
    "Good to know: ", "Don't forget that ", "Let me tell you that ", "Remember: ", "Now ", "Please remember that ",
)  # fmt: skip
_TAILS = (
    ".", ".", ".", ".", ".", ".", ".", "", "", "!", " now.", ", thanks.", ", by the way.", " as of today.", ", for your notes.",
    ", just so you know.", ", please remember.", ". Please remember it.", ", OK?",
)  # fmt: skip
_ORDER_LEADS = (
    "Please ", "Please ", "Let's ", "OK, ", "Also, ", "Could you ", "You can ", "Now ", "And ", "Then ", "Can you ", "Let us ",
)  # fmt: skip
_ORDER_TAILS = (".", ".", ".", ".", "", "!", ", please.", ", thanks.", " from now on.")
_CHANGE_LEADS = (
    "Update: ", "Update: ", "Correction: ", "Correction: ", "News: ", "From now on ", "Sorry, ", "Attention: ", "Actually, ",
    "Please note that ", "FYI, ", "It turns out that ", "Change of plan: ", "By the way, ", "Hey, ", "OK, ",
)  # fmt: skip
_ASK_LEADS = (
    "Quick question: ", "Hey, ", "So ", "So, ", "And ", "OK, ", "Sorry, ", "One question: ", "Help me out: ", "I forgot, ",
    "By the way, ", "Hi! ", "Now, ", "I forgot: ", "Question: ", "One more question: ", "Hello, ", "Please tell me, ",
)  # fmt: skip
_ASK_TAILS = ("?", "?", "?", "?", "?", "?", "", " again?", "? Thanks!", ", please?", "? I forgot.", " now?")
_REQUEST_LEADS = (
    "Please ", "Please ", "Can you ", "Could you ", "Would you ", "OK, ", "Hey, ", "So ", "Quick: ", "I forgot. Please ",
    "Now ", "And ", "Can you please ",
)  # fmt: skip
_REQUEST_TAILS = (".", ".", ".", "?", ", please.", " again.", " once more.", "")
_GREETINGS = ("OK, ", "Hi! ", "Also, ", "FYI: ", "Hey, ")
_WISH_LEADS = ("Hey, ", "Sorry, ", "OK, ", "So ", "Now ", "Hi! ", "Quick question: ", "And ")
_WISH_TAILS = (".", ".", "?", " again.", ", please.", "")
_BARE_TAILS = ("?", "?", "?", " please?", "")

_TOLD = ("{it} is {v}", "{it} is {v}", "{it} will be {v}", "{it} should be {v}", "{v} is {it}",
         "we have {v} as {it}", "they gave me {v} as {it}")  # fmt: skip
_TOLD_ALONE = ("{it}? It is {v}", "{it}: {v}")
_TOLD_OF = (
    "{e} has {v} as its {n}", "{e} has the {n} {v}", "for {e}, the {n} is {v}", "for {e} the {n} is {v}",
    "the {n} that we use for {e} is {v}", "{e} {n}: {v}", "{e}: {n} {v}", "{e} {n} is {v}", "about {e}: the {n} is {v}",
    "as {n} of {e} we chose {v}", "as {n} for {e} we chose {v}", "{e} uses {v} as its {n}", "{e} got the {n} {v}",
    "we set the {n} of {e} to {v}", "the {n} of {e} was set to {v}",
)  # fmt: skip
_TOLD_OF_ME = ("I have {v} as my {n}", "about me: my {n} is {v}", "as my {n} I chose {v}", "I use {v} as my {n}",
               "for me, the {n} is {v}", "I set my {n} to {v}")  # fmt: skip
_ORDERS = ("use {v} as {it}", "set {it} to {v}", "write down {v} as {it}", "write down {it}: {v}", "remember {it}: {v}",
           "note {it}: {v}", "save {v} as {it}", "keep {v} as {it}", "store {it}: {v}")  # fmt: skip
_CHANGES = ("{it} is now {v}", "{it} is {v} now", "{it} has changed to {v}", "{it} changed, it is {v} now",
            "we changed {it} to {v}", "{it} is no longer the same, it is {v}", "{it} is {v} from now on")  # fmt: skip
_CHANGES_OF = ("{e} has a new {n}: {v}", "{e} got a new {n}: {v}", "forget the old {n} of {e}; it is {v} now",
               "the new {n} of {e} is {v}")  # fmt: skip
_CHANGES_OF_ME = ("I have a new {n}: {v}", "forget my old {n}; it is {v} now", "my new {n} is {v}")
_CHANGE_ORDERS = ("change {it} to {v}", "update {it} to {v}")
_ASKED = ("what is {it}", "what is {it}", "what was {it}", "what's {it}", "what did I say {it} is", "what do we have as {it}",
          "what should {it} be", "and what about {it}", "what about {it}")  # fmt: skip
_ASKED_OF = ("what {n} did I tell you for {e}", "which {n} does {e} have", "what {n} does {e} have",
             "which {n} do we use for {e}", "for {e}, what is the {n}", "which is the {n} of {e}")  # fmt: skip
_ASKED_OF_ME = ("what {n} did I tell you", "which {n} do I have", "what {n} do I have", "which {n} do I use",
                "for me, what is the {n}", "which is my {n}")  # fmt: skip
_REQUESTS = ("tell me {it}", "tell me what {it} is", "give me {it}", "remind me of {it}", "remind me what {it} is",
             "let me know {it}", "repeat {it}", "look up {it} in your memory")  # fmt: skip
_WISHES = ("I need {it}", "I forgot {it}", "I would like to know {it}", "do you remember {it}", "do you know {it}",
           "do you recall what {it} is", "I need to know {it}", "I forgot {it}. What is it", "I want to know what {it} is")  # fmt: skip
_BARE = ("{it}", "so {it} is what", "and {it}")
_BARE_OF = ("{e}: {n}", "{e} {n}")
_BARE_OF_ME = ("me: {n}",)


def _told(it: Sequence[str], own: Sequence[str]) -> tuple[Frame, ...]:
    return (
        _frames((*_TOLD, *own), it, _LEADS, _TAILS)
        + _frames(_TOLD_ALONE, it, _GREETINGS, _TAILS[:10])
        + _frames(_ORDERS, it, _ORDER_LEADS, _ORDER_TAILS)
    )


def _changed(it: Sequence[str], own: Sequence[str]) -> tuple[Frame, ...]:
    return _frames((*_CHANGES, *own), it, _CHANGE_LEADS, _TAILS[:10]) + _frames(
        _CHANGE_ORDERS, it, _ORDER_LEADS, _ORDER_TAILS
    )


def _asked(it: Sequence[str], own: Sequence[str], bare: Sequence[str]) -> tuple[Frame, ...]:
    return (
        _frames((*_ASKED, *own), it, _ASK_LEADS, _ASK_TAILS)
        + _frames(_REQUESTS, it, _REQUEST_LEADS, _REQUEST_TAILS)
        + _frames(_WISHES, it, _WISH_LEADS, _WISH_TAILS)
        + _frames((*_BARE, *bare), it, _WISH_LEADS, _BARE_TAILS)
    )


STATE, SELF_STATE = _told(_ITS, _TOLD_OF), _told(_MY, _TOLD_OF_ME)
UPDATE, SELF_UPDATE = _changed(_ITS, _CHANGES_OF), _changed(_MY, _CHANGES_OF_ME)
ASK, SELF_ASK = _asked(_ITS, _ASKED_OF, _BARE_OF), _asked(_MY, _ASKED_OF_ME, _BARE_OF_ME)

HELD_OUT_STATE = _frames(
    ("the {n} that {e} has is {v}", "{e} goes with the {n} {v}", "{e} chose {v} to be its {n}"), (), _LEADS, _TAILS
) + _frames(("record {v} as the {n} for {e}",), (), _ORDER_LEADS, _ORDER_TAILS)
HELD_OUT_SELF_STATE = _frames(
    ("the {n} that I have is {v}", "I go with the {n} {v}", "I chose {v} to be my {n}"), (), _LEADS, _TAILS
) + _frames(("record {v} as my {n}",), (), _ORDER_LEADS, _ORDER_TAILS)
HELD_OUT_ASK = _frames(
    ("as to {e}, what is the {n}", "what would the {n} of {e} be"), (), _ASK_LEADS, _ASK_TAILS
) + _frames(("say what {e} has as its {n}", "refresh my memory about {e}'s {n}"), (), _REQUEST_LEADS, _REQUEST_TAILS)
HELD_OUT_SELF_ASK = _frames(
    ("as to me, what is the {n}", "what would my {n} be"), (), _ASK_LEADS, _ASK_TAILS
) + _frames(("say what I have as my {n}", "refresh my memory about my {n}"), (), _REQUEST_LEADS, _REQUEST_TAILS)


def idioms(states: Sequence[str], asks: Sequence[str]) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
    """Cores of one kind's own, as frames to tell and to ask."""
    return _frames(states, (), _LEADS, _TAILS), _frames(asks, (), _ASK_LEADS, _ASK_TAILS)
