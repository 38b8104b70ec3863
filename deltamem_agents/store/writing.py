"""Writing to a SQL store: commits, heads, pins."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.orm import aliased

from ..errors import FingerprintMismatch, HeadConflict, StatePruned, StoreError, VersionNotFound
from .lines import beyond, mark_retired, way_to
from .models import AgentRow, LineRow, PartRow, VersionRow
from .reading import Reading
from .records import MOST_LABEL, Entry, Record, Version, Write, checksum, version_id
from .rows import VERSION, aware, checked_name, checked_text, entry_id, now

# Statements of every commit, made once: SQLAlchemy takes longer to put one together than SQLite to run it.
_ENDS = aliased(VersionRow)
BASES = (
    select(
        *VERSION,
        select(func.max(_ENDS.depth)).where(_ENDS.line == VersionRow.line).scalar_subquery().label("end"),
        PartRow.name,
        PartRow.checksum,
    )
    .join(PartRow, PartRow.version_pk == VersionRow.pk, isouter=True)
    .where(VersionRow.agent_pk == bindparam("agent"))
    .where((VersionRow.version_id == bindparam("one")) | (VersionRow.version_id == bindparam("other")))
)
SET_HEAD = update(AgentRow).where(AgentRow.pk == bindparam("agent")).values(head=bindparam("new"))
NEW_VERSION = insert(VersionRow).returning(VersionRow.pk)


class Base(NamedTuple):
    """A version that another may come after: its row, with ``end``, the depth of its line, and its parts' checksums."""

    row: Any
    parts: dict[str, str]


