"""Engine: one frozen backbone with its δ-mem, serving many agents. States come in and go out; none is kept."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from threading import Event, Lock
from typing import Any

import torch
from torch import Tensor

from ..errors import BackboneError, ContextOverflow, StateError
from ..memory import Bound, DeltaMemory, MemoryState
from .lane import decode_mode
from .pending import Chunks, row_of
from .reply import Generation, Request, Row
from .scheduler import Scheduler
from .text import ChatText, Message

WRITE_TOKENS = 8192  # longest piece of a message that is written at once
BATCH_TOKENS = 131072  # most tokens of one forward call that writes
ROLE_SUB_STATES = {"user": "facts", "system": "facts", "tool": "facts", "assistant": "task_progress"}

Routes = Sequence[Sequence[str]]
Piece = tuple[list[int], tuple[str, ...]]  # token ids, and the sub-states that they are written to


@dataclass(frozen=True)
class WriteTrace:
    """What writing one message did. Only the sub-states that it was written to appear.

    Attributes:
        tokens: how many tokens were written, the chat template's markup among them; 0 for a message routed nowhere.
        gate: sub-state -> mean write gate β, between 0 and 1, over its state heads, all layers and the tokens (SSW: the
            means) written; the pieces of a very long message count by their tokens.
        moved: sub-state -> Frobenius norm, over its state heads and all layers, of the state after the message minus
            the state before it.
    """

    tokens: int
    gate: dict[str, float]
    moved: dict[str, float]


class Engine:
    """A model, its tokenizer and the memory attached to it. Safe to call from several threads.

    Attributes:
        model, tokenizer: of transformers.
        memory: the attached δ-mem.
        fingerprint: "adapter/backbone", what states made here belong to.
        sub_states: names of the parts of a state.
        device: where prompts go.
        decode: how tokens are computed: "eager", "graph" or "compile".
        max_length: tokens of the backbone's context window.
        lock: held during each call of the model.
        scheduler: answers many threads in one batch, and writes for them.
    """

    def __init__(self, model: Any, tokenizer: Any, memory: DeltaMemory, *, decode: str | None = None) -> None:
        """``decode``: "eager", "graph" (CUDA graphs, the default on CUDA) or "compile" (torch.compile, then graphs).

        Raises BackboneError when the backbone names no end-of-turn token.
        """
        self.model, self.tokenizer, self.memory = model, tokenizer, memory
        self.text = ChatText(tokenizer)
        self.fingerprint = str(memory.fingerprint)
        self.sub_states = tuple(memory.config.sub_states)
        self.device = torch.device(model.device)
        self.decode = decode_mode(decode, self.device)
        self.graph_pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._parameters = frozenset(inspect.signature(type(model).forward).parameters)
        self.max_length = _window(model)
        self.lock = Lock()
        self.ends = _end_tokens(model, tokenizer) | self.text.ends
        if not self.ends:
            raise BackboneError("the backbone names no end-of-turn token: set eos_token in its tokenizer")
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.ends)
        self.scheduler = Scheduler(self)

    def new_state(self, rows: int = 1) -> MemoryState:
        """Empty memory for ``rows`` agents."""
        return self.memory.new_state(rows, device=self.device)

    def route(self, message: Message) -> tuple[str, ...]:
        """The sub-states that a message goes to by default.

        What the agent was told and shown goes to ``facts``, what it did to ``task_progress``; where the adapter has no
        sub-states of these names, a message goes to all of them.
        """
        name = ROLE_SUB_STATES.get(message["role"])
        return (name,) if name in self.sub_states else self.sub_states

    def write(self, state: MemoryState, messages: Sequence[Message], routes: Routes | None = None) -> MemoryState:
        """The state after ``messages``: each rendered alone, as a sequence of its own, one after the other.

        A pure function: the same state, messages and routes give the same result.

        Args:
            state: one row.
            messages: {"role", "content", …}.
            routes: the sub-states that each message is written to; None: by role (see :meth:`route`).

        Raises:
            FingerprintMismatch, StateError: the state is not of this adapter and backbone, or a sub-state is unknown.
        """
        return self.scheduler.write(state, messages, routes)

    def write_traced(
        self, state: MemoryState, messages: Sequence[Message], routes: Routes | None = None
    ) -> tuple[MemoryState, list[WriteTrace]]:
        """:meth:`write`, the same state bit for bit, and what each of the messages did to it.

        Raises:
            FingerprintMismatch, StateError: as for :meth:`write`.
        """
        state, messages_written = self.scheduler.write_traced(state, messages, routes)
        return state, [self._trace(w.pieces, w.gates, w.before, w.after) for w in messages_written]

    def write_batch(
        self, states: MemoryState, messages: Sequence[Sequence[Message]], routes: Sequence[Routes | None] | None = None
    ) -> MemoryState:
        """:meth:`write` for B agents at once: row i of ``states`` takes ``messages[i]``, routed by ``routes[i]``."""
        if not len(messages) == states.batch_size == len(routes if routes is not None else messages):
            raise StateError(f"{states.batch_size} rows of state, {len(messages)} lists of messages: give one for each")
        todo = [
            list(chain(*self._pieces(own, routes[i] if routes is not None else None, states.sub_states)))
            for i, own in enumerate(messages)
        ]
        for turn in range(max(map(len, todo), default=0)):
            rows = [i for i, pieces in enumerate(todo) if turn < len(pieces)]
            for group in _groups(rows, [len(todo[i][turn][0]) for i in rows]):
                written = self._write_pieces(states.rows(group), [todo[i][turn] for i in group])[0]
                states = _put_rows(states, group, written)
        return states

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        states: MemoryState | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        cancel: Event | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Answer each conversation, in one batch, reading the memory in ``states`` (a row each; None: without memory).

        Args:
            tools: schemas of tools, for all conversations.
            cancel: once set, the answers end where they are.
            options: the other fields of :class:`Request`: max_new_tokens, stop, temperature, top_p, seed, tool_choice.

        Raises:
            ContextOverflow: a prompt does not fit into the context window.
            FingerprintMismatch, StateError: the states are not of this adapter and backbone, or not one for each.
        """
        return self.generate_requests([Request(c, tools, **options) for c in conversations], states, cancel)

    def generate_requests(
        self, requests: Sequence[Request], states: MemoryState | None = None, cancel: Event | None = None
    ) -> list[Generation]:
        """:meth:`generate` with options for each row."""
        if states is not None and states.batch_size != len(requests):
            raise StateError(f"{states.batch_size} rows of state for {len(requests)} conversations: give one for each")
        rows = [None if states is None else row_of(states, i) for i in range(len(requests))]
        return self.scheduler.generate(requests, rows, cancel)

    def stream(
        self,
        conversation: Sequence[Message],
        state: MemoryState | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Chunks:
        """The answer piece by piece: the same text as :meth:`generate`, the last chunk with its :class:`Generation`.

        Markup of tool calls never shows. Closing the iterator ends the generation.
        """
        return self.stream_request(Request(conversation, tools, **options), state)

    def stream_request(self, request: Request, state: MemoryState | None = None) -> Chunks:
        """:meth:`stream` for a :class:`Request`. Errors of the prompt and the state are raised at once."""
        return iter(self.scheduler.submit(request, state))

    def answer(
        self,
        state: MemoryState | None,
        questions: Sequence[str | Sequence[Message]],
        batch_size: int = 64,
        max_new_tokens: int = 32,
    ) -> list[str]:
        """Greedy answers, for evaluation. Row i of ``state`` answers question i; a single row answers them all."""
        if state is not None and state.batch_size not in (1, len(questions)):
            raise StateError(f"{state.batch_size} rows of state, {len(questions)} questions: give one for each, or one")
        conversations = [[{"role": "user", "content": q}] if isinstance(q, str) else q for q in questions]
        answers: list[str] = []
        for start in range(0, len(questions), batch_size):
            part = conversations[start : start + batch_size]
            rows = None
            if state is not None:
                rows = state.rows([start + i if state.batch_size > 1 else 0 for i in range(len(part))])
            answers += [g.text for g in self.generate(part, rows, max_new_tokens=max_new_tokens)]
        return answers

    def reading(
        self, states: MemoryState | None, token_mask: Tensor | None = None, accumulate: bool = False
    ) -> AbstractContextManager[Bound | None]:
        """Calls of the model inside the ``with`` read ``states``; None: no memory. See :meth:`DeltaMemory.bind`."""
        if states is None:
            return nullcontext()
        return self.memory.bind(states, write=False, token_mask=token_mask, accumulate=accumulate)

    def accepted(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``inputs`` that the model's forward knows."""
        return {name: value for name, value in inputs.items() if name in self._parameters}

    def row(self, request: Request) -> Row:
        """The beginning of a reply. Raises ContextOverflow when the prompt does not fit into the context window."""
        row = Row(self.text, request, self.ends)
        if len(row.prompt) >= self.max_length:
            raise ContextOverflow(
                f"the prompt has {len(row.prompt)} tokens, the backbone's context window {self.max_length}, and the "
                "answer needs some: send fewer messages (older ones can be written to memory) or shorter ones"
            )
        row.fit(self.max_length)
        return row

    def _pieces(
        self, messages: Sequence[Message], routes: Routes | None, layout: Mapping[str, Any]
    ) -> list[list[Piece]]:
        """For each message the pieces that are written one after the other."""
        if routes is not None and len(routes) != len(messages):
            raise StateError(f"{len(routes)} routes for {len(messages)} messages: give one for each, or None")
        limit = min(WRITE_TOKENS, self.max_length)
        pieces: list[list[Piece]] = []
        for i, message in enumerate(messages):
            route = tuple(routes[i]) if routes is not None else self.route(message)
            if unknown := [name for name in route if name not in layout]:
                raise StateError(f"no sub-state {unknown[0]!r}; this memory has {sorted(layout)}")
            ids = self.text.message(message)
            pieces.append([(ids[start : start + limit], route) for start in range(0, len(ids), limit)])
        return pieces

    def _write_pieces(
        self, states: MemoryState, pieces: Sequence[Piece], trace: bool = False, width: int | None = None
    ) -> tuple[MemoryState, dict[str, Tensor]]:
        """A piece written into each row; with ``trace``, also the write gates (B, H) of each attention module.

        ``width``: to how many tokens the rows are padded, if that is more than the longest has.

        On a CPU, products of matrices depend in their last bits on how many rows there are: there, row by row.
        """
        if self.device.type != "cpu" or len(pieces) == 1:
            bound = self._write_together(states, pieces, trace, width)
            return bound.state, bound.gates
        each = [self._write_together(row_of(states, i), [piece], trace, None) for i, piece in enumerate(pieces)]
        gates = {name: torch.cat([bound.gates[name] for bound in each]) for name in each[0].gates}
        return MemoryState.stack([bound.state for bound in each]), gates

    def _write_together(self, states: MemoryState, pieces: Sequence[Piece], trace: bool, width: int | None) -> Bound:
        """One forward call that writes a piece into each row."""
        width = max(width or 0, *(len(ids) for ids, _ in pieces))
        ids = torch.full((len(pieces), width), self.pad)
        mask = torch.zeros((len(pieces), width), dtype=torch.bool)
        segments = torch.full((len(pieces), width), -1)
        granularity = self.memory.config.memory_write_granularity
        for i, (own, _) in enumerate(pieces):
            ids[i, : len(own)], mask[i, : len(own)] = torch.tensor(own), True
            numbers = self.text.sentences(own) if granularity == "sentence_mean" else [0] * len(own)
            segments[i, : len(own)] = torch.tensor(numbers)
        routed: dict[str, Tensor] = {
            name: torch.tensor([name in route for _, route in pieces])[:, None] & mask for name in self.sub_states
        }
        segment_ids = None if granularity == "token" else segments.to(self.device)
        with (
            self.lock,
            torch.no_grad(),
            self.memory.bind(states, segment_ids=segment_ids, sub_states=routed, trace=trace) as bound,
        ):
            ids, mask = ids.to(self.device), mask.to(self.device)
            self.model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return bound

    def _trace(
        self, pieces: Sequence[Piece], gates: Sequence[Mapping[str, Tensor]], before: MemoryState, after: MemoryState
    ) -> WriteTrace:
        """``gates``: for each of a message's pieces, attention module -> (1, H)."""
        written = [name for name in self.sub_states if any(name in route for _, route in pieces)]
        sizes = [len(ids) for ids, _ in pieces]
        tokens = sum(sizes) if written else 0
        gate, apart = {}, after.distance(before)
        for name in written:
            heads = list(after.sub_states[name])
            means = [float(torch.cat([g[0, heads].to(self.device) for g in own.values()]).mean()) for own in gates]
            gate[name] = sum(size * mean for size, mean in zip(sizes, means, strict=True)) / tokens
        return WriteTrace(tokens, gate, {name: apart[name] for name in written})


def _groups(rows: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """``rows`` in groups whose padded size stays within :data:`BATCH_TOKENS`."""
    group: list[int] = []
    widest = 0
    for row, length in sorted(zip(rows, lengths, strict=True), key=lambda pair: pair[1]):
        if group and max(widest, length) * (len(group) + 1) > BATCH_TOKENS:
            yield group
            group, widest = [], 0
        group.append(row)
        widest = max(widest, length)
    if group:
        yield group


def _put_rows(states: MemoryState, rows: Sequence[int], changed: MemoryState) -> MemoryState:
    """``states`` with ``rows`` taken from ``changed``."""
    if list(rows) == list(range(states.batch_size)):
        return changed
    order = list(range(states.batch_size))
    for position, row in enumerate(rows):
        order[row] = states.batch_size + position
    return MemoryState.stack([states.to(next(iter(changed.tensors.values())).device), changed]).rows(order)


def _window(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    sizes = [size for name in names if isinstance(size := getattr(config, name, None), int) and size > 0]
    return sizes[0] if sizes else 1 << 20


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for source in (model.generation_config, model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or ())
    return frozenset(found)
