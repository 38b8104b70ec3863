"""Reading a SQL store: agents, versions, bytes, the journal."""

import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from ..errors import AgentNotFound, CorruptStore, JournalNotKept, StatePruned, StoreError, VersionNotFound
from . import once
from .backend import Backend
from .cipher import Cipher
from .contract import Store
from .lines import Way, beyond, holds, newest, on_way, way_to
from .models import AgentRow, EntryRow, PartRow, RedirectRow, TombstoneRow, VersionRow
from .ranking import rank, terms
from .records import EVERYTHING, Agent, Filter, Hit, Policy, Record, Snapshot, Version
from .rows import (
    HEAD_STATE,
    STATE,
    VERSION,
    Sealed,
    agent_row,
    aware,
    checked_name,
    chunks,
    listed,
    stored_time,
    to_version,
)

RETRY_SECONDS = 30.0  # a transaction is tried again so long while the database is away
T = TypeVar("T")


class Reading(Store):
    """The reading half of :class:`SQLStore`."""

    def __init__(self, backend: Backend, cipher: Cipher, policy: Policy, tenant: str) -> None:
        self.backend = backend
        self.location = backend.location
        self.tenant = checked_name(tenant, "tenant")
        self.policy = policy
        self.sealed = Sealed(backend, cipher, policy)

    def _run(self, work: Callable[[Connection], T], write: bool = False) -> T:
        """``work`` in one transaction, again while the database is away; errors of the database become StoreErrors."""
        until = time.monotonic() + RETRY_SECONDS
        pause = 0.01
        while True:
            try:
                with self.backend.transaction(write) as connection:
                    return work(connection)
            except SQLAlchemyError as error:
                if not self.backend.transient(error) or time.monotonic() + pause > until:
                    raise self.backend.translate(error) from error
            except StoreError:
                raise
            except ValueError as error:  # JSON or a time in a row that is damaged
                raise CorruptStore(
                    f"store {self.location}: a row cannot be read ({error}). Restore a backup, or see what is left: "
                    "deltamem store verify"
                ) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 1.0)

    # Agents

    def agents(self) -> list[Agent]:
        return self._run(lambda c: self._agents(c, AgentRow.tenant == self.tenant))

    def agent(self, agent_id: str) -> Agent:
        def read(c: Connection) -> Agent:
            return self._agents(c, AgentRow.pk == self._agent_pk(c, agent_id))[0]

        return self._run(read)

    def _agents(self, c: Connection, which: Any) -> list[Agent]:
        def count(table: Any) -> dict[int, int]:
            owned = select(table.agent_pk, func.count()).join(AgentRow, AgentRow.pk == table.agent_pk)
            return dict(c.execute(owned.where(which).group_by(table.agent_pk)).all())  # type: ignore[arg-type]

        versions, entries = count(VersionRow), count(EntryRow)
        found = sorted(c.execute(select(AgentRow).where(which)).all(), key=lambda row: row.name)
        return [
            Agent(row.name, row.head, aware(row.created_at), versions.get(row.pk, 0), entries.get(row.pk, 0))
            for row in found
        ]

    def head(self, agent_id: str) -> str | None:
        row = self._run(lambda c: self._find_agent(c, agent_id))
        return None if row is None else row.head

    def tombstones(self, agent_id: str, among: Collection[str] | None = None) -> set[str]:
        def read(c: Connection) -> set[str]:
            own = select(TombstoneRow.message_id).where(TombstoneRow.agent_pk == self._agent_pk(c, agent_id))
            if among is None:
                return set(c.scalars(own))
            return {m for ids in chunks(list(among)) for m in c.scalars(own.where(TombstoneRow.message_id.in_(ids)))}

        return self._run(read)

    # Versions

    def resolve(self, agent_id: str, version_id: str) -> str | None:
        return self._run(lambda c: self._resolve(c, self._agent_pk_or_none(c, agent_id), agent_id, version_id))

    def find(self, agent_id: str, version_id: str) -> Version | None:
        with suppress(VersionNotFound):
            return self.version(agent_id, version_id)
        return None

    def version(self, agent_id: str, version_id: str) -> Version:
        def read(c: Connection) -> Version:
            return self._versions(c, agent_id, [self._row(c, agent_id, version_id)])[0]

        return self._run(read)

    def load(self, agent_id: str, version_id: str | None = None) -> Snapshot:
        return self._run(lambda c: self._load(c, agent_id, version_id))

    def _load(self, c: Connection, agent_id: str, version_id: str | None) -> Snapshot:
        """One query for the usual case."""
        owner = {"tenant": self.tenant, "name": agent_id}
        if version_id is None:
            rows = c.execute(HEAD_STATE, owner).all()
        else:
            rows = c.execute(STATE, {**owner, "version": version_id}).all()
        if not rows:
            if version_id is None:
                if (agent := self._find_agent(c, agent_id)) is not None and agent.head is not None:
                    raise self._headless(agent)
                return Snapshot(None, {})
            now = self._resolve(c, self._agent_pk_or_none(c, agent_id), agent_id, version_id)
            return Snapshot(None, {}) if now is None else self._load(c, agent_id, now)
        parts = {row.name: row.checksum for row in rows if row.name is not None}
        version = to_version(agent_id, rows[0], parts)
        if version.pruned:
            raise StatePruned(
                f"agent {agent_id!r}, version {version.version_id}: its bytes were dropped; a chat model of its "
                "adapter computes them again from the journal"
            )
        where = f"agent {agent_id!r}, version {version.version_id}, sub-state "
        opened = {
            row.name: self.sealed.open_part(row.data, row.checksum, f"{where}{row.name!r}")
            for row in rows
            if row.name is not None
        }
        return Snapshot(version, opened)

    def history(
        self, agent_id: str, version_id: str | None = None, *, after: str | None = None, limit: int | None = None
    ) -> list[Version]:
        return self._run(lambda c: self._history(c, agent_id, version_id, after, limit))

    def _history(
        self, c: Connection, agent_id: str, version_id: str | None, after: str | None = None, limit: int | None = None
    ) -> list[Version]:
        way = newest(self._way(c, agent_id, version_id, after), limit)
        table, there = on_way(way)
        query = select(*VERSION).join(table, there).order_by(VersionRow.depth.desc()).limit(limit)
        rows = c.execute(query).all()
        self._need_all(agent_id, way, len(rows))
        return self._versions(c, agent_id, rows)

    def tree(self, agent_id: str) -> list[Version]:
        return self._run(lambda c: self._tree(c, agent_id))

    def _tree(self, c: Connection, agent_id: str) -> list[Version]:
        pk = self._agent_pk(c, agent_id)
        query = select(*VERSION).where(VersionRow.agent_pk == pk).order_by(VersionRow.depth, VersionRow.pk)
        return self._versions(c, agent_id, c.execute(query).all())

    def is_ancestor(self, agent_id: str, old: str, new: str) -> bool:
        def read(c: Connection) -> bool:
            row = self._row(c, agent_id, old)
            return holds(self._way(c, agent_id, new, None), row.line, row.depth)

        return self._run(read)

    # The journal

    def journal(
        self, agent_id: str, version_id: str | None = None, *, after: str | None = None, limit: int | None = None
    ) -> list[Record]:
        def read(c: Connection) -> list[Record]:
            way = self._way(c, agent_id, version_id, after)
            query = self._filtered(EVERYTHING).order_by(VersionRow.depth.desc(), EntryRow.position.desc()).limit(limit)
            count = limit  # of versions that are looked at: most have an entry or more
            while True:
                some = newest(way, count)
                table, there = on_way(some)
                self._need_all(agent_id, some, c.scalar(select(func.count(VersionRow.pk)).join(table, there)))
                rows = c.execute(query.join(table, there)).all()
                if count is None or limit is None or len(rows) >= limit or some == way:
                    return [self.sealed.to_record(row) for row in reversed(rows)]
                count *= 8

        return self._run(read)

    def records(self, agent_id: str, where: Filter) -> list[Record]:
        def read(c: Connection) -> list[Record]:
            query = self._filtered(where).where(EntryRow.agent_pk == self._agent_pk(c, agent_id))
            rows = c.execute(query.order_by(VersionRow.depth, EntryRow.pk)).all()
            return self._fitting(rows, where)

        return self._run(read)

    def _own_records(self, c: Connection, agent_pk: int, version_id: str) -> list[Record]:
        """What one version wrote, in its order."""
        own = VersionRow.agent_pk == agent_pk, VersionRow.version_id == version_id
        rows = c.execute(self._filtered(EVERYTHING).where(*own).order_by(EntryRow.position))
        return [self.sealed.to_record(row) for row in rows]

    def _filtered(self, where: Filter) -> Any:
        """Entries joined with their versions, by what SQL can tell; the rest does :meth:`_fitting`."""
        query = select(EntryRow, VersionRow.version_id).join(VersionRow, VersionRow.pk == EntryRow.version_pk)
        if where.ids is not None:
            ids = list(where.ids)
            query = query.where(EntryRow.entry_id.in_(ids) | EntryRow.message_id.in_(ids))
        if where.hashes is not None:
            query = query.where(EntryRow.content_hash.in_(list(where.hashes)))
        if where.source is not None:
            query = query.where(EntryRow.source == where.source)
        if where.thread_id is not None:
            query = query.where(EntryRow.thread_id == where.thread_id)
        if where.since is not None:
            query = query.where(EntryRow.made_at >= stored_time(where.since))
        if where.until is not None:
            query = query.where(EntryRow.made_at < stored_time(where.until))
        return query

    def _fitting(self, rows: Iterable[Any], where: Filter) -> list[Record]:
        if where.text is not None:
            self._need_text("look for text in")
        kept = [row for row in rows if where.sub_state is None or where.sub_state in listed(row.sub_states)]
        records = [self.sealed.to_record(row) for row in kept]
        if where.text is None:
            return records
        text = where.text.casefold()
        return [record for record in records if text in (record.entry.content or "").casefold()]

    def search(
        self, agent_id: str, query: str, *, k: int = 10, where: Filter = EVERYTHING, version_id: str | None = None
    ) -> list[Hit]:
        self._need_text("search")
        words = terms(query)

        def read(c: Connection) -> list[Hit]:
            agent = self._find_agent(c, agent_id)
            if agent is None or not words or k < 1 or (version_id is None and agent.head is None):
                return []
            way = self._way(c, agent_id, version_id, None)
            found = self._candidates(c, agent.pk, way, words, where, k)
            order = rank(words, ((i, record.entry.content or "") for i, record in enumerate(found)))
            return [Hit(found[i], score) for i, score in order[:k]]

        return self._run(read)

    def _candidates(
        self, c: Connection, agent_pk: int, way: Way, words: Sequence[str], where: Filter, k: int
    ) -> list[Record]:
        """Records that may be among the best ``k``: all of an encrypted journal, else what the index offers."""
        table, there = on_way(way)
        query = self._filtered(where).join(table, there).order_by(EntryRow.pk)
        if not self.sealed.indexed:
            return self._fitting(c.execute(query).all(), where)
        limit = max(200, 20 * k)
        while True:
            keys = self.backend.index_match(c, agent_pk, words, limit)
            rows = [row for some in chunks(keys) for row in c.execute(query.where(EntryRow.pk.in_(some)))]
            found = self._fitting(rows, where)
            if len(found) >= k or len(keys) < limit:
                return sorted(found, key=lambda record: record.made_at)
            limit *= 8

    def written(self, agent_id: str, version_id: str, message_ids: Collection[str]) -> set[tuple[str, str]]:
        def read(c: Connection) -> set[tuple[str, str]]:
            way = self._way(c, agent_id, version_id, None)
            return once.written(c, way, self._agent_pk(c, agent_id), message_ids)

        return self._run(read)

    def last_written(self, agent_id: str, version_id: str, messages: Collection[tuple[str | None, str]]) -> str | None:
        return self._run(lambda c: once.last_written(c, self._way(c, agent_id, version_id, None), messages))

    def wrote_between(self, agent_id: str, thread_id: str, old: str | None, new: str) -> bool:
        def read(c: Connection) -> bool:
            way = self._way(c, agent_id, new, None)
            if old is not None:
                way = beyond(way, self._way(c, agent_id, old, None))
            return once.wrote(c, way, thread_id)

        return self._run(read)

    # What the methods share

    def _find_agent(self, c: Connection, agent_id: str, lock: bool = False) -> Any:
        return agent_row(c, self.tenant, agent_id, lock)

    def _agent_pk_or_none(self, c: Connection, agent_id: str) -> int | None:
        row = self._find_agent(c, agent_id)
        return None if row is None else row.pk

    def _agent_pk(self, c: Connection, agent_id: str) -> int:
        pk = self._agent_pk_or_none(c, agent_id)
        if pk is None:
            raise AgentNotFound(f"no agent {agent_id!r} in {self._place}: check the spelling and the store")
        return pk

    @property
    def _place(self) -> str:
        return f"store {self.location}" + (f", tenant {self.tenant!r}" if self.tenant != "default" else "")

    def _resolve(self, c: Connection, agent_pk: int | None, agent_id: str, version_id: str) -> str | None:
        """The id of the version that stands there now; see :meth:`Store.resolve`."""
        if agent_pk is not None:
            own = VersionRow.agent_pk == agent_pk, VersionRow.version_id == version_id
            if c.execute(select(VersionRow.pk).where(*own)).first() is not None:
                return version_id
            key = RedirectRow.agent_pk == agent_pk, RedirectRow.version_id == version_id
            if (row := c.execute(select(RedirectRow.target).where(*key)).first()) is not None:
                return row.target
        raise VersionNotFound(f"agent {agent_id!r} has no memory version {version_id!r} in {self._place}")

    def _row(self, c: Connection, agent_id: str, version_id: str, agent_pk: int | None = None) -> Any:
        """The row of a version (see rows.VERSION). Raises VersionNotFound."""
        pk = agent_pk if agent_pk is not None else self._agent_pk_or_none(c, agent_id)
        query = select(*VERSION).where(VersionRow.agent_pk == pk)
        row = c.execute(query.where(VersionRow.version_id == version_id)).one_or_none()
        if row is None:
            now = self._resolve(c, pk, agent_id, version_id)
            if now is None:
                raise VersionNotFound(f"version {version_id!r} of agent {agent_id!r} held forgotten entries alone")
            row = c.execute(query.where(VersionRow.version_id == now)).one()
        return row

    def _way(self, c: Connection, agent_id: str, version_id: str | None, after: str | None) -> Way:
        """The way to a version (None: the head), without the way to ``after``."""
        agent_pk = self._agent_pk(c, agent_id) if version_id is None else self._agent_pk_or_none(c, agent_id)
        if version_id is None:
            agent = self._find_agent(c, agent_id)
            if agent.head is None:
                return []
            try:
                row = self._row(c, agent_id, agent.head, agent_pk)
            except VersionNotFound as error:
                raise self._headless(agent) from error
        else:
            row = self._row(c, agent_id, version_id, agent_pk)
        way = way_to(c, row.line, row.depth)
        if after is None:
            return way
        old = self._row(c, agent_id, after, agent_pk)
        if not holds(way, old.line, old.depth):
            raise VersionNotFound(f"version {after!r} of agent {agent_id!r} is not on the way to {version_id!r}")
        return beyond(way, way_to(c, old.line, old.depth))

    def _need_all(self, agent_id: str, way: Way, found: int | None) -> None:
        """Raise unless so many versions are on a way as there must be: in a damaged file, some may not be found."""
        if found != (wanted := sum(stretch.high - stretch.low for stretch in way)):
            raise CorruptStore(
                f"agent {agent_id!r}: {found} of {wanted} versions are found in {self._place}, which is damaged. "
                "Restore a backup; deltamem store verify tells more"
            )

    def _headless(self, agent: Any) -> CorruptStore:
        return CorruptStore(
            f"agent {agent.name!r}: its head {agent.head} is not in {self._place}, which is damaged. Restore a backup, "
            "or go back to a version that is there: deltamem agents rollback"
        )

    def _versions(self, c: Connection, agent_id: str, rows: Sequence[Any]) -> list[Version]:
        parts: dict[int, dict[str, str]] = {row.pk: {} for row in rows}
        for keys in chunks(list(parts)):
            query = select(PartRow).where(PartRow.version_pk.in_(keys)).order_by(PartRow.name)
            for part in c.execute(query):
                parts[part.version_pk][part.name] = part.checksum
        return [to_version(agent_id, row, parts[row.pk]) for row in rows]

    def _need_text(self, what: str) -> None:
        if self.policy.journal != "full":
            raise JournalNotKept(
                f"{self._place} keeps hashes of messages alone, so there is no text to {what} it: make a store with "
                'journal="full" for that'
            )
