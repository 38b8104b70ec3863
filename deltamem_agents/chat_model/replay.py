"""What needs the whole journal: verifying by replay, repairing, forgetting, moving to another adapter.

A write is a pure function of (state before, messages, adapter): a state is the fold of that function over the journal.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import CorruptState, HeadConflict, StoreError
from ..memory import MemoryState
from ..store import Filter, Problem, Record, Version, checksum, version_id
from .memory import AgentMemory, traced
from .messages import from_entry

TRIES = 10
Progress = Callable[[int, int], object]
"""Is called with the number of versions that are done, and of all of them."""


@dataclass(frozen=True)
class Forgotten:
    """How many journal entries are gone, and how many versions were rewritten without them."""

    entries: int
    versions: int


@dataclass(frozen=True)
class Migrated:
    """The head before and after, and how many versions were written by the new adapter just now."""

    old: str | None
    new: str | None
    versions: int


def _quiet(done: int, total: int) -> None:
    pass


class _States:
    """States of versions that others come after: kept until the last of those has asked, else loaded."""

    def __init__(
        self, memory: AgentMemory, agent_id: str, versions: Sequence[Version], tree: Sequence[Version]
    ) -> None:
        self._memory, self._agent_id = memory, agent_id
        self._ours = {v.version_id for v in tree if v.fingerprint == memory.engine.fingerprint}
        self._waiting = Counter(version.parent for version in versions)
        self._kept: dict[str, MemoryState] = {}

    def put(self, version: Version, state: MemoryState) -> None:
        """Keep the state of a version, if anything comes after it."""
        if self._waiting[version.version_id]:
            self._kept[version.version_id] = state

    def before(self, child: Version, parent: str | None) -> MemoryState:
        """The state that ``child`` was written after; ``parent`` is what stands in its parent's place now."""
        if child.parent is None or child.parent not in self._ours:  # nothing of another adapter's state was kept
            return self._memory.engine.new_state()
        self._waiting[child.parent] -= 1
        if child.parent in self._kept:
            last = not self._waiting[child.parent]
            return self._kept.pop(child.parent) if last else self._kept[child.parent]
        return self._memory.load(self._agent_id, parent)


def replay(memory: AgentMemory, agent_id: str, progress: Progress = _quiet) -> Iterator[Problem]:
    """Write the whole journal again, branches included, and compare every state with the checksums in the store.

    Versions of other adapters are passed over. States compare bit for bit: replay on the device and with the number
    format that they were written with.

    Raises:
        JournalNotKept: the store keeps hashes alone.
    """
    tree = memory.store.tree(agent_id)
    states = _States(memory, agent_id, tree, tree)
    records = _by_version(memory, agent_id)
    for done, version in enumerate(tree, 1):
        progress(done, len(tree))
        if version.fingerprint == memory.engine.fingerprint:
            try:
                before = states.before(version, version.parent)
                state = memory.apply(before, version, records.get(version.version_id, ()))
            except CorruptState as error:
                yield Problem(agent_id, version.version_id, f"it cannot be replayed: {error}")
                continue
            states.put(version, state)
            for name, data in memory.parts(state, version.parts).items():
                if checksum(data) != version.parts[name]:
                    yield Problem(agent_id, version.version_id, f"sub-state {name!r}: the journal gives another state")


def repair(memory: AgentMemory, agent_id: str, problems: Sequence[Problem]) -> list[str]:
    """Compute damaged states again from the journal; returns the versions that are whole again.

    Args:
        problems: of this agent, as :meth:`Store.verify` found them.

    Raises:
        JournalNotKept: the store keeps hashes alone.
        StateError: the journal does not give the states that were written.
    """
    damaged = {p.version_id for p in problems if p.agent_id == agent_id and p.version_id is not None}
    whole = [version for version in memory.store.tree(agent_id) if not version.pruned]
    for version in whole:  # nothing is dropped unless all of it can be brought back
        if version.version_id in damaged:
            memory.rebuild(agent_id, version.version_id, damaged)
    for identity in damaged:
        memory.store.drop_damaged(agent_id, identity)
    done = []
    for version in whole:
        if memory.store.version(agent_id, version.version_id).pruned:
            memory.bring_back(agent_id, version.version_id)
            done.append(version.version_id)
    return done


