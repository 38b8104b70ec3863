"""Batches for training, made in worker processes: the same for the same seed and step, whatever their number."""

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..errors import RecipeError
from .chat_format import render
from .encoding import EncodedRecord, Encoder
from .packing import IGNORE, Batch, Packed, Shape, pack_batch
from .recipe import WORLD, Recipe, TrainRecipe
from .records import Record, read_records
from .world import TASK, Life, other_text, rng_for, world_dialogues, world_record

Make = Callable[[int], Any]
PATIENCE = 200  # sessions looked at for one that fits


class _Steps(IterableDataset[Any]):
    """Items of the steps ``start``, ``start + 1``, …; worker i of n makes every n-th."""

    def __init__(self, make: Make, start: int, stop: int) -> None:
        self.make, self.start, self.stop = make, start, stop

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.start + first, self.stop, stride):
            yield self.make(step)


def batches(make: Make, start: int, stop: int, workers: int) -> Iterable[Any]:
    """``make(step)`` for the steps from ``start`` to ``stop``, in order, prefetched by ``workers`` processes."""
    more: dict[str, Any] = {"prefetch_factor": 4, "pin_memory": False, "worker_init_fn": _deafen} if workers else {}
    return DataLoader(_Steps(make, start, stop), batch_size=None, num_workers=workers, **more)


