"""From a recipe to an adapter folder: tokenizer, backbone, adapter. Each stage that is done is not done again.

    python -m deltamem_agents.training adapters/worldops-msw/recipe.yaml --out runs/worldops

The folder then holds ``backbone/`` (weights and tokenizer; only for a backbone of our own), ``adapter/``, both in
bfloat16, and ``runs/`` with logs, plots and checkpoints in float32.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import RecipeError
from .attention import PACKED_ATTENTION
from .pretrain import train_backbone, world_tokenizer
from .recipe import Recipe
from .sft import train_adapter

STAGES = ("backbone", "adapter")
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

    Returns:
        Whether all stages are done.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_float32_matmul_precision("high")
    lacking = recipe.backbone.path is None and not (out / "backbone" / "config.json").is_file()
    if "backbone" in stages and lacking and not _build_backbone(recipe, out, where, deadline):
        say(f"stopped at the time limit; run again to go on ({out / 'runs' / 'backbone'})")
        return False
    if "adapter" in stages and not (out / "adapter" / "deltamem_config.json").is_file():
        model, tokenizer = load_backbone(recipe, out, where)
        adapter = train_adapter(recipe, model, tokenizer, out / "runs" / "adapter", deadline)
        if adapter is None:
            say(f"stopped at the time limit; run again to go on ({out / 'runs' / 'adapter'})")
            return False
        adapter.to(torch.bfloat16).save(out / "adapter")
    return True


def _build_backbone(recipe: Recipe, out: Path, device: torch.device, deadline: float | None) -> bool:
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


def load_backbone(recipe: Recipe, out: Path, device: torch.device) -> tuple[Any, Any]:
    """The frozen backbone (float32, or bfloat16 on CUDA for large ones) with packed attention, and its tokenizer."""
    path = recipe.path(recipe.backbone.path) if recipe.backbone.path else str(out / "backbone")
    if recipe.backbone.path is None and not Path(path).is_dir():
        raise RecipeError(f"{path} does not exist: train the backbone first (stage 'backbone')")
    tokenizer = AutoTokenizer.from_pretrained(path)
    own = recipe.backbone.path is None
    dtype = torch.float32 if own or recipe.adapter.train.dtype == "fp32" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=PACKED_ATTENTION)
    return model.to(device), tokenizer
