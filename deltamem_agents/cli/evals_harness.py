"""``deltamem eval mab-harness``: MemoryAgentBench by its own harness."""

from pathlib import Path
from typing import Annotated

import typer

from .options import examples, table

EXAMPLES = examples(
    "deltamem eval mab-harness --harness-root MemoryAgentBench --dataset-config configs/data_conf/x.yaml",
    "deltamem eval mab-harness --harness-root MemoryAgentBench --agent-config mine.yaml --dataset-config x.yaml "
    "--max-test-queries 10",
)


def mab_harness(
    harness_root: Annotated[Path, typer.Option(help="Checkout of github.com/HUST-AI-HYZ/MemoryAgentBench.")],
    dataset_config: Annotated[str, typer.Option(help="YAML file of a dataset, from here or from the checkout.")],
    agent_config: Annotated[
        str, typer.Option(help="embedded, qwen3-4b, smollm3-3b, or a YAML file: the adapter and how it is used.")
    ] = "embedded",
    force: Annotated[bool, typer.Option("--force", help="Ask everything again.")] = False,
    max_test_queries: Annotated[int | None, typer.Option(help="Ask only so many.", min=1)] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Tokens of a chunk; default: the dataset's.", min=1)] = None,
) -> None:
    """MemoryAgentBench by its own harness: its loop, prompts, chunks and metrics, with a δ-mem agent.

    Adapter and device stand in the agent's configuration. A run that was stopped goes on.
    """
    from ..evals.harness import run_harness

    done = run_harness(
        harness_root,
        agent_config,
        dataset_config,
        force=force,
        max_test_queries=max_test_queries,
        chunk_size=chunk_size,
    )
    rows = [(name, f"{value:.2f}") for name, value in done.averages.items()]
    table(f"{done.queries} queries", ("metric", "mean"), rows)
    typer.echo(f"results: {done.results}")