def _deafen(_: int) -> None:
    """Workers leave Ctrl-C to the training process, which still needs their batches for the step under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class AdapterBatches:
    """Batches for the adapter, from the world or from a JSONL file of records.

    With lives (``sessions_a_life`` above 1), row i of step s is at session (s + o) % n of its life number (s + o) // n,
    where n is the row's of ``sessions_a_life``; its offset o = i * n // rows makes each batch a mix of ages. The first
    life of a row begins at session o, in step 0.

    Raises:
        RecipeError: nothing in the file can be learnt; lives of records from a file.
    """

    def __init__(self, recipe: Recipe, train: TrainRecipe, tokenizer: Any, sub_states: tuple[str, ...]) -> None:
        self.seed, self.train, self.names = recipe.seed, train, sub_states
        self.encoder = Encoder(tokenizer, sub_states)
        if recipe.data == WORLD and tokenizer.chat_template and "generation" in tokenizer.chat_template:
            self.encoder.render = _render_fast  # type: ignore[method-assign]
        self.shapes = [
            Shape(train.rows, length, train.asked_tokens, train.answer_tokens) for length in sorted(train.memory_tokens)
        ]
        self.file: dict[Shape, list[EncodedRecord]] = {}  # each record under the shortest shape that holds it
        self._lives: dict[int, Life] = {}  # row -> the life that it is at
        self.summary = ""  # how much of a file can be learnt
        if recipe.data != WORLD:
            if train.lives:
                raise RecipeError(f"recipe field adapter.train.sessions_a_life needs data: {WORLD}; use 1 for a file")
            self.summary = self._read(Path(recipe.data))

    def __call__(self, step: int) -> Batch:
        """The batch of one step: all its records need the same row length."""
        if self.train.lives:
            return self._of_lives(step)
        rng = Random(f"{self.seed}/{step}")
        if self.file:
            shape = rng.choices(list(self.file), [len(records) for records in self.file.values()])[0]
            chosen = rng.choices(self.file[shape], k=shape.contexts)
        else:
            shape, chosen = self._sessions(step)
        return pack_batch(chosen, shape, self.encoder.pad, self.names)

    def _of_lives(self, step: int) -> Batch:
        """One session of each row's life, in the shortest row length that holds them all."""
        told = [self.told(step, row) for row in range(self.train.rows)]
        chosen = [encoded for _, encoded, _ in told]
        shape = next(s for s in self.shapes if all(map(s.fits, chosen)))
        batch = pack_batch(chosen, shape, self.encoder.pad, self.names)
        return replace(batch, begins=torch.tensor([begins for _, _, begins in told]))

    def told(self, step: int, row: int) -> tuple[Record, EncodedRecord, bool]:
        """The session that a row's life is at in a step, as text and encoded, and whether that life begins with it."""
        sessions = self.train.sessions_a_life[row % len(self.train.sessions_a_life)]
        offset = row * sessions // self.train.rows
        number, at = divmod(step + offset, sessions)
        life = self._life(row, f"{row}/{number}", sessions, 0 if number else offset)
        for attempt in range(PATIENCE):
            record = self._with_text(life.record(at, attempt), f"{row}/{attempt}", step)
            encoded = self.encoder.record(record)
            if self.shapes[-1].fits(encoded):
                return record, encoded, at == life.start
        raise RecipeError(
            f"a session with {len(life.script(at).told)} facts does not fit {self.shapes[-1].memory_tokens} tokens in "
            f"{PATIENCE} wordings: raise memory_tokens, or lower most_facts ({self.train.most_facts})"
        )

    def _life(self, row: int, name: str, sessions: int, start: int) -> Life:
        """The life of that name, which a row keeps while it is at it: steps ask for its sessions in their order."""
        if (kept := self._lives.get(row)) is None or (kept.name, kept.start) != (name, start):
            train = self.train
            ends = sessions == 1 or Random(f"{self.seed}/ends/{name}").random() >= train.endless_share
            resets = TASK in self.names and ends
            counts = train.most_facts, train.questions
            kept = Life(self.seed, name, *counts, resets, start, train.asked_within, train.wrong_share)
            self._lives[row] = kept
        return kept

    def _read(self, path: Path) -> str:
        """Encode the records of a file, and say how many fit. RecipeError when none does."""
        left_out: Counter[str] = Counter()
        asked = packed = learnt = 0
        for record in read_records(path):
            try:
                encoded = self.encoder.record(record)
            except RecipeError as error:
                raise RecipeError(f"{record.where}: {error}") from error
            reason = self.shapes[-1].obstacle(encoded) if any(encoded.memory) else "nothing in their memory"
            if reason:
                left_out[reason] += 1
                continue
            shape = next(s for s in self.shapes if s.fits(encoded))
            self.file.setdefault(shape, []).append(encoded)
            row = shape.asked(encoded)
            asked, packed = asked + len(encoded.asked), packed + len(row)
            learnt += sum(len(ids) - start for ids, start in row)
        number = sum(map(len, self.file.values()))
        said = f"{path}: {number} of {number + left_out.total()} records can be learnt"
        if left_out:
            said += "; left out: " + ", ".join(f"{many} with {reason}" for reason, many in left_out.items())
        if not number and not left_out:
            raise RecipeError(f"training file {path} holds no records: one JSON object a line (training/records.py)")
        if not number:
            raise RecipeError(f"{said}. Training needs at least one record that fits the recipe's adapter.train")
        if packed < asked:
            said += f"; {asked - packed} of their {asked} conversations do not fit beside the others (asked_tokens)"
        if learnt > number * self.train.answer_tokens:
            said += f"; their answers have {learnt // number} tokens a record: those beyond answer_tokens are cut"
        return said

    def _sessions(self, step: int) -> tuple[Shape, list[EncodedRecord]]:
        """Records of the world for one step, and the shape that holds them."""
        source = self._world(step)
        first = self._next(source, self.shapes[-1], 0)
        shape = next(s for s in self.shapes if s.fits(first))
        below = max((s.memory_tokens for s in self.shapes if s.memory_tokens < shape.memory_tokens), default=-1)
        return shape, [first] + [self._next(source, shape, below) for _ in range(shape.contexts - 1)]

    def _next(self, source: Iterator[EncodedRecord], shape: Shape, below: int) -> EncodedRecord:
        for _ in range(PATIENCE):
            record = next(source)
            if shape.fits(record) and sum(map(len, record.memory)) > below:
                return record
        raise RecipeError(
            f"{PATIENCE} sessions in a row do not fit: a memory may have {shape.memory_tokens} tokens (memory_tokens) "
            f"and needs a conversation of at most {shape.asked_tokens} (asked_tokens)"
        )

    def _world(self, step: int) -> Iterator[EncodedRecord]:
        for index in count():
            record = world_record(
                rng_for(self.seed, index, f"train/{step}"), self.train.most_facts, self.train.questions
            )
            if set(record.reset) <= set(self.names):  # what cannot be emptied is not forgotten
                yield self.encoder.record(self._with_text(record, str(index), step))

    def _with_text(self, record: Record, name: str, step: int) -> Record:
        """The record, with text of another session before its questions where the recipe's ``text_share`` says so."""
        rng = rng_for(self.seed, step, f"text/{name}")
        if rng.random() >= self.train.text_share:
            return record
        return replace(record, conversations=[other_text(rng), *record.conversations])


