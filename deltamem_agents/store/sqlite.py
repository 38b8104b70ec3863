"""SQLite: a file in write-ahead mode, synced at every commit, or a database in this process's memory."""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

from sqlalchemy import Connection, create_engine, event, inspect, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool, StaticPool

from ..errors import CorruptStore, SchemaMismatch, StoreError, StoreUnavailable
from .backend import Backend, Indexed
from .fulltext import SQLiteIndex
from .models import OURS, EntryRow

BUSY_SECONDS = 30  # a writer waits so long for another one
SCRUB_SECONDS = 5  # and the scrubber so long for readers of an older state
WRITE = "BEGIN IMMEDIATE"
REMEDIES: dict[str, tuple[type[StoreError], str]] = {
    "SQLITE_CORRUPT": (
        CorruptStore,
        "the file is damaged. Copy it away, then see what is left: deltamem store verify, deltamem agents export; "
        "or restore a backup",
    ),
    "SQLITE_NOTADB": (SchemaMismatch, "it is no SQLite database. Name another file"),
    "SQLITE_FULL": (StoreUnavailable, "the disk is full, nothing was written. Free some space and try again"),
    "SQLITE_READONLY": (StoreUnavailable, "the file or its folder cannot be written. Change the permissions"),
    "SQLITE_CANTOPEN": (StoreUnavailable, "the file cannot be opened. Check that it is there, and its permissions"),
    "SQLITE_IOERR": (StoreUnavailable, "reading or writing the disk failed. Check the disk and its free space"),
    "SQLITE_BUSY": (StoreUnavailable, f"another process kept it locked for {BUSY_SECONDS} seconds. Try again"),
    "SQLITE_LOCKED": (StoreUnavailable, "another connection keeps it locked. Try again"),
}

_files: "WeakSet[SQLiteBackend]" = WeakSet()  # those that are open


