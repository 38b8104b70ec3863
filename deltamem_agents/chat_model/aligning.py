"""Which messages of a call an agent's journal has already. It goes by ids and hashes alone, never by kept text."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from langchain_core.messages import BaseMessage

from ..engine import Engine
from ..store import Entry, Filter, Record, Store
from .messages import to_entries
from .serving import Served

LEAST_TAIL = 64  # entries at the end of the journal that are looked at, at least


@dataclass(frozen=True)
class Said:
    """A message that was said, and what it would be in the journal."""

    message: BaseMessage
    entry: Entry

    @property
    def key(self) -> str | None:
        """Its id."""
        return self.entry.message_id


def to_said(messages: Sequence[BaseMessage], engine: Engine) -> list[Said]:
    """The messages that are to be remembered: none of a system, no summaries, nothing empty."""
    found = ((message, to_entries([message], engine)) for message in messages)
    return [Said(message, entry) for message, entries in found for entry in entries if entry.role != "system"]


def same(entry: Entry, record: Record) -> bool:
    """Whether role, content and payload are those of the record, whatever the two were written to."""
    return replace(entry, sub_states=record.entry.sub_states).content_hash == record.entry.content_hash


def align(places: Sequence[Sequence[int]]) -> dict[int, int]:
    """The most items that have places in the same order, the latest where there is a choice: item -> place.

    Args:
        places: the places that each item may take, in ascending order.
    """
    ends: list[int] = []  # of chains of 1, 2, … items from the end: their first place, negated; later places are less
    chains: list[tuple[int, int, object]] = []
    for item in range(len(places) - 1, -1, -1):
        for place in places[item]:
            length = bisect_left(ends, -place)
            chain = (item, place, chains[length - 1] if length else None)
            if length == len(ends):
                ends.append(-place)
                chains.append(chain)
            else:
                ends[length], chains[length] = -place, chain
    taken: dict[int, int] = {}
    link: object = chains[-1] if chains else None
    while isinstance(link, tuple):
        item, place, link = link
        taken[item] = place
    return taken


class Past:
    """What an agent's journal says of the messages of one call.

    Attributes:
        head: the agent's head.
        tail: the newest records on the way there, of all threads, oldest first.
        complete: whether that is the whole way.
        aligned: index of a message of the history -> index of its record in ``tail``, in the same order.
        moved: the same, of messages that were written in another order.
    """

    def __init__(self, store: Store, who: Served, said: Sequence[Said]) -> None:
        self._store, self._who, self._said = store, who, said
        self.head = store.head(who.agent_id)
        limit = max(LEAST_TAIL, 4 * len(said))
        self.tail = [] if self.head is None else store.journal(who.agent_id, self.head, limit=limit)
        self.complete = len(self.tail) < limit
        self._ids = {one.key for one in said if one.key is not None}
        self._routes = {record.entry.sub_states for record in self.tail}
        self._retired: dict[str, bool] = {}
        self._leads: dict[str, bool] = {}
        self.aligned: dict[int, int] = {}
        self.moved: dict[int, int] = {}

    def known(self, history: Sequence[Said]) -> set[int]:
        """Indices of the messages that need not be written. Sets :attr:`aligned` and :attr:`moved`."""
        self.aligned = self._align(history, dict(enumerate(self.tail)))
        found = set(self.aligned)
        if len(found) < len(history) and self.head is not None:
            by_id = {i for i, one in enumerate(history) if self._known_by_id(one)}
            found |= by_id | self._vouched(history, by_id)
            self.moved = self._moved(history, [i for i in range(len(history)) if i not in found])
            found |= {*self.moved}
            found |= self._older(history, [i for i in range(len(history)) if i not in found])
        return found

    def begun(self, turn: Sequence[Said], after: int) -> tuple[int, int]:
        """How many messages of the current turn are written, and the last record of that (-1: not in the tail)."""
        if not any(one.entry.role == "assistant" for one in turn):
            return 0, after
        places = {j: self.tail[j] for j in range(after + 1, len(self.tail))}
        aligned = self._align(turn, places)
        for i in range(len(turn) - 1, -1, -1):
            if turn[i].entry.role == "assistant" and (i in aligned or self._known_by_id(turn[i])):
                return i + 1, aligned.get(i, -1)
        return 0, after

    def at(self, one: Said) -> int | None:
        """The index in the tail of the record with the id and the content of a message."""
        places = (j for j, r in enumerate(self.tail) if one.key is not None and r.entry.message_id == one.key)
        return next((j for j in places if same(one.entry, self.tail[j])), None)

    def on_way(self, one: Said) -> bool:
        """Whether id and content of a message are on the way to the head."""
        if self.at(one) is not None:
            return True
        if self.complete or not self._known_by_id(one) or one.key is None:
            return False
        records = self._store.records(self._who.agent_id, Filter(ids=[one.key]))
        return any(same(one.entry, record) and self._leads_to_head(record.version_id) for record in records)

    def _align(self, said: Sequence[Said], records: Mapping[int, Record]) -> dict[int, int]:
        return align(self._places(said, records))

    def _places(self, said: Sequence[Said], records: Mapping[int, Record]) -> list[list[int]]:
        """The records, of the call's thread, that each message may be."""
        by_hash: dict[str, list[int]] = {}
        for j, record in records.items():
            if self._who.thread_id in (None, record.entry.thread_id):
                by_hash.setdefault(record.entry.content_hash, []).append(j)
        places = []
        for one in said:
            found = sorted(j for content in self._hashes(one) for j in by_hash.get(content, ()))
            own = [j for j in found if one.key is not None and records[j].entry.message_id == one.key]
            places.append(own or [j for j in found if records[j].entry.message_id not in self._ids])
        return places

    def _hashes(self, one: Said) -> set[str]:
        """Content hashes that the message has, by where it may have been written."""
        routes = {one.entry.sub_states, *self._routes}
        return {replace(one.entry, sub_states=names).content_hash for names in routes}

    @cached_property
    def _written(self) -> tuple[set[tuple[str, str]], set[str]]:
        """(id, content hash) of what was written, and ids that were forgotten, of those that the call gives."""
        if self.head is None or not self._ids:
            return set(), set()
        written = self._store.written(self._who.agent_id, self.head, self._ids)
        return written, self._store.tombstones(self._who.agent_id, self._ids)

    def _known_by_id(self, one: Said) -> bool:
        if one.key is None:
            return False
        written, forgotten = self._written
        return one.key in forgotten or any((one.key, content) in written for content in self._hashes(one))

    def _vouched(self, history: Sequence[Said], by_id: set[int]) -> set[int]:
        """Messages without ids before replies that are known by theirs."""
        found: set[int] = set()
        turn: list[int] = []
        for i, one in enumerate(history):
            if one.entry.role == "assistant":
                found |= {k for k in turn if i in by_id and history[k].key is None}
                turn = []
            else:
                turn.append(i)
        return found

    def _moved(self, history: Sequence[Said], missing: Sequence[int]) -> dict[int, int]:
        """Of the missing messages, those that were written in another order, all up to a reply together."""
        free = {j: r for j, r in enumerate(self.tail) if j not in self.aligned.values()}
        pieces: list[list[int]] = []
        for i in missing:
            if pieces and pieces[-1][-1] == i - 1 and history[i - 1].entry.role != "assistant":
                pieces[-1].append(i)
            else:
                pieces.append([i])
        found: dict[int, int] = {}
        for piece in pieces:
            places = self._places([history[i] for i in piece], free)
            starts = (j for j in reversed(places[0]) if all(j + k in one for k, one in enumerate(places)))
            if (start := next(starts, None)) is not None:
                for k, i in enumerate(piece):
                    found[i] = start + k
                    del free[start + k]
        return found

    def _older(self, history: Sequence[Said], missing: Sequence[int]) -> set[int]:
        """Of the missing messages, those whose content is on old entries, or on retired ones."""
        if not missing:
            return set()
        hashes = {content for i in missing for content in self._hashes(history[i])}
        where = Filter(hashes=hashes, thread_id=self._who.thread_id)
        there = {record.entry_id for record in self.tail}
        records = [r for r in self._store.records(self._who.agent_id, where) if r.entry_id not in there]
        first = min(self.aligned, default=len(history))
        found: set[int] = set()
        for some, old in (([i for i in missing if i < first], True), ([i for i in missing if i > first], False)):
            fitting = {j: r for j, r in enumerate(records) if self._counts(r.version_id, old)} if some else {}
            found |= {some[k] for k in self._align([history[i] for i in some], fitting)}
        return found

    def _counts(self, version: str, old: bool) -> bool:
        """Whether a version is retired, or (``old``) leads to the head."""
        if version not in self._retired:
            self._retired[version] = self._store.version(self._who.agent_id, version).retired
        return self._retired[version] or (old and self._leads_to_head(version))

    def _leads_to_head(self, version: str) -> bool:
        if version not in self._leads:
            self._leads[version] = self._store.is_ancestor(self._who.agent_id, version, self.head or version)
        return self._leads[version]
