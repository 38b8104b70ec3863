"""The store in a SQLite file, through SQLAlchemy: one transaction a commit, write-ahead log, many processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from ..errors import (
    AgentNotFound,
    CorruptState,
    FingerprintMismatch,
    HeadConflict,
    StoreError,
    VersionNotFound,
)
from .contract import Agent, Entry, Store, Version, checksum, version_id
from .models import SCHEMA_VERSION, AgentRow, Base, BlobRow, EntryRow, MetaRow, PartRow, VersionRow

BUSY_SECONDS = 30  # a writer waits so long for another one
WRITE = "BEGIN IMMEDIATE"


def open_store(target: str | Path) -> Store:
    """Open (or make) a store.

    Args:
        target: a path, whose folders are made, or a URL such as "sqlite:///memory.db" or "sqlite://" (in memory).

    Raises:
        StoreError: the file is no store or cannot be written, or a newer version of this library made it.
    """
    text = str(target)
    url = make_url(text) if "://" in text else make_url("sqlite://").set(database=str(Path(text).expanduser()))
    if url.get_backend_name() != "sqlite":
        raise StoreError(f"store {text!r}: only SQLite is supported; give a path or a sqlite:/// URL")
    return SQLiteStore(url.database)


class SQLiteStore(Store):
    """See :class:`Store`. ``path`` None or ":memory:" keeps everything in this process's memory."""

    def __init__(self, path: str | None) -> None:
        self.path = None if path in (None, "", ":memory:") else path
        self._engine = self._connect()
        self._writing = self._engine.execution_options(deltamem_begin=WRITE)
        with self._session(write=True) as session:
            Base.metadata.create_all(session.connection())
            found = session.get(MetaRow, "schema_version")
            if found is None:
                session.add(MetaRow(key="schema_version", value=str(SCHEMA_VERSION)))
            elif int(found.value) > SCHEMA_VERSION:
                raise StoreError(
                    f"store {self.path} has schema {found.value}, this library knows {SCHEMA_VERSION}: "
                    "upgrade the library"
                )

    def _connect(self) -> Engine:
        if self.path is None:
            options: dict[str, Any] = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
            engine = create_engine("sqlite://", **options)
        else:
            try:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(
                    f"store {self.path}: its folder cannot be made ({error}): choose another path"
                ) from error
            engine = create_engine(f"sqlite:///{self.path}", connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine

    @contextmanager
    def _session(self, write: bool = False) -> Iterator[Session]:
        """One transaction; errors of the database become StoreError."""
        try:
            with Session(self._writing if write else self._engine) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise StoreError(
                f"store {self.path or 'in memory'}: {cause}. Check that it is a store of this library, that its "
                "folder can be written and that the disk is not full"
            ) from error

    def agents(self) -> list[Agent]:
        with self._session() as session:
            return [_agent(session, row) for row in session.scalars(select(AgentRow).order_by(AgentRow.agent_id))]

    def agent(self, agent_id: str) -> Agent:
        with self._session() as session:
            return _agent(session, self._agent_row(session, agent_id))

    def head(self, agent_id: str) -> str | None:
        with self._session() as session:
            return session.scalar(select(AgentRow.head).where(AgentRow.agent_id == agent_id))

    def find(self, version_id: str) -> Version | None:
        with self._session() as session:
            row = session.get(VersionRow, version_id)
            return None if row is None else _version(session, row)

    def version(self, version_id: str) -> Version:
        with self._session() as session:
            return _version(session, self._version_row(session, version_id))

    def load(self, version_id: str) -> dict[str, bytes]:
        with self._session() as session:
            row = self._version_row(session, version_id)
            query = (
                select(PartRow.name, PartRow.checksum, BlobRow.data)
                .join(BlobRow, BlobRow.checksum == PartRow.checksum, isouter=True)
                .where(PartRow.version_id == version_id)
            )
            found = {}
            for name, wanted, data in session.execute(query):
                if data is None or checksum(data) != wanted:
                    raise CorruptState(
                        f"agent {row.agent_id!r}, version {version_id}: the bytes of sub-state {name!r} are "
                        f"{'missing' if data is None else 'damaged'} in {self.path or 'memory'}. Restore the file "
                        "from a backup, or write the journal again under another agent id"
                    )
                found[name] = data
            return found

    def commit(
        self,
        agent_id: str,
        *,
        parent: str | None,
        parts: Mapping[str, bytes],
        entries: Sequence[Entry],
        fingerprint: str,
        resets: Sequence[str] = (),
        move_head: bool = True,
    ) -> Version:
        identity = version_id(agent_id, parent, entries, fingerprint, resets)
        now = datetime.now(UTC).replace(tzinfo=None)
        with self._session(write=True) as session:
            agent = session.get(AgentRow, agent_id)
            head = agent.head if agent is not None else None
            row = session.get(VersionRow, identity)
            if row is not None and (not move_head or head != parent):
                return _version(session, row)  # written before; the head has moved on, or stays
            if move_head and head != parent:
                raise HeadConflict(
                    f"agent {agent_id!r}: the head is {head}, not {parent}: another writer was first; read the new "
                    "head and write again"
                )
            if agent is None:
                agent = AgentRow(agent_id=agent_id, head=None, created_at=now)
                session.add(agent)
                session.flush()
            if row is None:
                kept = self._inherited(session, agent_id, parent, {*parts, *resets}, fingerprint)
                row = VersionRow(
                    version_id=identity,
                    agent_id=agent_id,
                    parent=parent,
                    fingerprint=fingerprint,
                    resets=list(resets),
                    created_at=now,
                )
                _insert(session, row, kept, parts, entries)
            if move_head:
                agent.head = identity
            session.flush()
            return _version(session, row)

    def _inherited(
        self, session: Session, agent_id: str, parent: str | None, replaced: set[str], fingerprint: str
    ) -> dict[str, str]:
        """Checksums of the parent's parts that the new version keeps."""
        if parent is None:
            return {}
        row = session.get(VersionRow, parent)
        if row is None or row.agent_id != agent_id:
            raise VersionNotFound(
                f"agent {agent_id!r} has no memory version {parent!r}: write after one of its own versions"
            )
        kept = {name: sha for name, sha in _parts(session, parent).items() if name not in replaced}
        if kept and row.fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"version {parent} of agent {agent_id!r} was made by {row.fingerprint}, the new one by {fingerprint}: "
                f"its sub-states {sorted(kept)} cannot be kept beside it"
            )
        return kept

    def journal(self, agent_id: str, version: str | None = None) -> list[tuple[str, Entry]]:
        with self._session() as session:
            start = version if version is not None else self._agent_row(session, agent_id).head
            chain = [row.version_id for row in self._chain(session, agent_id, start)]
            found: list[tuple[str, Entry]] = []
            for identity in reversed(chain):
                query = select(EntryRow).where(EntryRow.version_id == identity).order_by(EntryRow.position)
                found += [(identity, _entry(row)) for row in session.scalars(query)]
            return found

    def history(self, agent_id: str) -> list[Version]:
        with self._session() as session:
            head = self._agent_row(session, agent_id).head
            return [_version(session, row) for row in self._chain(session, agent_id, head)]

    def delete(self, agent_id: str) -> int:
        with self._session(write=True) as session:
            agent = self._agent_row(session, agent_id)
            own = select(VersionRow.version_id).where(VersionRow.agent_id == agent_id)
            count = session.scalar(select(func.count()).select_from(own.subquery())) or 0
            blobs = set(session.scalars(select(PartRow.checksum).where(PartRow.version_id.in_(own))))
            session.delete(agent)
            session.flush()  # versions, parts and entries go with it
            for sha in blobs - set(session.scalars(select(PartRow.checksum).where(PartRow.checksum.in_(blobs)))):
                session.delete(session.get_one(BlobRow, sha))
            return count

    def close(self) -> None:
        self._engine.dispose()

    def _chain(self, session: Session, agent_id: str, start: str | None) -> Iterator[VersionRow]:
        while start is not None:
            row = self._version_row(session, start)
            if row.agent_id != agent_id:
                raise VersionNotFound(f"agent {agent_id!r} has no memory version {start!r}; it is another agent's")
            yield row
            start = row.parent

    def _agent_row(self, session: Session, agent_id: str) -> AgentRow:
        row = session.get(AgentRow, agent_id)
        if row is None:
            raise AgentNotFound(
                f"no agent {agent_id!r} in {self.path or 'this store'}: check the spelling and the store"
            )
        return row

    def _version_row(self, session: Session, identity: str) -> VersionRow:
        row = session.get(VersionRow, identity)
        if row is None:
            raise VersionNotFound(f"no memory version {identity!r} in {self.path or 'this store'}: it may be deleted")
        return row


