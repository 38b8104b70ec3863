"""Sentences of the world's phrasings as regular expressions, for the tests."""

import re
from functools import cache

from deltamem_agents.training.world.facts import Fact
from deltamem_agents.training.world.phrasings import Frame


@cache
def pattern(core: str, nouns: tuple[str, ...], entity: str = ".+?", value: str = ".+?") -> re.Pattern[str]:
    """A core as a regular expression; the value is its group 1."""
    named = f"(?:{'|'.join(map(re.escape, sorted(nouns, key=len, reverse=True)))})"
    text = re.escape(core).replace(r"\{n\}", named)
    return re.compile(text.replace(r"\{e\}", entity).replace(r"\{v\}", f"({value})"), re.IGNORECASE)


@cache
def sentence(frame: Frame, nouns: tuple[str, ...], entity: str) -> re.Pattern[str]:
    """A whole sentence of a frame; the value is its group 1."""
    leads, tails = (
        "|".join(map(re.escape, sorted(ends, key=len, reverse=True))) for ends in (frame.leads, frame.tails)
    )
    return re.compile(f"(?:{leads})?{pattern(frame.core, nouns, entity).pattern}(?:{tails})", re.IGNORECASE)


def stated(fact: Fact, text: str) -> list[str]:
    """The values that ``text``, one sentence, may tell of the fact's kind and entity."""
    if fact.entity.lower() not in text.lower():
        return []
    frames = {*fact.kind.statements(), *fact.kind.statements(held_out=True), *fact.kind.updates()}
    found = [sentence(f, fact.kind.nouns, re.escape(fact.entity)).fullmatch(text) for f in frames]
    return [match.group(1) for match in found if match]
