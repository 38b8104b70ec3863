"""What an agent remembers: states taken from the store, messages written into them, versions put back, exactly once."""

from collections.abc import Callable, Sequence
from threading import Lock, RLock
from typing import Any, Final

from langchain_core.messages import BaseMessage

from ..config import default_store
from ..engine import Engine
from ..errors import FingerprintMismatch, HeadConflict, StateError, VersionNotFound
from ..memory import MemoryState
from ..store import Entry, Store, Version, open_store, version_id
from .messages import from_entry, to_entries

TRIES = 10


class Head:
    """The type of :data:`HEAD`."""

    def __repr__(self) -> str:
        return "HEAD"


HEAD: Final = Head()  # "the head of the agent, whatever it is when the write is committed"

_stores: dict[str, Store] = {}
_lock = Lock()
_writers = [RLock() for _ in range(64)]  # an agent has one of them: its writers in this process wait for each other


def shared_store(location: str | None) -> Store:
    """The store at a path or URL (None: the default), opened once for each process."""
    location = location or default_store()
    with _lock:
        if location not in _stores:
            _stores[location] = open_store(location)
        return _stores[location]


class AgentMemory:
    """The memories in one store, as one engine reads and writes them."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine, self.store = engine, store

    def load(self, agent_id: str, version: str | None) -> MemoryState:
        """The state at ``version``; None: empty.

        Raises:
            VersionNotFound: no such version, or it belongs to another agent.
            FingerprintMismatch: it was made by another adapter or backbone.
        """
        state = self.engine.new_state()
        if version is None:
            return state
        self._check(self.store.version(version), agent_id)
        for name, data in self.store.load(version).items():
            state = state.replace(name, MemoryState.from_bytes(data))
        return state

    def remember(
        self,
        messages: Sequence[BaseMessage],
        agent_id: str,
        parent: str | Head | None = HEAD,
        move_head: bool = True,
        routes: Sequence[Sequence[str]] | None = None,
    ) -> str:
        """Write messages after ``parent`` and commit; see :meth:`DeltaMemChatModel.remember`."""
        entries = to_entries(messages, self.engine, routes)
        if not isinstance(parent, Head):
            return self._commit(agent_id, parent, entries, move_head)
        return self._on_head(agent_id, lambda head: self._commit(agent_id, head, entries, move_head))

    def forget(self, agent_id: str, sub_state: str | None) -> str:
        """A new head with ``sub_state`` (None: everything) empty; see :meth:`DeltaMemChatModel.forget`."""
        if sub_state is not None and sub_state not in self.engine.sub_states:
            raise StateError(f"no sub-state {sub_state!r}; this memory has {sorted(self.engine.sub_states)}")

        def reset(head: str | None) -> str:
            version = self.store.version(head) if head is not None else None
            if sub_state is None:  # works for the memory of another adapter, too: nothing of it is kept
                names = sorted({*self.engine.sub_states, *(version.parts if version is not None else ())})
            else:
                names = [sub_state]
                if version is not None:
                    self._check(version, agent_id)
            return self._put(agent_id, head, {}, [], resets=tuple(names)).version_id

        return self._on_head(agent_id, reset)

    def _on_head(self, agent_id: str, write: Callable[[str | None], str]) -> str:
        """Call ``write`` with the agent's head, again when another process moved it meanwhile."""
        with _writers[hash(agent_id) % len(_writers)]:
            for _ in range(TRIES - 1):
                try:
                    return write(self.store.head(agent_id))
                except HeadConflict:
                    continue
            return write(self.store.head(agent_id))

    def _commit(self, agent_id: str, parent: str | None, entries: list[Entry], move_head: bool) -> str:
        if not entries and parent is not None:
            return parent
        identity = version_id(agent_id, parent, entries, self.engine.fingerprint)
        routes = [entry.sub_states for entry in entries]
        changed = [name for name in self.engine.sub_states if any(name in route for route in routes)]
        if self.store.find(identity) is not None:
            if not move_head or self.store.head(agent_id) != parent:
                return identity
            found = self.store.load(identity)  # written before, but the head did not move
            parts = {name: found[name] for name in changed}
        else:
            state = self.load(agent_id, parent)
            written = self.engine.write(state, [from_entry(entry) for entry in entries], routes)
            parts = {name: written.select(name).to_bytes() for name in changed}
        return self._put(agent_id, parent, parts, entries, move_head=move_head).version_id

    def _put(
        self, agent_id: str, parent: str | None, parts: dict[str, bytes], entries: list[Entry], **options: Any
    ) -> Version:
        return self.store.commit(
            agent_id, parent=parent, parts=parts, entries=entries, fingerprint=self.engine.fingerprint, **options
        )

    def _check(self, version: Version, agent_id: str) -> None:
        if version.agent_id != agent_id:
            raise VersionNotFound(f"agent {agent_id!r} has no memory version {version.version_id!r}")
        if version.fingerprint != self.engine.fingerprint:
            raise FingerprintMismatch(
                f"memory version {version.version_id} of agent {agent_id!r} was made by adapter/backbone "
                f"{version.fingerprint}, this model is {self.engine.fingerprint}: load the adapter that made it, or "
                "write its journal again under another agent id"
            )
