"""From records to tensors: many short sequences packed into rows of a fixed length.

A row is one memory. Its messages are sequences of their own (attention never crosses them, positions begin at 0 in
each), exactly as they are written one after the other at run time; only the state runs through. The conversations asked
of that memory are packed into a second row in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .encoding import EncodedRecord

IGNORE = -100


@dataclass(frozen=True)
class Packed:
    """B rows of T tokens.

    Attributes:
        input_ids, position_ids: (B, T) int64; padding is token ``pad`` at position 0.
        cu_seqlens: (N + 1,) int32, boundaries in the flattened batch; the tail repeats B * T so that N is fixed.
        token_mask: (B, T) bool, False on padding.
        segment_ids: (B, T) int64, number of the sequence in its row, -1 on padding.
        labels: (B, T) int64, the next token where it is to be learnt, else -100. Empty for memory rows.
        sub_states: name -> (B, T) bool, which tokens are written there. Empty for conversation rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    token_mask: Tensor
    segment_ids: Tensor
    labels: Tensor
    sub_states: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "Packed":
        def move(x: Any) -> Any:
            return {k: move(v) for k, v in x.items()} if isinstance(x, dict) else x.to(device, non_blocking=True)

        return Packed(**{name: move(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Batch:
    """One training step: memory rows, conversation rows, and the sub-states that are emptied in between."""

    memory: Packed
    asked: Packed
    reset: dict[str, Tensor]  # name -> (B,) bool
    answer_at: Tensor  # (M,) int64, positions in the flattened conversation rows whose next token is to be learnt
    answers: Tensor  # (M,) int64, those tokens; -100 fills up
    begins: Tensor | None = None  # (B,) bool, rows that begin a life with an empty state; None: each row is a life

    def to(self, device: torch.device | str) -> "Batch":
        reset = {name: rows.to(device) for name, rows in self.reset.items()}
        begins = None if self.begins is None else self.begins.to(device)
        answers = self.answer_at.to(device), self.answers.to(device)
        return Batch(self.memory.to(device), self.asked.to(device), reset, *answers, begins)


def pack_rows(
    rows: Sequence[Sequence[Sequence[int]]],
    length: int,
    max_sequences: int,
    pad: int,
    label_starts: Sequence[Sequence[int]] | None = None,
    routes: Sequence[Sequence[Sequence[str]]] | None = None,
    names: Sequence[str] = (),
) -> Packed:
    """Pack the sequences of each row one after the other.

    Args:
        rows: token ids by row and sequence; each row must fit ``length`` (the caller has checked).
        max_sequences: N, at most this many sequences in the batch, pads included.
        label_starts: index in each sequence where the part to learn begins.
        routes: names of the sub-states that each sequence is written to.
    """
    shape = (len(rows), length)
    ids, positions = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    segments, labels = np.full(shape, -1, np.int64), np.full(shape, IGNORE, np.int64)
    routed = {name: np.zeros(shape, bool) for name in names}
    boundaries = [0]
    for b, sequences in enumerate(rows):
        at = 0
        for s, sequence in enumerate(sequences):
            end = at + len(sequence)
            ids[b, at:end], positions[b, at:end], segments[b, at:end] = sequence, range(len(sequence)), s
            if label_starts is not None:
                first = label_starts[b][s]
                labels[b, at + first - 1 : end - 1] = sequence[first:]
            for name in routes[b][s] if routes is not None else ():
                routed[name][b, at:end] = True
            boundaries.append(b * length + end)
            at = end
        if at < length:
            boundaries.append((b + 1) * length)
    if len(boundaries) > max_sequences + 1:
        raise ValueError(f"{len(boundaries) - 1} sequences in a batch made for {max_sequences}")
    boundaries += [len(rows) * length] * (max_sequences + 1 - len(boundaries))
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.tensor(boundaries, dtype=torch.int32),
        torch.from_numpy(segments >= 0),
        torch.from_numpy(segments),
        torch.from_numpy(labels),
        {name: torch.from_numpy(mask) for name, mask in routed.items()},
    )


@dataclass(frozen=True)
class Shape:
    """Fixed sizes of a batch, so that compiled code and CUDA graphs see one shape."""

    contexts: int
    memory_tokens: int
    asked_tokens: int
    answer_tokens: int  # a row, on average
    sequences: int = 160  # a row, on average

    def fits(self, record: EncodedRecord) -> bool:
        return not self.obstacle(record)

    def obstacle(self, record: EncodedRecord) -> str:
        """Why a record cannot be in a batch; "" when it can."""
        if sum(map(len, record.memory)) > self.memory_tokens:
            return f"a memory longer than {self.memory_tokens} tokens (memory_tokens)"
        if len(record.memory) >= self.sequences:
            return f"{self.sequences} or more messages in a memory"
        if not self.asked(record):
            return f"no conversation of at most {self.asked_tokens} tokens (asked_tokens)"
        return ""

    def asked(self, record: EncodedRecord) -> list[tuple[list[int], int]]:
        """The conversations that are packed into the row, in their order, while they fit."""
        room = self.asked_tokens
        row: list[tuple[list[int], int]] = []
        for ids, start in record.asked:
            if len(ids) <= room and len(row) < self.sequences - 1:
                row.append((ids, start))
                room -= len(ids)
        return row


def pack_batch(records: Sequence[EncodedRecord], shape: Shape, pad: int, names: Sequence[str]) -> Batch:
    """One step's batch; conversations that do not fit ``asked_tokens`` are left out, in their order."""
    asked = [shape.asked(record) for record in records]
    limit = shape.sequences * shape.contexts
    memory = pack_rows(
        [r.memory for r in records], shape.memory_tokens, limit, pad, routes=[r.routes for r in records], names=names
    )
    reset = {name: torch.tensor([name in r.reset for r in records]) for name in names}
    ids, starts = [[ids for ids, _ in row] for row in asked], [[start for _, start in row] for row in asked]
    conversations = pack_rows(ids, shape.asked_tokens, limit, pad, label_starts=starts)
    return Batch(memory, conversations, reset, *_answers(conversations.labels, shape.contexts * shape.answer_tokens))


def _answers(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions and tokens to learn, cut or filled up to ``count``."""
    at = torch.nonzero(labels.flatten() != IGNORE).flatten()[:count]
    tokens = labels.flatten()[at]
    fill = count - len(at)
    return torch.cat([at, at.new_zeros(fill)]), torch.cat([tokens, tokens.new_full((fill,), IGNORE)])
