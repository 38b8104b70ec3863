"""Perplexity: what a memory costs the backbone's general ability, on texts that have nothing to do with what it holds.

Three ways to read the same tokens: the backbone alone ("detached"), with an empty memory ("empty", the same losses bit
for bit), and with a memory that was told facts ("full"). Windows slide over the text by half their length: a token has
at least half a window before it, except at the beginning, and is scored once. Where the tokenizer begins texts with a
token of its own (BOS), every window begins with it.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine import Engine
from ..errors import DeltaMemError
from ..memory import MemoryState
from ..training.world import Spec, new_session, rng_for
from ..training.world.source import random_spec
from .recall import SEED, check_writable, write_sessions

FACTS = 16  # told to the full memory
LONGEST_WINDOW = 4096  # tokens; logits of a window of a large vocabulary take gigabytes


def run_perplexity(
    engine: Engine,
    path: Path | str | None = None,
    out: Path | str | None = None,
    tokens: int = 20_000,
    window: int | None = None,
    seed: int = SEED,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure on sessions of the embedded adapter's world that training never saw, and on a text file.

    Args:
        path: a text file in UTF-8; None: the world alone.
        out: where the document goes, as JSON.
        tokens: of each text, the first of which is not scored; a shorter file is read whole.
        window: tokens of text in a window, at least 2; None: the backbone's context window, at most 4,096.

    Returns:
        {"adapter", "tokens", "window", "stride", "facts", "seed", "texts": {"world" or "file": {"name", "tokens",
        "detached", "empty", "full", "full_minus_detached", "empty_bit_equal"}}}. Each of the three has "loss" (mean
        negative log-likelihood of a token, nats) and "perplexity" (e to that); the difference is of losses.

    Raises:
        DeltaMemError: a file that is not there, is not UTF-8, or has fewer than 2 tokens; a window out of range;
            ``out`` cannot be written. Nothing is measured then.
    """
    longest = engine.max_length - len(_beginning(engine))
    size = min(longest, LONGEST_WINDOW) if window is None else window
    if not 2 <= size <= longest:
        raise DeltaMemError(
            f"a window of {size} tokens: give 2 to {longest}, which the backbone's context window holds"
        )
    if tokens < 2:
        raise DeltaMemError(f"{tokens} tokens: give at least 2, for the first is not scored")
    if out is not None:
        check_writable(Path(out))
    texts = {"world": ("sessions of unseen seeds", world_tokens(engine, tokens, seed))}
    if path is not None:
        texts["file"] = (Path(path).name, file_tokens(engine, path)[:tokens])
    document: dict[str, Any] = {
        "adapter": engine.fingerprint,
        "tokens": tokens,
        "window": size,
        "stride": max(1, size // 2),
        "facts": FACTS,
        "seed": seed,
        "texts": {},
    }
    full = full_state(engine, seed)
    for key, (name, ids) in texts.items():
        row = document["texts"][key] = {"name": name} | compare(engine, ids, full, size)
        said = ", ".join(f"{way} {row[way]['perplexity']:.4f}" for way in ("detached", "empty", "full"))
        say(f"{key}: perplexity of {row['tokens']} tokens: {said}")
    if out is not None:
        Path(out).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return document


def compare(engine: Engine, ids: list[int], full: MemoryState, window: int) -> dict[str, Any]:
    """The three ways on one text; the fields are those of :func:`run_perplexity`."""
    detached, empty, told = (losses(engine, ids, s, window) for s in (None, engine.new_state(), full))
    return {
        "tokens": len(ids) - 1,
        "detached": _summary(detached),
        "empty": _summary(empty),
        "full": _summary(told),
        "full_minus_detached": round(float((told - detached).mean()), 6),
        "empty_bit_equal": torch.equal(detached, empty),
    }


def losses(engine: Engine, ids: list[int], state: MemoryState | None, window: int) -> Tensor:
    """Negative log-likelihood (nats) of each token but the first, (len(ids) - 1,) float64, in windows.

    Args:
        state: what is read, one row; None: the backbone alone.
        window: tokens of text in a window, at least 2; each begins half a window after the one before.
    """
    found, beginning = [], _beginning(engine)
    for start, first, end in _windows(len(ids), window):
        own = torch.tensor([beginning + ids[start:end]], device=engine.device)
        scored = end - first
        inputs = {"input_ids": own, "use_cache": False, "logits_to_keep": scored + 1}
        with engine.lock, torch.no_grad(), engine.reading(None if state is None else state.to(engine.device)):
            logits: Tensor = engine.model(**engine.accepted(inputs)).logits
        logits = logits[0, -(scored + 1) : -1].float()
        said = own[0, -scored:].to(logits.device)
        found.append((logits.logsumexp(-1) - logits.gather(-1, said[:, None])[:, 0]).double().cpu())
    return torch.cat(found)


def world_tokens(engine: Engine, count: int, seed: int = SEED) -> list[int]:
    """``count`` tokens of sessions as training draws them, of random numbers that it never drew, with chat markup."""
    ids: list[int] = []
    number = 0
    while len(ids) < count:
        rng = rng_for(seed, number, "perplexity/text")
        for message in new_session(rng, random_spec(rng)).messages:
            ids += engine.text.message({key: value for key, value in message.items() if key != "sub_state"})
        number += 1
    return ids[:count]


def file_tokens(engine: Engine, path: Path | str) -> list[int]:
    """The tokens of a text file in UTF-8; nothing in it is a control token. Raises as :func:`run_perplexity`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DeltaMemError(f"text {path}: {error.strerror}; give the path of a text file") from error
    except UnicodeDecodeError as error:
        raise DeltaMemError(f"text {path} is not UTF-8 ({error}); convert it") from error
    ids = engine.text.plain(text)
    if len(ids) < 2:
        raise DeltaMemError(f"text {path} has {len(ids)} tokens; give a longer one")
    return ids


def full_state(engine: Engine, seed: int = SEED) -> MemoryState:
    """A memory, one row, that was told the 16 facts of a session of its own."""
    return write_sessions(engine, [new_session(rng_for(seed, 0, "perplexity/told"), Spec(facts=FACTS))])


def _windows(count: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Where a window begins, where in it scoring begins, where it ends; together all tokens but the first, once."""
    stride = max(1, window // 2)
    start, first = 0, 1
    while first < count:
        end = min(start + window, count)
        yield start, first, end
        start, first = start + stride, end


def _beginning(engine: Engine) -> list[int]:
    """What the tokenizer puts before every text: the BOS token, or nothing."""
    ids: list[int] = engine.tokenizer("")["input_ids"]
    return ids[:1] if ids[:1] == [engine.tokenizer.bos_token_id] else []


def _summary(values: Tensor) -> dict[str, float]:
    mean = float(values.mean())
    return {"loss": round(mean, 6), "perplexity": round(math.exp(mean), 6)}