def _render_fast(messages: list[dict[str, Any]], tools: Any = None, prompt: bool = False) -> str:
    return render(messages, tools, prompt)


class BackboneBatches:
    """Rows of dialogues for the backbone: (Packed, weights (B, T) float32)."""

    def __init__(self, recipe: Recipe, train: TrainRecipe, tokenizer: Any) -> None:
        self.seed, self.train = recipe.seed, train
        self.encoder = Encoder(tokenizer, ())
        self.vocab = range(16, len(tokenizer))

    def __call__(self, step: int) -> tuple[Packed, Tensor]:
        """Fill the rows one after the other; a dialogue that does not fit in the rest of a row begins the next one."""
        rows: list[list[tuple[list[int], list[float]]]] = [[]]
        room, index = self.train.length, 0
        while True:
            for ids, weights in self._sequences(rng_for(self.seed, index, f"backbone/{step}")):
                if len(ids) > self.train.length:
                    continue
                if len(ids) > room:
                    if len(rows) == self.train.rows:
                        return self._pack(rows)
                    rows.append([])
                    room = self.train.length
                rows[-1].append((ids, weights))
                room -= len(ids)
            index += 1
            if index == PATIENCE and not rows[0]:
                raise RecipeError(f"no dialogue of {PATIENCE} sessions has at most {self.train.length} tokens (length)")

    def _sequences(self, rng: Random) -> Iterator[tuple[list[int], list[float]]]:
        for messages, tools, answers in world_dialogues(rng, self.train.most_facts, self.train.questions):
            texts = [render([], tools)] if tools else []
            own = [render(messages[:1], tools)] if tools and messages[0]["role"] == "system" else None
            texts = own or texts
            body = messages[1:] if own else messages
            answers = {i - (1 if own else 0) for i in answers}
            ids: list[int] = []
            weights: list[float] = []
            pieces = self.encoder.texts(texts + [render([m]) for m in body])
            for number, piece in enumerate(pieces, -len(texts)):
                ids += piece
                learnt = 1.0 if number in answers else self.train.other_weight
                weights += [self.train.other_weight] * min(3, len(piece)) + [learnt] * (len(piece) - 3)
            yield ids, weights
        if rng.random() < 3 * self.train.random_share:
            once = rng.choices(self.vocab, k=rng.randint(8, 96))
            yield once + once, [0.0] * len(once) + [1.0] * len(once)

    def _pack(self, rows: list[list[tuple[list[int], list[float]]]]) -> tuple[Packed, Tensor]:
        from .packing import pack_rows

        sequences = [[ids for ids, _ in row] for row in rows]
        starts = [[1] * len(row) for row in rows]
        limit = self.train.rows * (self.train.length // 16)
        packed = pack_rows(sequences, self.train.length, limit, self.encoder.pad, label_starts=starts)
        weights = np.zeros(packed.input_ids.shape, np.float32)
        for b, row in enumerate(rows):
            at = 0
            for ids, own in row:
                weights[b, at : at + len(ids) - 1] = own[1:]
                at += len(ids)
        return packed, torch.from_numpy(weights) * (packed.labels != IGNORE)
