"""From a recipe to an adapter folder: tokenizer, backbone, adapter. Each stage that is done is not done again.

    python -m deltamem_agents.training adapters/worldops-msw/recipe.yaml --out runs/worldops

The folder then holds ``recipe.yaml`` (what was trained, with every change and default, paths in full), ``backbone/``
(weights and tokenizer; only for a backbone of our own), ``adapter/``, both in bfloat16, and ``runs/`` with logs, plots
and checkpoints in float32. It belongs to one recipe: another one is refused (history.py).
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import RecipeError
from ..memory import AdapterConfig
from .attention import PACKED_ATTENTION, check_packable
from .data import AdapterBatches
from .history import STAGES, check_history, is_done, keep_history
from .pretrain import train_backbone, world_tokenizer
from .recipe import Recipe
from .sft import train_adapter

__all__ = ["STAGES", "build", "load_backbone"]
SHARD = "12MB"


def build(
    recipe: Recipe,
    out: str | Path,
    *,
    stages: tuple[str, ...] = STAGES,
    device: str | None = None,
    time_limit: float | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Train what is missing in ``out``.

    Args:
        stages: of :data:`STAGES`.
        time_limit: seconds after which to write a checkpoint and stop; the next call goes on from there.
        say: is told how much of the data can be learnt, and what stopped the training.

    Returns:
        Whether all stages are done.

    Raises:
        RecipeError: the recipe cannot be trained, or another one was trained in ``out``.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written, the next call goes on from there.
    """
    out = Path(out)
    AdapterConfig.from_dict(recipe.adapter.config)  # what is wrong there is said before a backbone is trained
    check_history(recipe, out)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_float32_matmul_precision("high")
    train = {"backbone": _build_backbone, "adapter": _build_adapter}
    for stage in STAGES:
        if stage not in stages or is_done(stage, recipe, out):
            continue
        try:
            done = train[stage](recipe, out, where, deadline, say)
        except KeyboardInterrupt:
            say(f"stopped by Ctrl-C; run again to go on ({out / 'runs' / stage})")
            raise
        if not done:
            say(f"stopped at the time limit; run again to go on ({out / 'runs' / stage})")
            return False
    return True


def _build_backbone(
    recipe: Recipe, out: Path, device: torch.device, deadline: float | None, _: Callable[[str], None]
) -> bool:
    keep_history(recipe, out)
    tokenizer_folder = out / "runs" / "tokenizer"
    if not (tokenizer_folder / "tokenizer.json").is_file():
        world_tokenizer(recipe).save_pretrained(tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = train_backbone(recipe, tokenizer, out / "runs" / "backbone", device, deadline)
    if model is None:
        return False
    part = out / "backbone.part"
    shutil.rmtree(part, ignore_errors=True)
    model.config._attn_implementation = "sdpa"
    model.to(torch.bfloat16).save_pretrained(part, max_shard_size=SHARD)
    tokenizer.save_pretrained(part)
    part.rename(out / "backbone")
    return True


def _build_adapter(
    recipe: Recipe, out: Path, device: torch.device, deadline: float | None, say: Callable[[str], None]
) -> bool:
    model, tokenizer = load_backbone(recipe, out, device)
    sub_states = tuple(AdapterConfig.from_dict(recipe.adapter.config).sub_states)
    source = AdapterBatches(recipe, recipe.adapter.train, tokenizer, sub_states)
    if source.summary:
        say(source.summary)
    keep_history(recipe, out)
    adapter = train_adapter(recipe, model, source, out / "runs" / "adapter", deadline)
    if adapter is None:
        return False
    adapter.to(torch.bfloat16).save(out / "adapter")
    return True


def load_backbone(recipe: Recipe, out: Path, device: torch.device) -> tuple[Any, Any]:
    """The frozen backbone (float32, or bfloat16 on CUDA for large ones) with packed attention, and its tokenizer.

    Raises:
        RecipeError: it is not there, or cannot be trained in packed rows.
    """
    own = recipe.backbone.path is None
    path = recipe.backbone.path or str(out / "backbone")
    if own and not Path(path).is_dir():
        raise RecipeError(f"{path} does not exist: train the backbone first (stage 'backbone')")
    dtype = torch.float32 if own or recipe.adapter.train.dtype == "fp32" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=PACKED_ATTENTION)
    except (OSError, ValueError) as error:
        advice = "give a folder (relative to the recipe) or the hub id of a model"
        raise RecipeError(f"recipe field backbone.path = {path!r} cannot be loaded: {advice} ({error})") from error
    except KeyError as error:  # architectures that look the attention up in a table of their own
        raise RecipeError(f"{path} cannot be trained: its architecture takes no other attention ({error})") from error
    model = model.to(device)
    check_packable(model)
    return model, tokenizer