class SQLiteBackend(Backend):
    """A file (made with its folders when it is not there), or memory (``path`` None).

    Raises:
        StoreUnavailable: the folder cannot be made, or the file not opened.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else str(Path(path).expanduser().absolute())
        self.location = self.path or "in memory"
        self.index = SQLiteIndex()
        self._lock = RLock()  # a database in memory is one connection, for all threads
        self._inode: tuple[int, int] | None = None
        self._process = os.getpid()
        if self.path is None:
            options: dict[str, Any] = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
            self.engine = create_engine("sqlite://", **options)
        else:
            self._make_file()
            self.engine = create_engine("sqlite://", creator=self._open, poolclass=QueuePool)
        event.listen(self.engine, "connect", _prepare)
        event.listen(self.engine, "begin", _begin)
        self._writing = self.engine.execution_options(deltamem_begin=WRITE)
        try:
            with self.transaction(write=False) as connection:
                self.fresh = not inspect(connection).get_table_names()
        except SQLAlchemyError as error:
            raise self.translate(error) from error
        except ValueError as error:  # names of tables that cannot be read
            raise CorruptStore(f"store {self.location}: {error}: {REMEDIES['SQLITE_CORRUPT'][1]}") from error

    def _make_file(self) -> None:
        assert self.path is not None
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            # A file that is there is not opened here: to close it would drop all locks that this process has on it, and
            # another one would take itself for the last user and delete the write-ahead log.
            with suppress(FileExistsError):  # memories are for their owner's eyes
                os.close(os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600))
            stat = os.stat(self.path)
        except OSError as error:
            raise StoreUnavailable(f"store {self.path}: it cannot be made ({error}): choose another path") from error
        self._inode = stat.st_dev, stat.st_ino
        for other in list(_files):
            if other._inode == self._inode:
                other._check_process()
        _files.add(self)

    def close(self) -> None:
        super().close()
        _files.discard(self)

    def _open(self) -> sqlite3.Connection:
        """A connection to the file that is there; it makes none."""
        uri = f"file:{quote(str(self.path))}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)

    @contextmanager
    def transaction(self, write: bool) -> Iterator[Connection]:
        if self.path is None:
            with self._lock, self.engine.begin() as connection:
                yield connection
            return
        self._check_process()
        self._check_file()
        with (self._writing if write else self.engine).begin() as connection:
            yield connection
        if write:
            self._check_file()  # what was written into a deleted file is not there

    def _check_process(self) -> None:
        """After a fork, SQLite takes its parent's locks for its own: files that others use would get damaged."""
        if os.getpid() != self._process:
            raise StoreError(
                f"store {self.path}: this process was forked while the store was open. Close it before, and open it "
                "in each process"
            )

    def _check_file(self) -> None:
        try:
            stat = os.stat(str(self.path))
            same = self._inode == (stat.st_dev, stat.st_ino)
        except OSError:
            same = False
        if not same:
            raise StoreUnavailable(
                f"store {self.path}: the file was deleted or replaced while it was open; what was written since may be "
                "lost. Put it back, or restore a backup, and open the store again"
            )

    def insert_missing(self, table: type[Any]) -> Any:
        return insert(table).on_conflict_do_nothing()

    def translate(self, error: SQLAlchemyError) -> StoreError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        name = getattr(cause, "sqlite_errorname", "")
        for start, (kind, remedy) in REMEDIES.items():
            if name.startswith(start):
                return kind(f"store {self.location}: {cause}: {remedy}")
        if isinstance(error, PoolTimeout):
            return StoreUnavailable(
                f"store {self.location}: all connections of this process are in use. Use fewer threads, or try again"
            )
        if str(cause).startswith("Could not decode"):
            return CorruptStore(f"store {self.location}: {cause}: {REMEDIES['SQLITE_CORRUPT'][1]}")
        return StoreError(f"store {self.location}: {cause}. Is it a store of this library? deltamem store verify tells")

    def transient(self, error: SQLAlchemyError) -> bool:
        name = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlite_errorname", "")
        return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))

    def create_index(self, connection: Connection) -> None:
        self.index.create(connection)

    def index_add(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        self.index.add(connection, rows)

    def index_remove(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        """A text of None is damaged: its words can only be taken out by making the index anew, without these rows."""
        if all(row.text is not None for row in rows):
            self.index.remove(connection, rows)
            return
        gone = {row.pk for row in rows}
        connection.exec_driver_sql("INSERT INTO journal_index (journal_index) VALUES ('delete-all')")
        found = connection.execute(select(EntryRow.pk, EntryRow.agent_pk, EntryRow.body)).all()
        kept = [Indexed(row.pk, row.agent_pk, _text(row.body)) for row in found if row.pk not in gone]
        self.index.add(connection, kept)

    def index_match(self, connection: Connection, agent_pk: int, terms: Sequence[str], limit: int) -> list[int]:
        return self.index.match(connection, agent_pk, terms, limit)

    def scrub(self) -> None:
        """Write the file anew, with nothing of what was deleted, and empty its log.

        ``secure_delete`` does not do it: when SQLite moves rows to another page, copies stay in the gaps of the old
        one. As much space is needed as the file and its log take; writers wait meanwhile.
        """
        try:
            with self.transaction(write=True) as connection:
                self.index.purge(connection)
            if self.path is None:
                return
            with self.engine.connect().execution_options(deltamem_begin="") as connection:
                connection.exec_driver_sql("VACUUM")
                busy = self._empty_log(connection)
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise type(self.translate(error))(
                f"store {self.location}: it is deleted, but its bytes are still in the file ({cause}). Run deltamem "
                "store scrub when nobody else writes and there is space for two copies of the file, one of them where "
                "temporary files go"
            ) from error
        self._check_file()
        if busy:
            raise StoreUnavailable(
                f"store {self.location}: it is deleted, but its bytes stay in the write-ahead log while another "
                "process reads. Run deltamem store scrub when that is done"
            )

    def _empty_log(self, connection: Connection) -> bool:
        """Write the log back and cut it off; whether others were reading an older state all the time."""
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(1000 * SCRUB_SECONDS)}")
        try:
            return bool(connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0])
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_SECONDS}000")

    def problems(self, connection: Connection) -> list[str]:
        found = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check(20)")]
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(20)
        return [text for text in found if text != "ok"] + [f"row {row[1]} of {row[0]} has no owner" for row in broken]


def _prepare(connection: Any, _: Any) -> None:
    """Transactions begin when we say so (see :func:`_begin`)."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS}000")
    tables = {row[0] for row in cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables or tables >= OURS:  # it changes a file, also one of others
        _write_ahead(cursor)
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        "secure_delete = FAST",  # pages that are written anyway; for the others, see scrub
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Write-ahead mode. Where two processes make a file at once, SQLite refuses one of them without waiting."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _text(body: bytes) -> str:
    """The text of an entry in a store that is not encrypted; "" when it is damaged."""
    try:
        return json.loads(body.decode("utf-8", "surrogatepass"))[0] or ""
    except ValueError:
        return ""


def _begin(connection: Connection) -> None:
    if statement := connection.get_execution_options().get("deltamem_begin", "BEGIN"):
        connection.exec_driver_sql(statement)
