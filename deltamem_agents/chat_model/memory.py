"""What an agent remembers: states taken from the store, messages written into them, versions put back, exactly once."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock, RLock
from typing import Final

from langchain_core.messages import BaseMessage

from ..config import default_store
from ..engine import Engine, WriteTrace
from ..errors import FingerprintMismatch, StateError, StatePruned
from ..memory import MemoryState
from ..store import DEFAULT_TENANT, Entry, Record, Store, Version, Write, checksum, open_store, version_id
from .messages import from_entry, to_entries
from .routing import Router


class Head:
    """The type of :data:`HEAD`."""

    def __repr__(self) -> str:
        return "HEAD"


HEAD: Final = Head()  # "the head of the agent, whatever it is when the write is committed"

_stores: dict[tuple[str, str], Store] = {}
_lock = Lock()
_writers = [RLock() for _ in range(64)]  # an agent has one of them: its writers in this process wait for each other


def shared_store(location: str | None, tenant: str = DEFAULT_TENANT) -> Store:
    """A tenant's store at a path or URL (None: the default), opened once for each process."""
    key = (location or default_store(), tenant)
    with _lock:
        if key not in _stores:
            _stores[key] = open_store(key[0], tenant=tenant)
        return _stores[key]


class AgentMemory:
    """The memories in one store, as one engine reads and writes them. replay.py does what needs the whole journal."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine, self.store = engine, store

    def load(self, agent_id: str, version: str | None) -> MemoryState:
        """The state at ``version``; None: empty. One whose bytes were dropped is computed again from the journal.

        Raises:
            VersionNotFound: no such version, or it belongs to another agent.
            FingerprintMismatch: it was made by another adapter or backbone.
            CorruptState: its bytes are damaged.
        """
        return self.at(agent_id, version)[0]

    def at(self, agent_id: str, version: str | None) -> tuple[MemoryState, Version | None]:
        """:meth:`load`, with the version itself."""
        state = self.engine.new_state()
        if version is None:
            return state, None
        try:
            snapshot = self.store.load(agent_id, version)
        except StatePruned:
            return self.rebuild(agent_id, version)
        if snapshot.version is None:
            return state, None
        self.check(snapshot.version)
        for name, data in snapshot.parts.items():
            state = state.replace(name, MemoryState.from_bytes(data))
        return state, snapshot.version

    def rebuild(self, agent_id: str, version: str, damaged: Collection[str] = ()) -> tuple[MemoryState, Version]:
        """The state at a pruned version, from the nearest ancestor that has bytes and the journal since then.

        Args:
            damaged: versions whose bytes are not to be used, as if they were pruned.

        Raises:
            FingerprintMismatch: it was made by another adapter or backbone.
            JournalNotKept: the store keeps hashes alone.
            StateError: what is computed is not what the version's checksums say.
        """
        last = self.store.version(agent_id, version)
        self.check(last)
        way, base = [last], None
        while way[-1].parent is not None:
            base = self.store.version(agent_id, way[-1].parent)
            lost = base.pruned or base.version_id in damaged
            if not lost or base.fingerprint != last.fingerprint:
                break
            way.append(base)
            base = None
        kept = base is not None and base.fingerprint == last.fingerprint  # of another adapter nothing was kept
        state = self.load(agent_id, base.version_id) if base is not None and kept else self.engine.new_state()
        records: dict[str, list[Record]] = {}
        for record in self.store.journal(agent_id, version, after=None if base is None else base.version_id):
            records.setdefault(record.version_id, []).append(record)
        for step in reversed(way):
            state = self.apply(state, step, records.get(step.version_id, ()))
        if wrong := [n for n, data in self.parts(state, last.parts).items() if checksum(data) != last.parts[n]]:
            raise StateError(
                f"agent {agent_id!r}, version {version}: the journal gives another state of {wrong[0]!r} than was "
                "written (another device, dtype or library version?): deltamem store verify --replay tells more"
            )
        return state, last

    def apply(self, state: MemoryState, version: Version, records: Sequence[Record]) -> MemoryState:
        """What a version did to the state of its parent: its resets, then its messages."""
        for name in version.resets:
            state = state.reset(name) if name in state.sub_states else state
        if not records:
            return state
        messages, routes = zip(*((from_entry(r.entry), r.entry.sub_states) for r in records), strict=True)
        return self.engine.write(state, messages, routes)

    def remember(
        self,
        messages: Sequence[BaseMessage],
        agent_id: str,
        parent: str | Head | None = HEAD,
        move_head: bool = True,
        routes: Sequence[Sequence[str]] | None = None,
        thread_id: str | None = None,
        run_id: str | None = None,
        router: Router | None = None,
    ) -> str | None:
        """Write messages after ``parent`` and commit; see :meth:`DeltaMemChatModel.remember`."""
        entries = to_entries(messages, self.engine, routes, router)
        if (ids := [entry.message_id for entry in entries if entry.message_id]) and self.store.head(agent_id):
            forgotten = self.store.tombstones(agent_id, ids)
            entries = [entry for entry in entries if entry.message_id not in forgotten]
        entries = [replace(entry, thread_id=thread_id, run_id=run_id) for entry in entries]
        if not isinstance(parent, Head):
            return self.commit(agent_id, parent, entries, move_head=move_head) if entries else parent
        if not entries:
            return self.store.head(agent_id)
        return self._append(agent_id, lambda head: self._write(agent_id, head, entries))

    def reset(self, agent_id: str, sub_state: str | None) -> str:
        """A new head with ``sub_state`` (None: everything) empty; see :meth:`DeltaMemChatModel.reset`."""
        if sub_state is not None and sub_state not in self.engine.sub_states:
            raise StateError(f"no sub-state {sub_state!r}; this memory has {sorted(self.engine.sub_states)}")

        def write(head: str | None) -> Write:
            if head is None:
                raise StateError(f"agent {agent_id!r} has nothing to reset: check the name, or write to it first")
            version = self.store.version(agent_id, head)
            if sub_state is None:  # works for the memory of another adapter, too: nothing of it is kept
                return Write([], {}, sorted({*self.engine.sub_states, *version.parts}))
            self.check(version)
            if not version.pruned:
                return Write([], {}, [sub_state])
            others = [name for name in version.parts if name != sub_state]  # nothing is taken over from a pruned one
            return Write([], self.parts(self.load(agent_id, head), others), [sub_state])

        return self._append(agent_id, write)

    @contextmanager
    def writing(self, agent_id: str) -> Iterator[None]:
        """Writers of this process to one agent wait for each other here, instead of repeating their work."""
        with _writers[hash((self.store.location, self.store.tenant, agent_id)) % len(_writers)]:
            yield

    def commit(self, agent_id: str, parent: str | None, entries: Sequence[Entry], *, move_head: bool) -> str:
        """Write entries after one version and commit; nothing is computed when that was written before."""
        parent = None if parent is None else self.store.resolve(agent_id, parent)
        identity = version_id(agent_id, parent, entries, self.engine.fingerprint, tenant=self.store.tenant)
        found = self.store.find(agent_id, identity)
        if found is not None and (not move_head or self.store.head(agent_id) != parent):
            return identity
        added = Write(entries, {}) if found is not None else self._write(agent_id, parent, entries)
        return self.store.commit(
            agent_id,
            parent=parent,
            parts=added.parts,
            entries=added.entries,
            fingerprint=self.engine.fingerprint,
            move_head=move_head,
        ).version_id

    def parts(self, state: MemoryState, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of some sub-states."""
        return {name: state.select(name).to_bytes() for name in names}

    def bring_back(self, agent_id: str, version: str) -> None:
        """Put the bytes of a pruned version back into the store. Raises as :meth:`rebuild`."""
        state, found = self.rebuild(agent_id, version)
        self.store.fill(agent_id, version, self.parts(state, found.parts))

    def check(self, version: Version) -> None:
        """Raise FingerprintMismatch unless this engine's adapter and backbone made the version."""
        if version.fingerprint != self.engine.fingerprint:
            raise FingerprintMismatch(
                f"memory version {version.version_id} of agent {version.agent_id!r} was made by adapter/backbone "
                f"{version.fingerprint}, this model is {self.engine.fingerprint}: load the adapter that made it, or "
                "write the journal with this one: deltamem store migrate"
            )

    def _append(self, agent_id: str, write: Callable[[str | None], Write]) -> str:
        with self.writing(agent_id):
            return self.store.append(agent_id, write, fingerprint=self.engine.fingerprint).version_id

    def _write(self, agent_id: str, parent: str | None, entries: Sequence[Entry]) -> Write:
        """The state after ``entries``: the bytes of what changed, and what the journal says of how it changed."""
        state, version = self.at(agent_id, parent)
        routes = [entry.sub_states for entry in entries]
        written, traces = self.engine.write_traced(state, [from_entry(entry) for entry in entries], routes)
        whole = version is not None and version.pruned  # then nothing can be taken over from it
        changed = {name for route in routes for name in route} | (set(version.parts) if whole and version else set())
        names = [name for name in self.engine.sub_states if name in changed]
        entries = [traced(entry, trace) for entry, trace in zip(entries, traces, strict=True)]
        return Write(entries, self.parts(written, names))


def traced(entry: Entry, trace: WriteTrace) -> Entry:
    """The entry with what the engine says of its writing."""
    return replace(entry, tokens=trace.tokens, gate=trace.gate, moved=trace.moved)
