"""Scores: how likely answers are, with a memory and without it, when nothing is generated."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BackboneError, ContextOverflow, StateError
from ..memory import MemoryState
from .reasoning import CLOSING, THINK, thinks
from .text import Message

if TYPE_CHECKING:
    from .engine import Engine

ROWS = 64  # most answers of one forward call
TOKENS = 32768  # most tokens of one, padding included
LOGITS = 1 << 27  # most logits of one


def log_likelihoods(
    engine: "Engine", conversation: Sequence[Message], answers: Sequence[str], state: MemoryState | None
) -> list[float]:
    """For each answer, the log-probability (nats) of its tokens and the end of the turn after the conversation.

    Args:
        conversation: {"role", "content", …}, up to where the assistant answers.
        state: the memory that is read, one row; None: the backbone alone.

    Raises:
        ContextOverflow: the conversation and an answer do not fit into the context window.
        FingerprintMismatch, StateError: the state is not of this adapter and backbone, or has more rows than one.
    """
    if state is not None and state.batch_size != 1:
        raise StateError(f"{state.batch_size} rows of state for one conversation: give one")
    prompt, end = _prompt(engine, conversation), _end_of_turn(engine)
    rows = [[*engine.text.plain(answer), end] for answer in answers]
    if rows and len(prompt) + max(map(len, rows)) > engine.max_length:
        raise ContextOverflow(
            f"the conversation has {len(prompt)} tokens, the longest answer {max(map(len, rows))}, the backbone's "
            f"context window {engine.max_length}: send fewer messages, or shorter answers"
        )
    scores = [0.0] * len(rows)
    for group in _groups(engine, len(prompt), rows):
        for i, score in zip(group, _score(engine, prompt, [rows[i] for i in group], state), strict=True):
            scores[i] = score
    return scores


def recall_scores(
    engine: "Engine", question: str | Sequence[Message], answers: Sequence[str], state: MemoryState
) -> list[float]:
    """For each answer, how much likelier the memory makes it: its log-likelihood with ``state`` minus that without.

    Positive: the memory speaks for it, whatever the backbone thinks of it; with an empty memory, exactly 0. Nothing is
    generated. Raises as :func:`log_likelihoods`.
    """
    conversation = [{"role": "user", "content": question}] if isinstance(question, str) else question
    with_memory = log_likelihoods(engine, conversation, answers, state)
    without = log_likelihoods(engine, conversation, answers, None)
    return [one - other for one, other in zip(with_memory, without, strict=True)]


def _score(engine: "Engine", prompt: list[int], rows: Sequence[list[int]], state: MemoryState | None) -> list[float]:
    """Answers after one prompt, in one forward call.

    They are padded on the right: all begin at one place, no token sees what comes after it, and no mask is needed.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([prompt + own + [engine.pad] * (longest - len(own)) for own in rows], device=engine.device)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False, "logits_to_keep": longest + 1}
    states = None if state is None else state.to(engine.device).rows([0] * len(rows))
    with engine.lock, torch.no_grad(), engine.reading(states):
        logits: Tensor = engine.model(**engine.accepted(inputs)).logits
    logits = logits[:, -(longest + 1) : -1].float()
    said = ids[:, -longest:].to(logits.device)
    chances = (logits.gather(-1, said[..., None])[..., 0] - logits.logsumexp(-1)).double()
    lengths = torch.tensor([len(own) for own in rows], device=logits.device)
    inside = torch.arange(longest, device=logits.device) < lengths[:, None]
    scores: list[float] = chances.where(inside, 0.0).sum(-1).tolist()
    return scores


def _groups(engine: "Engine", prompt: int, rows: Sequence[list[int]]) -> Iterator[list[int]]:
    """Indices of ``rows`` that go into one forward call, answers of about one length together."""
    vocabulary = len(engine.tokenizer)
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        width, size = len(rows[i]), len(group) + 1  # the longest so far
        too_many = size > ROWS or size * (prompt + width) > TOKENS or size * (width + 1) * vocabulary > LOGITS
        if group and too_many:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _prompt(engine: "Engine", conversation: Sequence[Message]) -> list[int]:
    """Up to where the answer begins: a thought that the prompt opens is closed."""
    prompt = engine.text.prompt(conversation)
    thinking = thinks(engine.tokenizer) and engine.tokenizer.decode(prompt[-8:]).rstrip().endswith(THINK)
    return prompt + engine.text.markup(CLOSING) if thinking else prompt


def _end_of_turn(engine: "Engine") -> int:
    """The token with which the chat template ends a reply."""
    rendered = engine.text.message({"role": "assistant", "content": "x"})
    end = next((number for number in reversed(rendered) if number in engine.ends), None)
    if end is None:
        raise BackboneError("the backbone's chat template ends no reply: answers cannot be scored with it")
    return end
