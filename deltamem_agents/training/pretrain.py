"""Training a small backbone from scratch, to read dialogues: the frozen model that an adapter then gets.

What made in-context recall appear at all: many questions at the end of each dialogue, loss almost only on the answers,
and sequences of random tokens that are said twice (docs/decisions.md has the numbers).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from ..errors import RecipeError
from .attention import PACKED_ATTENTION
from .chat_format import TOOLS_HEAD, TOOLS_TAIL, train_tokenizer
from .data import BackboneBatches, batches
from .loop import Run, precision, token_accuracy
from .packing import IGNORE, Packed
from .recipe import Recipe
from .world import TOOLS, rng_for, world_dialogues


def world_tokenizer(recipe: Recipe) -> Any:
    """The tokenizer of a recipe, learnt from sessions of its own."""
    import json

    sessions = (world_dialogues(rng_for(recipe.seed, i, "tokenizer")) for i in range(recipe.tokenizer.sessions))
    texts = [m["content"] for session in sessions for messages, _, _ in session for m in messages]
    declarations = [TOOLS_HEAD + TOOLS_TAIL, *(json.dumps(tool, ensure_ascii=False) for tool in TOOLS)]
    return train_tokenizer(texts + declarations * 30, recipe.tokenizer.vocab_size)


def new_backbone(recipe: Recipe, tokenizer: Any) -> Any:
    """An untrained Qwen3 model with the recipe's architecture; RecipeError when there can be no such model."""
    fields: dict[str, Any] = {"max_position_embeddings": 8192, "tie_word_embeddings": True, "rope_theta": 10000.0}
    torch.manual_seed(recipe.seed)
    try:
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            **fields | dict(recipe.backbone.architecture),
        )
        config._attn_implementation = PACKED_ATTENTION
        return Qwen3ForCausalLM(config)
    except Exception as error:  # configs and modules raise what they like
        raise RecipeError(f"recipe field backbone.architecture makes no Qwen3 model: {error}") from error


def train_backbone(recipe: Recipe, tokenizer: Any, folder: Path, device: torch.device, deadline: float | None) -> Any:
    """Train; returns the model (float32), or None when ``deadline`` (time.monotonic seconds) came first."""
    train = recipe.backbone.train
    assert train is not None
    model = new_backbone(recipe, tokenizer).to(device)
    run = Run(folder, train, dict(model.named_parameters()), deadline)
    run.resume()

    def loss_of(rows: Packed, weights: Tensor) -> tuple[Tensor, Tensor]:
        with precision(train, device):
            logits = model(
                input_ids=rows.input_ids,
                position_ids=rows.position_ids,
                cu_seqlens=rows.cu_seqlens,
                max_seqlen=rows.input_ids.shape[1],
                use_cache=False,
            ).logits
        logits, labels, weights = logits.flatten(0, 1), rows.labels.flatten(), weights.flatten()
        losses = cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORE)
        return (losses * weights).sum() / weights.sum(), token_accuracy(logits, labels, weights == 1.0)

    step = torch.compile(loss_of, dynamic=False, fullgraph=True) if train.compile and device.type == "cuda" else loss_of
    source = BackboneBatches(recipe, train, tokenizer)
    for rows, weights in run.steps(batches(source, run.step, train.steps, train.workers)):
        run.update(*step(rows.to(device), weights.to(device)))
    return model if run.finished else None
