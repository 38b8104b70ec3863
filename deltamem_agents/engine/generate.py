"""Generation with the backbone's own cache: a fixed batch of rows, token by token, each row reading its own memory.

For backbones whose caches replies cannot share (see ring.py). Nothing is held between two steps but plain tensors: a
step may run in another thread than the one before.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..memory import MemoryState
from .reply import Row
from .sampling import choose_tokens

if TYPE_CHECKING:
    from .engine import Engine


class Decoding:
    """A batch of rows on their way: one forward call of the model a step, with a KV cache and read-only memory."""

    def __init__(self, engine: "Engine", rows: Sequence[Row], states: MemoryState | None) -> None:
        """``states``: a row for each of ``rows``; None: the backbone alone."""
        self._engine = engine
        self.rows = list(rows)
        self._states = states
        prompts = [row.ids for row in rows]
        left = [max(map(len, prompts)) - len(own) for own in prompts]
        ids = [[engine.pad] * n + own for n, own in zip(left, prompts, strict=True)]
        mask = [[0] * n + [1] * len(own) for n, own in zip(left, prompts, strict=True)]
        self._ids = torch.tensor(ids, device=engine.device)
        self._mask = torch.tensor(mask, device=engine.device)
        self._cache: Any = None
        self._dropped: list[Row] = []

    @property
    def going(self) -> list[Row]:
        """The rows that are under way."""
        return [row for row in self.rows if row.finish_reason is None and row not in self._dropped]

    @property
    def finished(self) -> bool:
        return not self.going

    def drop(self, row: Row) -> None:
        """Compute no more tokens for ``row``."""
        self._dropped.append(row)

    def step(self) -> None:
        """Compute the next token of every row that is not finished."""
        self._drop_finished()
        with self._engine.lock, torch.inference_mode():
            logits = self._forward()
        going = [i for i, row in enumerate(self.rows) if row.finish_reason is None and row not in self._dropped]
        likeliest = logits.argmax(-1).tolist()
        chosen = choose_tokens([self.rows[i] for i in going], logits[going], [likeliest[i] for i in going])
        tokens = [self._engine.pad] * len(self.rows)
        for i, token in zip(going, chosen, strict=True):
            tokens[i] = token
            self.rows[i].push(token)
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
        with self._engine.reading(self._states):
            output = self._engine.model(**self._engine.accepted(inputs))
        self._cache = output.past_key_values
        last: Tensor = output.logits[:, -1]
        return last

    def _drop_finished(self) -> None:
        """Once half of the rows are finished, go on with the others alone."""
        going = [i for i, row in enumerate(self.rows) if row.finish_reason is None and row not in self._dropped]
        if not hasattr(self._cache, "batch_select_indices") or 2 * len(going) > len(self.rows):
            return
        index = torch.tensor(going, device=self._ids.device)
        with torch.inference_mode():
            self._cache.batch_select_indices(index)
        self.rows = [self.rows[i] for i in going]
        self._ids, self._mask = self._ids[index], self._mask[index]
        self._states = self._states.rows(going) if self._states is not None else None