def forget(
    memory: AgentMemory, agent_id: str, where: Filter, progress: Progress = _quiet, *, scrub: bool = True
) -> Forgotten:
    """Forget journal entries: their rows and every state that held them go, the states are computed without them.

    What comes out is what a memory would be that never saw them. The new versions are written first, as branches; one
    transaction then puts them in the place of the old ones and erases those from the file. A crash before it changes
    nothing, and the next call goes on from there.

    Versions of another adapter lose their bytes as well; their states can be computed again with that adapter.
    ``scrub=False`` leaves the files for a later :meth:`Store.scrub`: for many calls one after the other.

    Raises:
        AgentNotFound, JournalNotKept.
        HeadConflict: others kept writing while the states were computed; call again.
    """
    if where == Filter():
        raise StoreError(
            f"which entries of agent {agent_id!r}? Give ids, a source, text or time; delete takes them all"
        )
    for _ in range(TRIES):
        records = memory.store.records(agent_id, where)
        if not records:
            return Forgotten(0, 0)
        ids = {record.entry_id for record in records}
        holding = {record.version_id for record in records}
        successors = _without(memory, agent_id, ids, holding, progress)
        try:
            memory.store.rewrite(agent_id, successors, ids, scrub=scrub)
        except HeadConflict:
            continue
        return Forgotten(len(ids), len(successors))
    raise HeadConflict(f"agent {agent_id!r}: others kept writing; stop them, or call again")


def _without(
    memory: AgentMemory, agent_id: str, ids: set[str], holding: set[str], progress: Progress
) -> dict[str, str | None]:
    """Write the versions that hold entries of ``ids``, and all after them, again without those."""
    affected: list[Version] = []
    seen = set(holding)
    tree = memory.store.tree(agent_id)
    for version in tree:
        if version.version_id in seen or version.parent in seen:
            seen.add(version.version_id)
            affected.append(version)
    records = _by_version(memory, agent_id)
    states = _States(memory, agent_id, affected, tree)
    new: dict[str, str | None] = {}
    for done, version in enumerate(affected, 1):
        parent = new.get(version.parent, version.parent) if version.parent is not None else None
        left = [record for record in records.get(version.version_id, ()) if record.entry_id not in ids]
        new[version.version_id] = _rewritten(memory, agent_id, version, parent, left, states)
        progress(done, len(affected))
    return new


def _rewritten(
    memory: AgentMemory,
    agent_id: str,
    version: Version,
    parent: str | None,
    left: Sequence[Record],
    states: _States,
) -> str | None:
    """The version in the place of ``version``, after ``parent`` and with the entries that are left."""
    ours = version.fingerprint == memory.engine.fingerprint
    parts: dict[str, bytes] = {}
    if ours:
        state, left = _applied(memory, states.before(version, parent), version.resets, list(left))
        states.put(version, state)
        parts = memory.parts(state, version.parts)
    else:  # what was measured may come from what is forgotten
        left = [replace(record, entry=replace(record.entry, gate=None, moved=None)) for record in left]
    if not left and not version.resets:
        return parent
    made = memory.store.commit(
        agent_id,
        parent=parent,
        parts=parts,
        entries=left,
        fingerprint=version.fingerprint,
        resets=version.resets,
        move_head=False,
        pruned=version.pruned or not ours,
    )
    return made.version_id


