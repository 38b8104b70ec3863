"""What a report runs, and the command that makes each part of it alone."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...config import DEFAULT_ADAPTER
from ..recall import SEED
from ..world_mab import LENGTHS
from .roster import AGENTS


@dataclass(frozen=True)
class Plan:
    """What is measured; the fields are options of ``deltamem eval report``.

    Attributes:
        agents: some of :data:`.roster.AGENTS`.
        more_adapters: name -> adapter, for further δ-mem agents on the same backbone.
        lengths, examples: of World-MAB: its lengths, and examples of each competency and length.
        curves_questions: asked at each point; 0: no curves.
        perplexity_tokens: of each text; 0: no perplexity.
        text: a text file in UTF-8, for perplexity beside the world's own text.
        locomo, mab: path of locomo10.json, source of MemoryAgentBench; None: left out.
        embeddings: for retrieval by vectors; a text of :mod:`..foreign`; None: without that agent.
        judge: for MemoryAgentBench; a text of :mod:`..foreign`; None: what a model must judge has another metric.
        limit, questions: of these two: examples, and questions of each example; None: all.
        ablations: ``ablations.json`` of ablations; it is copied into the folder, and shown as tables.
    """

    adapter: str = DEFAULT_ADAPTER
    device: str | None = None
    agents: tuple[str, ...] = AGENTS
    more_adapters: Mapping[str, str] = field(default_factory=dict)
    lengths: tuple[str, ...] = tuple(LENGTHS)
    examples: int = 10
    seed: int = SEED
    curves_questions: int = 200
    perplexity_tokens: int = 20_000
    text: Path | None = None
    locomo: Path | None = None
    mab: str | None = None
    embeddings: str | None = None
    judge: str | None = None
    limit: int | None = None
    questions: int | None = None
    ablations: Path | None = None


def commands(plan: Plan, out: Path) -> dict[str, str]:
    """Part of the report -> the command line that makes it alone, into the same folder. "report": all of it."""
    base = ["--adapter", plan.adapter, *_option("--device", plan.device)]
    agents = [word for name in plan.agents for word in ("--agent", name)]
    agents += [word for name, path in plan.more_adapters.items() for word in ("--more-adapter", f"{name}={path}")]
    agents += _option("--embeddings", plan.embeddings)
    judge = _option("--judge", plan.judge)
    few = [*_option("--limit", plan.limit), *_option("--questions", plan.questions)]
    seed = _option("--seed", plan.seed if plan.seed != SEED else None)
    lengths = [word for name in plan.lengths for word in ("--length", name)]
    world = [*lengths, "--examples", str(plan.examples)]
    texts = _option("--text", plan.text)
    parts: dict[str, list[str]] = {
        "report": [
            *("report", *base, *agents, *world, *seed),
            *("--curves-questions", str(plan.curves_questions), "--perplexity-tokens", str(plan.perplexity_tokens)),
            *(*texts, *_option("--locomo", plan.locomo), *_option("--mab", plan.mab), *judge, *few),
            *(*_option("--ablations", plan.ablations), "--out", str(out)),
        ],
        "world": ["world", *base, *agents, *world, *seed, "--out", str(out)],
    }
    if plan.locomo is not None:
        parts["locomo"] = ["locomo", str(plan.locomo), *base, *agents, *few, "--out", str(out)]
    if plan.mab is not None:
        parts["mab"] = ["mab", plan.mab, *base, *agents, *judge, *few, "--out", str(out)]
    if plan.curves_questions:
        asked = ["--questions", str(plan.curves_questions)]
        parts["curves"] = ["curves", *base, *asked, *seed, "--out", str(out / "curves")]
    if plan.perplexity_tokens:
        size = ["--tokens", str(plan.perplexity_tokens)]
        parts["perplexity"] = ["perplexity", *base, *size, *texts, *seed, "--out", str(out / "perplexity.json")]
    return {name: shlex.join(["deltamem", "eval", *words]) for name, words in parts.items()}


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]
