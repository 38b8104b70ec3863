"""Whole agents of a SQL store: fork, dump and restore (archive.py puts a dump into a file)."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from sqlalchemy import Connection, insert, select, update

from ..errors import AgentExists, StatePruned, StoreError
from .contract import Dumped
from .models import AgentRow, BlobRow, TombstoneRow
from .records import Agent, Version, version_id
from .rows import checked_name
from .writing import Writing


class Copying(Writing):
    """Reading, writing, and copies of whole agents."""

    def fork(self, agent_id: str, new_agent: str, version_id: str | None = None) -> Version:
        def write(c: Connection) -> Version:
            wanted = version_id or self._find_agent(c, self._known(c, agent_id)).head
            if wanted is None:
                raise StoreError(f"agent {agent_id!r} has no memory to fork: write to it first")
            way = self._history(c, agent_id, wanted)
            last = way[0]
            if last.pruned:
                raise StatePruned(
                    f"version {last.version_id} of agent {agent_id!r} was pruned: deltamem agents fork computes its "
                    "bytes again first"
                )
            if self.policy.journal == "full":  # replay brings the others back
                way = [last, *(replace(version, pruned=True) for version in way[1:])]
            fresh = [replace(version, pin=None, retired=False) for version in reversed(way)]
            ids = self._restore(c, new_agent, self._dumped(c, agent_id, fresh, set()), last.version_id, ())
            return self._read(c, new_agent, self._agent_pk(c, new_agent), ids[last.version_id])

        checked_name(new_agent, "agent")
        return self._run(write, write=True)

    def dump(self, agent_id: str) -> Iterator[Dumped]:
        seen: set[str] = set()
        for known in self.tree(agent_id):

            def read(c: Connection, known: Version = known) -> Dumped:
                version = self._read(c, agent_id, self._agent_pk(c, agent_id), known.version_id)
                return next(self._dumped(c, agent_id, [version], set(seen)))

            version, records, blobs = self._run(read)
            seen.update(version.parts[name] for name in blobs)
            yield version, records, blobs

    def restore(
        self, agent_id: str, versions: Iterable[Dumped], head: str | None, *, tombstones: Collection[str] = ()
    ) -> Agent:
        checked_name(agent_id, "agent")

        def write(c: Connection) -> Agent:
            self._restore(c, agent_id, versions, head, tombstones)
            return self._agents(c, AgentRow.pk == self._agent_pk(c, agent_id))[0]

        return self._run(write, write=True)

    def _known(self, c: Connection, agent_id: str) -> str:
        self._agent_pk(c, agent_id)
        return agent_id

    def _dumped(self, c: Connection, agent_id: str, versions: Sequence[Version], seen: set[str]) -> Iterator[Dumped]:
        """Records and bytes of some versions; bytes whose checksum is in ``seen`` are left out, the others added."""
        pk = self._agent_pk(c, agent_id)
        for version in versions:
            records = self._own_records(c, pk, version.version_id)
            blobs = {}
            for name, sha in version.parts.items():
                if not version.pruned and sha not in seen:
                    key = BlobRow.agent_pk == pk, BlobRow.checksum == sha
                    where = f"agent {agent_id!r}, version {version.version_id}, sub-state {name!r}"
                    blobs[name] = self.sealed.open_part(c.scalar(select(BlobRow.data).where(*key)), sha, where)
                    seen.add(sha)
            yield version, records, blobs

    def _restore(
        self,
        c: Connection,
        agent_id: str,
        versions: Iterable[Dumped],
        head: str | None,
        tombstones: Collection[str],
    ) -> dict[str, str]:
        """Insert an agent; returns the new id of each version by its id in ``versions``."""
        if self._find_agent(c, agent_id) is not None:
            raise AgentExists(f"agent {agent_id!r} is in {self._place} already: choose another name, or delete it")
        agent_pk = self._locked(c, agent_id).pk
        ids: dict[str, str] = {}
        for version, records, blobs in versions:
            if version.parent is not None and version.parent not in ids:
                raise StoreError(f"version {version.version_id} comes before its parent {version.parent}: export again")
            parent = None if version.parent is None else ids[version.parent]
            entries = [record.entry for record in records]
            identity = version_id(agent_id, parent, entries, version.fingerprint, version.resets, self.tenant)
            ids[version.version_id] = identity
            base = None if parent is None else self._bases(c, agent_pk, parent)[parent]
            line, depth = self._next_place(c, agent_pk, base)
            made = replace(version, version_id=identity, agent_id=agent_id, parent=parent, depth=depth)
            self._insert(c, agent_pk, made, line, records, blobs)
        if head is not None and head not in ids:
            raise StoreError(f"the head {head} of agent {agent_id!r} is not among its versions: export again")
        c.execute(update(AgentRow).where(AgentRow.pk == agent_pk).values(head=None if head is None else ids[head]))
        gone = [{"agent_pk": agent_pk, "message_id": message} for message in tombstones]
        if gone:
            c.execute(insert(TombstoneRow), gone)
        return ids