def migrate(memory: AgentMemory, agent_id: str, progress: Progress = _quiet) -> Migrated:
    """Write an agent's journal with this engine's adapter, and make the result its head.

    Every version is committed as it is made, so that a migration that was stopped goes on where it was. The old
    versions stay, retired: threads that stand on them follow the new head. :meth:`Store.collect` drops them.

    Raises:
        AgentNotFound, JournalNotKept.
        HeadConflict: others kept writing with the old adapter; stop them and call again.
    """
    store, count = memory.store, 0
    for _ in range(TRIES):
        head = store.agent(agent_id).head
        if head is None or store.version(agent_id, head).fingerprint == memory.engine.fingerprint:
            return Migrated(head, head, count)
        new, made = _written_again(memory, agent_id, head, progress)
        count += made
        try:
            store.move_head(agent_id, new, expected=head)
        except HeadConflict:
            continue
        return Migrated(head, new, count)
    raise HeadConflict(f"agent {agent_id!r}: others kept writing with the old adapter; stop them and call again")


def _written_again(memory: AgentMemory, agent_id: str, head: str, progress: Progress) -> tuple[str, int]:
    """Id of the last version of the new line, and how many versions were made for it now."""
    records = _by_version(memory, agent_id, head)
    way = list(reversed(memory.store.history(agent_id, head)))
    parent: str | None = None
    state: MemoryState | None = memory.engine.new_state()
    made = 0
    for done, version in enumerate(way, 1):
        entries = [_routed(memory, record) for record in records.get(version.version_id, ())]
        known = memory.engine.sub_states
        resets = known if set(version.parts) <= set(version.resets) else [n for n in version.resets if n in known]
        resets = resets if version.resets else ()
        if not entries and not resets and (parent is not None or version.version_id != head):
            progress(done, len(way))  # a reset of a sub-state that this adapter does not have
            continue
        written = [record.entry for record in entries]
        identity = version_id(agent_id, parent, written, memory.engine.fingerprint, resets, memory.store.tenant)
        last = version.version_id == head
        if memory.store.find(agent_id, identity) is None:
            state = state if state is not None else memory.load(agent_id, parent)
            state, entries = _applied(memory, state, resets, entries)
            memory.store.commit(
                agent_id,
                parent=parent,
                parts=memory.parts(state, known),
                entries=entries,
                fingerprint=memory.engine.fingerprint,
                resets=tuple(resets),
                move_head=False,
                pruned=version.pruned and not last,
            )
            made += 1
        else:
            state = None  # made by a migration that was stopped; loaded when the next one is not
        parent = identity
        progress(done, len(way))
    assert parent is not None
    return parent, made


def _applied(
    memory: AgentMemory, state: MemoryState, resets: Sequence[str], records: list[Record]
) -> tuple[MemoryState, list[Record]]:
    """The state after resets and records, and the records with what the engine says of their writing."""
    for name in resets:
        state = state.reset(name) if name in state.sub_states else state
    messages, routes = [from_entry(r.entry) for r in records], [r.entry.sub_states for r in records]
    state, traces = memory.engine.write_traced(state, messages, routes)
    return state, [replace(r, entry=traced(r.entry, trace)) for r, trace in zip(records, traces, strict=True)]


def _routed(memory: AgentMemory, record: Record) -> Record:
    """The record for this engine's sub-states: by name where it has them, else by role."""
    entry = record.entry
    known = tuple(name for name in entry.sub_states if name in memory.engine.sub_states)
    if known == entry.sub_states:
        return record
    return replace(
        record, entry=replace(entry, sub_states=known or memory.engine.route(from_entry(entry)), digest=None)
    )


def _by_version(memory: AgentMemory, agent_id: str, head: str | None = None) -> dict[str, list[Record]]:
    """The records of each version: of all, or of those on the way to ``head``."""
    store = memory.store
    found = store.records(agent_id, Filter()) if head is None else store.journal(agent_id, head)
    by_version: dict[str, list[Record]] = {}
    for record in found:
        by_version.setdefault(record.version_id, []).append(record)
    return by_version
