"""Generation: prompts of several agents in one batch, token by token, each row reading its own memory.

Nothing is held between two steps but plain tensors: a step may run in another thread than the one before.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..memory import MemoryState
from .reply import Row

if TYPE_CHECKING:
    from .engine import Engine


class Decoding:
    """A batch of rows on their way: one forward call of the model a step, with a KV cache and read-only memory."""

    def __init__(self, engine: "Engine", rows: Sequence[Row], states: MemoryState | None) -> None:
        """``states``: a row for each of ``rows``; None: the backbone alone."""
        self._engine = engine
        self._rows = list(rows)
        self._states = states
        width = max(len(row.prompt) for row in rows)
        pad = engine.pad
        left = [width - len(row.prompt) for row in rows]
        ids = [[pad] * n + row.prompt for n, row in zip(left, rows, strict=True)]
        mask = [[0] * n + [1] * len(row.prompt) for n, row in zip(left, rows, strict=True)]
        self._ids = torch.tensor(ids, device=engine.device)
        self._mask = torch.tensor(mask, device=engine.device)
        self._cache: Any = None

    @property
    def finished(self) -> bool:
        return all(row.finish_reason is not None for row in self._rows)

    def step(self) -> None:
        """Compute the next token of every row that is not finished."""
        self._drop_finished()
        with self._engine.lock, torch.inference_mode():
            logits = self._forward()
        likeliest = logits.argmax(-1).tolist()
        sampled = logits.float().cpu() if any(not row.greedy for row in self._rows) else logits
        tokens = []
        for i, row in enumerate(self._rows):
            if row.finish_reason is not None:
                tokens.append(self._engine.pad)
                continue
            tokens.append(likeliest[i] if row.greedy else row.choose(sampled[i]))
            row.push(tokens[-1])
        self._ids = torch.tensor(tokens, device=self._ids.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)

    def _forward(self) -> Tensor:
        """Logits (B, V) after the newest token of each row."""
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._ids.shape[1] :]
        inputs = {
            "input_ids": self._ids,
            "attention_mask": self._mask,
            "past_key_values": self._cache,
            "use_cache": True,
            "position_ids": positions,
            "logits_to_keep": 1,
        }
        accepted = inspect.signature(type(self._engine.model).forward).parameters
        inputs = {name: value for name, value in inputs.items() if name in accepted}
        with self._engine.reading(self._states):
            output = self._engine.model(**inputs)
        self._cache = output.past_key_values
        last: Tensor = output.logits[:, -1]
        return last

    def _drop_finished(self) -> None:
        """Once half of the rows are finished, go on with the others alone."""
        going = [i for i, row in enumerate(self._rows) if row.finish_reason is None]
        if not hasattr(self._cache, "batch_select_indices") or 2 * len(going) > len(self._rows):
            return
        index = torch.tensor(going, device=self._ids.device)
        with torch.inference_mode():
            self._cache.batch_select_indices(index)
        self._rows = [self._rows[i] for i in going]
        self._ids, self._mask = self._ids[index], self._mask[index]
        self._states = self._states.rows(going) if self._states is not None else None
