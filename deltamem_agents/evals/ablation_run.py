"""One adapter of the ablations: trained, then asked about sessions that it never saw. A process of its own for each.

    python -m deltamem_agents.evals.ablation_run out/recipes/base-seed1.yaml --out out/base-seed1 --questions 300

The folder is one of :mod:`..training.build`, with ``cells.json`` (what was measured so far) and ``results.json``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ..engine import Engine, load_engine
from ..errors import DeltaMemError
from ..training.build import build
from ..training.recipe import Recipe, load_recipe
from .recall import CELLS, measure

MEASURED = ("facts_4", "facts_8", "facts_16", "updated", "never_told", "task")  # cells of recall.py
RECALL = MEASURED[:3]
STOPPED = 3  # exit status: the time limit came first
RESULTS = "results.json"


def run_one(
    recipe: Recipe,
    out: Path,
    questions: int,
    *,
    time_limit: float | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Train ``recipe`` in the folder ``out`` and measure the cells :data:`MEASURED`, whatever of it is not done.

    Args:
        questions: asked in each cell.
        time_limit: seconds; training stops after the step under way and measuring after the cell under way.

    Returns:
        What ``results.json`` then holds: {"seed", "steps", "questions", "cells": {name: share of exact answers},
        "old_value" (share of answers that are the value before the update), "recall" (mean of :data:`RECALL`),
        "parameters", "state_bytes" (of one agent, float32), "train_seconds", "loss", "accuracy" (of answer tokens; both
        of the last steps that were logged), "device"}. None: the limit came first; call again to go on.

    Raises:
        RecipeError: as :func:`..training.build.build`.
        DeltaMemError: ``out`` was measured with another number of questions.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    if not build(recipe, out, device=device, time_limit=time_limit, say=say):
        return None
    engine = load_engine(out, backbone=recipe.backbone.path, device=device)
    cells = _cells(engine, out / "cells.json", questions, deadline, say)
    if cells is None:
        return None
    log = (out / "runs" / "adapter" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(log[-1])
    document = {
        "seed": recipe.seed,
        "steps": last["step"],
        "questions": questions,
        "cells": {name: row["memory"] for name, row in cells.items()},
        "old_value": cells["updated"]["old_value"],
        "recall": round(mean(cells[name]["memory"] for name in RECALL), 4),
        "parameters": engine.memory.adapter().num_parameters(),
        "state_bytes": sum(t.numel() * t.element_size() for t in engine.new_state(1).tensors.values()),
        "train_seconds": last["seconds"],
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "device": torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else engine.device.type,
    }
    write_json(document, out / RESULTS)
    return document


def write_json(document: Any, path: Path) -> None:
    """Write ``path`` whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _cells(
    engine: Engine, path: Path, questions: int, deadline: float | None, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The measured cells, those in ``path`` first; None when the deadline (time.monotonic) came before the last."""
    kept: dict[str, Any] = {"questions": questions, "cells": {}}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["questions"] != questions:
        raise DeltaMemError(f"{path} was measured with {kept['questions']} questions, not {questions}: delete it")
    known = {cell.name: cell for cell in CELLS}
    for name in MEASURED:
        if name in kept["cells"]:
            continue
        if deadline is not None and time.monotonic() > deadline:
            return None
        kept["cells"][name] = measure(engine, known[name], questions, 0)
        say(f"{name}: {kept['cells'][name]['memory']}")
        write_json(kept, path)
    return dict(kept["cells"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--questions", required=True, type=int)
    parser.add_argument("--time-limit", type=float)
    parser.add_argument("--device")
    args = parser.parse_args()
    try:
        done = run_one(
            load_recipe(args.recipe), args.out, args.questions, time_limit=args.time_limit, device=args.device
        )
    except DeltaMemError as error:
        sys.exit(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    sys.exit(0 if done else STOPPED)


if __name__ == "__main__":
    main()
