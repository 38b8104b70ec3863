"""The agents that commands and reports know by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...engine import Engine, load_engine
from ...errors import DeltaMemError
from ..agents import BM25, DeltaMem, DeltaMemBM25, Dense, EngineAgent, LoRA, NoMemory, SlidingWindow, WholeContext

TOKENS = 512  # of text in the prompt, for the window as for retrieval: they are compared
REFERENCE = "δ-mem"
"""The agent that others are compared with."""

_MAKERS: dict[str, Callable[[Engine], EngineAgent]] = {
    "none": NoMemory,
    "whole": WholeContext,
    "window": lambda engine: SlidingWindow(engine, tokens=TOKENS),
    "bm25": lambda engine: BM25(engine, tokens=TOKENS, form="turns"),
    "delta": lambda engine: DeltaMem(engine, REFERENCE),
    "delta-unrouted": lambda engine: DeltaMem(engine, f"{REFERENCE}, unrouted", routed=False),
    "delta-bm25": lambda engine: DeltaMemBM25(engine, tokens=TOKENS, form="turns"),
    "lora": LoRA,
}
AGENTS = tuple(_MAKERS)
"""Names that :func:`make_agents` knows."""


def make_agents(
    engine: Engine,
    names: Sequence[str] = AGENTS,
    more: Mapping[str, str] | None = None,
    device: str | None = None,
    embeddings: Any = None,
) -> list[EngineAgent]:
    """The agents of these names, a δ-mem agent for each further adapter, and retrieval by vectors if these are given.

    Args:
        names: some of :data:`AGENTS`.
        more: name of an agent -> adapter (name, folder or hub id), trained for the same backbone as ``engine``'s.
        device: of the further adapters.
        embeddings: of LangChain, for the agent "dense"; None: without it.

    Raises:
        DeltaMemError: an unknown name, no agents at all, a further adapter for another backbone, or a library that an
            agent needs is not installed.
    """
    if unknown := [name for name in names if name not in _MAKERS]:
        raise DeltaMemError(f"unknown agent {unknown[0]!r}; known are {', '.join(AGENTS)}")
    made = [_MAKERS[name](engine) for name in dict.fromkeys(names)]
    if embeddings is not None:
        made.append(Dense(engine, embeddings, tokens=TOKENS, form="turns"))
    for name, adapter in (more or {}).items():
        other = load_engine(adapter, device=device)
        if _backbone(other) != _backbone(engine):
            raise DeltaMemError(
                f"adapter {adapter} of agent {name!r} has another backbone ({_backbone(other)}, not "
                f"{_backbone(engine)}): give one that was trained for the same backbone"
            )
        made.append(DeltaMem(other, name))
    if not made:
        raise DeltaMemError(f"no agents to compare: give some of {', '.join(AGENTS)}")
    return made


def described(config: Mapping[str, Any]) -> str:
    """What an agent does, in a sentence, from its ``config``."""
    shown = f"{config.get('k')} passages at most, {config.get('tokens')} tokens, as {config.get('form')}"
    kinds = {
        "NoMemory": "the question alone in the prompt; nothing was kept",
        "WholeContext": f"all that was told in the prompt, within a window of {config['window']} tokens",
        "SlidingWindow": "the newest of what was told in the prompt, the rest is forgotten",
        "BM25": f"the text is kept; the best of it by BM25 is in the prompt ({shown})",
        "Dense": f"the text is kept; the best of it by cosine is in the prompt ({shown})",
        "DeltaMem": "what was told is in the state, the question alone in the prompt"
        + ("" if config.get("routed", True) else "; every message is written to all sub-states"),
        "DeltaMemBM25": f"the state, and text by BM25 in the prompt ({shown})",
        "LoRA": f"a LoRA trained on what was told (rank {config.get('rank')}, {config.get('epochs')} epochs, learning "
        f"rate {config.get('learning_rate')}); the question alone in the prompt",
    }
    return kinds.get(str(config["agent"]), str(config["agent"]))


def _backbone(engine: Engine) -> str:
    return engine.fingerprint.rpartition("/")[2]