def _prepare(connection: Any, _: Any) -> None:
    """Transactions begin when we say so (see :func:`_begin`)."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_SECONDS}000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("deltamem_begin", "BEGIN"))


def _insert(
    session: Session, row: VersionRow, kept: Mapping[str, str], parts: Mapping[str, bytes], entries: Sequence[Entry]
) -> None:
    session.add(row)
    checksums = dict(kept)
    for name, data in parts.items():
        checksums[name] = checksum(data)
        if session.get(BlobRow, checksums[name]) is None:
            session.add(BlobRow(checksum=checksums[name], data=bytes(data)))
            session.flush()
    session.flush()
    session.add_all(PartRow(version_id=row.version_id, name=name, checksum=sha) for name, sha in checksums.items())
    for position, entry in enumerate(entries):
        session.add(
            EntryRow(
                version_id=row.version_id,
                position=position,
                role=entry.role,
                content=entry.content,
                sub_states=list(entry.sub_states),
                message_id=entry.message_id,
                source=entry.source,
                payload=entry.payload,
            )
        )


def _parts(session: Session, identity: str) -> dict[str, str]:
    query = select(PartRow.name, PartRow.checksum).where(PartRow.version_id == identity).order_by(PartRow.name)
    return {row.name: row.checksum for row in session.execute(query)}


def _version(session: Session, row: VersionRow) -> Version:
    made = row.created_at.replace(tzinfo=UTC)
    return Version(row.version_id, row.agent_id, row.parent, row.fingerprint, made, _parts(session, row.version_id))


def _entry(row: EntryRow) -> Entry:
    return Entry(row.role, row.content, tuple(row.sub_states), row.message_id, row.source, row.payload)


def _agent(session: Session, row: AgentRow) -> Agent:
    own = select(VersionRow.version_id).where(VersionRow.agent_id == row.agent_id)
    versions = session.scalar(select(func.count()).select_from(own.subquery())) or 0
    entries = session.scalar(select(func.count()).select_from(EntryRow).where(EntryRow.version_id.in_(own))) or 0
    return Agent(row.agent_id, row.head, row.created_at.replace(tzinfo=UTC), versions, entries)
