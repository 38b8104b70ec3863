"""Options that the commands of ``deltamem eval`` share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..engine import Engine
    from ..evals.agents import EngineAgent

AGENTS = ("none", "whole", "window", "bm25", "delta", "delta-unrouted", "delta-bm25", "lora")
FEW = ("none", "whole", "bm25", "delta")  # where none are named

DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …; default: cuda where there is one.")
]
AgentsOption = Annotated[
    list[str] | None,
    typer.Option("--agent", help=f"Compare this one (repeatable): {', '.join(AGENTS)}.", metavar="NAME"),
]
MoreOption = Annotated[
    list[str] | None,
    typer.Option("--more-adapter", help="A further δ-mem agent, with another adapter for the same backbone "
                 "(repeatable).", metavar="NAME=PATH"),
]  # fmt: skip
EmbeddingsOption = Annotated[
    str | None,
    typer.Option("--embeddings", help="Also compare retrieval by vectors, of LangChain's embeddings: provider:model "
                 "(as openai:text-embedding-3-small), or a function that makes them: file.py:function, "
                 "package.module:function.", metavar="SPEC"),
]  # fmt: skip
JudgeOption = Annotated[
    str | None,
    typer.Option("--judge", help="LangChain chat model for what a model must judge in MemoryAgentBench; written as "
                 "--embeddings.", metavar="SPEC"),
]  # fmt: skip
LimitOption = Annotated[int | None, typer.Option("--limit", help="Examples at the most; default: all.", min=1)]
QuestionsOption = Annotated[
    int | None, typer.Option("--questions", help="Questions of each example at the most; default: all.", min=1)
]
FolderOption = Annotated[
    Path, typer.Option("--out", help="Folder of the results; what is there already is not asked again.")
]
LengthsOption = Annotated[
    list[str] | None, typer.Option("--length", help="Only this length (repeatable): short, medium, long.")
]
ExamplesOption = Annotated[int, typer.Option("--examples", help="Examples of each competency and length.", min=1)]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the random numbers that sessions come from.")]
SEED = 20_000  # as evals.recall's, which loads a model's libraries


def more_adapters(given: Sequence[str] | None) -> dict[str, str]:
    """Name -> path, of ``NAME=PATH`` from a command line."""
    found: dict[str, str] = {}
    for entry in given or ():
        name, equals, path = entry.partition("=")
        if not (name.strip() and equals and path.strip()):
            raise typer.BadParameter(f"{entry!r} is not NAME=PATH", param_hint="--more-adapter")
        if name.strip() in found:
            raise typer.BadParameter(f"two adapters {name.strip()!r}", param_hint="--more-adapter")
        found[name.strip()] = path.strip()
    return found


def open_agents(
    adapter: str,
    device: str | None,
    names: Sequence[str] | None,
    more: Sequence[str] | None,
    embeddings: str | None,
) -> "tuple[Engine, list[EngineAgent]]":
    """The engine, and the agents named on a command line."""
    others = more_adapters(more)

    from ..engine import load_engine
    from ..evals.foreign import open_embeddings
    from ..evals.report import make_agents

    vectors = None if embeddings is None else open_embeddings(embeddings)
    engine = load_engine(adapter, device=device)
    return engine, make_agents(engine, names or FEW, others, device, vectors)
