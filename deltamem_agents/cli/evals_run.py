"""``deltamem eval world``, ``mab`` and ``locomo``: benchmarks asked of several agents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .evals_options import (
    SEED,
    AgentsOption,
    DeviceOption,
    EmbeddingsOption,
    ExamplesOption,
    FolderOption,
    JudgeOption,
    LengthsOption,
    LimitOption,
    MoreOption,
    QuestionsOption,
    SeedOption,
    open_agents,
)
from .options import DEFAULT, AdapterOption, examples, quiet_libraries

if TYPE_CHECKING:
    from ..evals.agents import EngineAgent
    from ..evals.contract import Benchmark

WORLD = examples(
    "deltamem eval world --length short --examples 2 --out results",
    "deltamem eval world --agent delta --agent whole --agent lora --out results",
    "deltamem eval world --agent delta --more-adapter TSW=runs/tsw --out results",
)
MAB = examples(
    "deltamem eval mab ai-hyz/MemoryAgentBench --limit 1 --questions 20 --out results",
    "deltamem eval mab rows/ --source longmemeval --judge openai:gpt-4o --embeddings mine.py:make --out results",
    "deltamem eval mab rows/ --split Conflict_Resolution --agent bm25 --agent delta --out results",
)
LOCOMO = examples(
    "deltamem eval locomo locomo10.json --limit 2 --out results",
    "deltamem eval locomo locomo10.json --category 2 --category 5 --agent delta-bm25 --out results",
)


def world(
    out: FolderOption,
    adapter: AdapterOption = DEFAULT,
    device: DeviceOption = None,
    agent: AgentsOption = None,
    more_adapter: MoreOption = None,
    embeddings: EmbeddingsOption = None,
    length: LengthsOption = None,
    count: ExamplesOption = 10,
    seed: SeedOption = SEED,
) -> None:
    """World-MAB: the embedded adapter's world, asked as MemoryAgentBench asks.

    Four competencies at three lengths, and what was never told. Prints tables in Markdown.
    """
    quiet_libraries()

    from ..evals.world_mab import LENGTHS, WorldMAB

    benchmark = WorldMAB(length or tuple(LENGTHS), count, seed)
    _, agents = open_agents(adapter, device, agent, more_adapter, embeddings)
    _run(benchmark, agents, out)


def mab(
    source: Annotated[str, typer.Argument(help="The Hub's id of the data set, or a file or folder of its rows.")],
    out: FolderOption,
    adapter: AdapterOption = DEFAULT,
    device: DeviceOption = None,
    agent: AgentsOption = None,
    more_adapter: MoreOption = None,
    embeddings: EmbeddingsOption = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this competency (repeatable).")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--source", help="Only sources whose names begin so (repeatable).")
    ] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Longest message, in tokens.", min=1)] = 4096,
    entities: Annotated[Path | None, typer.Option(help="entity2id.json, for recommendations.")] = None,
    judge: JudgeOption = None,
    limit: LimitOption = None,
    questions: QuestionsOption = None,
) -> None:
    """MemoryAgentBench in this library's words, each source with the metric of the paper.

    --limit counts examples of each source. Without --judge, what a model must judge is scored by F1 or ROUGE, and
    marked so.
    """
    quiet_libraries()

    from ..evals.foreign import open_judge
    from ..evals.report.run import mab_benchmark

    judging = None if judge is None else open_judge(judge)
    engine, agents = open_agents(adapter, device, agent, more_adapter, embeddings)
    more = {"splits": split, "sources": only, "chunk_tokens": chunk_tokens, "entities": entities, "judge": judging}
    _run(mab_benchmark(source, engine, limit, questions, **more), agents, out)


def locomo(
    path: Annotated[Path, typer.Argument(help="locomo10.json, from github.com/snap-research/locomo.")],
    out: FolderOption,
    adapter: AdapterOption = DEFAULT,
    device: DeviceOption = None,
    agent: AgentsOption = None,
    more_adapter: MoreOption = None,
    embeddings: EmbeddingsOption = None,
    category: Annotated[list[int] | None, typer.Option(help="Only this category, 1 to 5 (repeatable).")] = None,
    limit: LimitOption = None,
    questions: QuestionsOption = None,
) -> None:
    """LoCoMo: questions about long conversations of two people, scored by its F1."""
    quiet_libraries()

    from ..evals.locomo import LoCoMo

    benchmark = LoCoMo(path, categories=category, max_questions=questions)
    _, agents = open_agents(adapter, device, agent, more_adapter, embeddings)
    _run(benchmark, agents, out, limit)


def _run(benchmark: "Benchmark", agents: "list[EngineAgent]", out: Path, limit: int | None = None) -> None:
    from ..evals.report.data import read_benchmarks
    from ..evals.report.sections import benchmark_sections
    from ..evals.runner import run

    run(benchmark, agents, out, limit=limit, say=lambda line: typer.echo(line, err=True))
    found = read_benchmarks(out, [agent.name for agent in agents])[benchmark.name]
    typer.echo(benchmark_sections(benchmark.name, found))