class Writing(Reading):
    """Reading, and the writing half of :class:`SQLStore`."""

    def commit(
        self,
        agent_id: str,
        *,
        parent: str | None,
        parts: Mapping[str, bytes],
        entries: Sequence[Entry | Record],
        fingerprint: str,
        resets: Sequence[str] = (),
        move_head: bool = True,
        pruned: bool = False,
    ) -> Version:
        checked_name(agent_id, "agent")

        def write(c: Connection) -> Version:
            agent = self._locked(c, agent_id)
            known = parent is None or parent == agent.head
            after = parent if known else self._resolve(c, agent.pk, agent_id, str(parent))
            written = [item.entry if isinstance(item, Record) else item for item in entries]
            identity = version_id(agent_id, after, written, fingerprint, resets, self.tenant)
            found = self._bases(c, agent.pk, identity, after)
            if identity in found and (not move_head or agent.head != after):
                return self._read(c, agent_id, agent.pk, identity)  # written before; the head has moved on, or stays
            if move_head and agent.head != after:
                raise HeadConflict(
                    f"agent {agent_id!r}: the head is {agent.head}, not {after}: another writer was first; read the "
                    "new head and write again"
                )
            if move_head:
                c.execute(SET_HEAD, {"agent": agent.pk, "new": identity})
            if identity in found:
                return self._read(c, agent_id, agent.pk, identity)
            if after is not None and after not in found:
                raise VersionNotFound(f"agent {agent_id!r} has no memory version {after!r} in {self._place}")
            base = None if after is None else found[after]
            kept = _inherited(agent_id, base, {*parts, *resets}, fingerprint, pruned)
            checksums = kept | {name: checksum(data) for name, data in parts.items()}
            line, depth = self._next_place(c, agent.pk, base)
            made = Version(
                identity, agent_id, after, fingerprint, aware(now()), checksums, tuple(resets), depth, pruned=pruned
            )
            records = [
                item if isinstance(item, Record) else Record(entry_id(identity, i), identity, made.created_at, item)
                for i, item in enumerate(entries)
            ]
            self._insert(c, agent.pk, made, line, records, {} if pruned else parts)
            return made

        return self._run(write, write=True)

    def append(
        self, agent_id: str, write: Callable[[str | None], Write], *, fingerprint: str, patience: float = 300.0
    ) -> Version:
        until = time.monotonic() + patience
        pause = 0.005
        while True:
            head = self.head(agent_id)
            added = write(head)
            try:
                return self.commit(
                    agent_id,
                    parent=head,
                    parts=added.parts,
                    entries=added.entries,
                    fingerprint=fingerprint,
                    resets=added.resets,
                )
            except HeadConflict:
                if time.monotonic() > until:
                    raise
            time.sleep(pause * random.random())
            pause = min(2 * pause, 0.5)

    def move_head(self, agent_id: str, version_id: str, *, expected: str | None) -> None:
        def write(c: Connection) -> None:
            pk = self._agent_pk(c, agent_id)
            agent = self._find_agent(c, agent_id, lock=True)
            row = self._row(c, agent_id, version_id, pk)
            if agent.head == row.version_id:
                return
            if agent.head != expected:
                raise HeadConflict(f"agent {agent_id!r}: the head is {agent.head}, not {expected}: look again")
            new = way_to(c, row.line, row.depth)
            if agent.head is not None:
                with suppress(VersionNotFound):  # of a damaged head
                    old = self._row(c, agent_id, agent.head, pk)
                    mark_retired(c, beyond(way_to(c, old.line, old.depth), new), True)
            mark_retired(c, new, False)
            c.execute(update(AgentRow).where(AgentRow.pk == pk).values(head=row.version_id))

        self._run(write, write=True)

    def pin(self, agent_id: str, version_id: str, label: str | None) -> None:
        if label is not None and not 0 < len(checked_text(label, "label")) <= MOST_LABEL:
            raise StoreError(f"the label of a pin has 1 to {MOST_LABEL} characters, {label[:40]!r} has {len(label)}")

        def write(c: Connection) -> None:
            row = self._row(c, agent_id, version_id)
            c.execute(update(VersionRow).where(VersionRow.pk == row.pk).values(pin=label))

        self._run(write, write=True)

    # What the methods share

    def _locked(self, c: Connection, agent_id: str) -> Any:
        """The agent's row, made if need be, locked until the transaction ends."""
        agent = self._find_agent(c, agent_id, lock=True)
        if agent is None:
            row = {"tenant": self.tenant, "name": agent_id, "head": None, "created_at": now()}
            c.execute(self.backend.insert_missing(AgentRow), [row])
            agent = self._find_agent(c, agent_id, lock=True)
        return agent

    def _read(self, c: Connection, agent_id: str, agent_pk: int, identity: str) -> Version:
        return self._versions(c, agent_id, [self._row(c, agent_id, identity, agent_pk)])[0]

    def _bases(self, c: Connection, agent_pk: int, one: str, other: str | None = None) -> dict[str, Base]:
        """Those of two versions that are there, in one query."""
        found: dict[str, Base] = {}
        for row in c.execute(BASES, {"agent": agent_pk, "one": one, "other": other or one}):
            base = found.setdefault(row.version_id, Base(row, {}))
            if row.name is not None:
                base.parts[row.name] = row.checksum
        return found

    def _next_place(self, c: Connection, agent_pk: int, base: Base | None) -> tuple[int, int]:
        """(line, depth) of a version after another: the end of its line, or the beginning of a new one."""
        if base is None:
            return self._new_line(c, agent_pk, None, None), 0
        row = base.row
        line = row.line if row.end == row.depth else self._new_line(c, agent_pk, row.line, row.depth)
        return line, row.depth + 1

    def _new_line(self, c: Connection, agent_pk: int, line: int | None, depth: int | None) -> int:
        made = insert(LineRow).values(agent_pk=agent_pk, parent_line=line, parent_depth=depth).returning(LineRow.pk)
        return int(c.execute(made).scalar_one())

    def _insert(
        self,
        c: Connection,
        agent_pk: int,
        version: Version,
        line: int,
        records: Sequence[Record],
        blobs: Mapping[str, bytes],
    ) -> None:
        """All rows of one version; ``blobs``: the bytes that may be new."""
        row = {
            "agent_pk": agent_pk,
            "version_id": version.version_id,
            "parent": version.parent,
            "fingerprint": version.fingerprint,
            "resets": list(version.resets),
            "line": line,
            "depth": version.depth,
            "pin": version.pin,
            "pruned": version.pruned,
            "retired": version.retired,
            "created_at": version.created_at.astimezone(UTC).replace(tzinfo=None),
        }
        pk = c.execute(NEW_VERSION, [row]).scalar_one()
        self.sealed.put_parts(c, agent_pk, pk, version.parts, blobs.values())
        self.sealed.put_entries(c, agent_pk, pk, records)


def _inherited(agent_id: str, base: Base | None, replaced: set[str], fingerprint: str, pruned: bool) -> dict[str, str]:
    """Checksums of the parent's parts that the new version keeps."""
    if base is None:
        return {}
    row = base.row
    kept = {name: sha for name, sha in base.parts.items() if name not in replaced}
    if kept and row.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"version {row.version_id} of agent {agent_id!r} was made by {row.fingerprint}, the new one by "
            f"{fingerprint}: its sub-states {sorted(kept)} cannot be kept beside it"
        )
    if kept and row.pruned and not pruned:
        raise StatePruned(
            f"version {row.version_id} of agent {agent_id!r} was pruned: give the bytes of its sub-states "
            f"{sorted(kept)} with what is written after it"
        )
    return kept
