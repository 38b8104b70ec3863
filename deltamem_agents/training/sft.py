"""Training an adapter: the context is written into the state, then only the question and its answer are seen.

The backbone is frozen. Every gradient reaches the adapter through the state (paper, training with context written).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import RecipeError
from ..memory import Adapter, AdapterConfig, DeltaMemory, MemoryState, attach, load_adapter, new_adapter
from .data import AdapterBatches, batches
from .loop import Run, precision, token_accuracy
from .packing import IGNORE, Batch, Packed
from .recipe import AdapterRecipe, Recipe


def train_adapter(
    recipe: Recipe, model: nn.Module, source: AdapterBatches, folder: Path, deadline: float | None = None
) -> Adapter | None:
    """Train the recipe's adapter on a loaded, packed-attention backbone with the batches of ``source``.

    Checkpoints go to ``folder``; where the recipe trains on lives, their states are part of them.

    Returns:
        The adapter, or None when ``deadline`` (time.monotonic seconds) came first: call again to go on.
    """
    own, train = recipe.adapter, recipe.adapter.train
    device = next(model.parameters()).device
    model.requires_grad_(False)
    model.train(train.gradient_checkpointing)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        model.enable_input_require_grads()  # type: ignore[operator]
    memory = attach(model, initial_adapter(recipe, own, model), dtype=torch.float32, trainable=True)
    run = Run(folder, train, dict(memory.named_parameters()), deadline)
    run.resume()

    lives = train.lives
    if lives:
        run.carried = _carried(run, memory)

    def loss_of(batch: Batch, carried: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with precision(train, device):
            return life_loss(model, memory, batch, carried) if lives else (*asked_loss(model, memory, batch), carried)

    step = torch.compile(loss_of, dynamic=False, fullgraph=True) if train.compile and device.type == "cuda" else loss_of
    for batch in run.steps(batches(source, run.step, train.steps, train.workers)):
        loss, accuracy, run.carried = step(batch.to(device), run.carried)
        run.update(loss, accuracy)
    adapter = memory.adapter() if run.finished else None
    memory.detach()
    return adapter


def _carried(run: Run, memory: DeltaMemory) -> dict[str, Tensor]:
    """The states of the lives that a run goes on from: empty ones before its first step."""
    empty = {name: t.clone() for name, t in memory.new_state(run.train.rows, hashed=False).tensors.items()}
    if not run.step:
        return empty
    if {name: t.shape for name, t in run.carried.items()} != {name: t.shape for name, t in empty.items()}:
        raise RecipeError(f"the checkpoint in {run.folder} has no states of {run.train.rows} lives: delete that folder")
    return run.carried


def initial_adapter(recipe: Recipe, own: AdapterRecipe, model: nn.Module) -> Adapter:
    """A fresh adapter, or the one that the recipe goes on from, widened to the recipe's state heads."""
    config = AdapterConfig.from_dict(own.config)
    fresh = new_adapter(
        model,
        config,
        beta_bias=own.beta_bias,
        output_std=own.output_std,
        seed=recipe.seed,
        backbone=recipe.backbone.path,
    )
    return fresh if own.init is None else widen(load_adapter(own.init), fresh)


def widen(adapter: Adapter, fresh: Adapter) -> Adapter:
    """``adapter`` with the state heads that ``fresh`` has beyond it: they begin as they are in ``fresh``.

    With corrections of the new heads at 0 the widened adapter computes what ``adapter`` did. Raises RecipeError when
    the two differ in more than their state heads.
    """
    old, new = adapter.config, fresh.config
    same = replace(old, num_state_heads=new.num_state_heads, sub_states=new.sub_states)
    if same != new or any(len(new.sub_states.get(n, ())) < len(heads) for n, heads in old.sub_states.items()):
        raise RecipeError("adapter.init must have fewer state heads than adapter.config, and differ in nothing else")
    pairs = [(a, b) for n, heads in old.sub_states.items() for a, b in zip(heads, new.sub_states[n], strict=False)]
    tensors = {}
    for key, value in fresh.tensors.items():
        tensors[key] = value.clone()
        given, name = adapter.tensors[key], key.rpartition(".")[2]
        width = new.gates // new.num_state_heads if name.startswith(("beta", "lambda")) else new.rank
        if name.startswith(("delta_o_rmsnorm", "delta_scale")):
            tensors[key] = given.clone()
            continue
        for a, b in pairs:
            theirs, ours = slice(a * width, (a + 1) * width), slice(b * width, (b + 1) * width)
            if name.startswith("delta_"):
                tensors[key][:, ours] = given[:, theirs]
            else:
                tensors[key][ours] = given[theirs]
    return Adapter(new, tensors, adapter.backbone)


def asked_loss(model: nn.Module, memory: DeltaMemory, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the answers, each memory written first; and the share of their tokens that is right."""
    empty = memory.new_state(batch.memory.input_ids.shape[0], hashed=False)
    return _asked(model, memory, batch, _written(model, memory, batch, empty))


def life_loss(
    model: nn.Module, memory: DeltaMemory, batch: Batch, carried: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """:func:`asked_loss` of lives that go on, and what they carry on.

    Args:
        carried: attention module -> states (B, H, r, r) float32 after the step before. Rows that ``batch.begins`` do
            not read theirs.

    Returns:
        loss, accuracy, and the states after this step: cut from autograd, with the sub-states of ``batch.reset`` empty.
    """
    empty = memory.new_state(batch.memory.input_ids.shape[0], hashed=False)
    assert batch.begins is not None
    begins = batch.begins[:, None, None, None]
    tensors = {name: torch.where(begins, t, carried[name]) for name, t in empty.tensors.items()}
    before = MemoryState(tensors, empty.sub_states, empty.fingerprint)
    state = _written(model, memory, batch, before)
    loss, accuracy = _asked(model, memory, batch, state)
    return loss, accuracy, {name: t.detach() for name, t in state.tensors.items()}


def _written(model: nn.Module, memory: DeltaMemory, batch: Batch, state: MemoryState) -> MemoryState:
    """``state`` with the batch's memories written, and then emptied where the batch says so."""
    state = write_packed(model, memory, state, batch.memory)
    for name, rows in batch.reset.items():
        state = _reset_rows(state, name, rows)
    return state


def _asked(model: nn.Module, memory: DeltaMemory, batch: Batch, state: MemoryState) -> tuple[Tensor, Tensor]:
    with memory.bind(state, write=False, token_mask=batch.asked.token_mask):
        hidden = _decode(model, batch.asked)
    head = model.get_output_embeddings()  # type: ignore[operator]
    logits = head(hidden.flatten(0, 1)[batch.answer_at])
    loss = cross_entropy(logits.float(), batch.answers, ignore_index=IGNORE)
    return loss, token_accuracy(logits, batch.answers, batch.answers != IGNORE)


def write_packed(model: nn.Module, memory: DeltaMemory, state: MemoryState, rows: Packed) -> MemoryState:
    """Write packed messages: the same as one forward call for each message, one after the other."""
    with memory.bind(
        state,
        segment_ids=rows.segment_ids,
        sub_states=rows.sub_states,
        packed=True,
        token_mask=rows.token_mask,
    ) as bound:
        _decode(model, rows)
    return bound.state


def _decode(model: Any, rows: Packed) -> Tensor:
    """Last hidden states (B, T, D) of packed rows."""
    out = model.base_model(
        input_ids=rows.input_ids,
        position_ids=rows.position_ids,
        cu_seqlens=rows.cu_seqlens,
        max_seqlen=rows.input_ids.shape[1],
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def _reset_rows(state: MemoryState, name: str, rows: Tensor) -> MemoryState:
    heads = list(state.sub_states[name])
    keep = torch.ones(next(iter(state.tensors.values())).shape[:2], device=rows.device)
    keep[:, heads] = 1.0 - rows.float()[:, None]
    tensors = {key: t * keep[..., None, None] for key, t in state.tensors.items()}
    return MemoryState(tensors, state.sub_states, state.fingerprint)
