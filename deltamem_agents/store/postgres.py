"""PostgreSQL, through psycopg: transactions at READ COMMITTED for writers, one snapshot for each reader.

Beyond the reach of a client, and so its administrator's: copies of what was deleted in the server's write-ahead log
(also archived or recycled), on its replicas and in its backups; what a prepared transaction or a replication slot still
holds; and names and ids in the planner's statistics, where new ones do not overwrite the old.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, inspect, make_url
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import CorruptStore, SchemaMismatch, StoreError, StoreUnavailable
from .backend import Backend, Indexed
from .fulltext import PostgresIndex
from .models import Base

LOCK_SECONDS = 30  # a writer waits so long for another one
SCRUB_SECONDS = 5  # and the scrubber so long for readers of an older state
OPENING = 0x64656C7461  # the advisory lock of those who may make tables: "delta"

# libpq's: how soon a server is given up that does not answer. What the URL says counts more.
CONNECT = {
    "application_name": "deltamem-agents",
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# Sent once a connection. A commit that returns is on the disk, whatever the server's default.
SETTINGS = f"""
SET lock_timeout = '{LOCK_SECONDS}s';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
# Transactions of others that may still see what was deleted before.
OLDER = """
SELECT pid, xact_start FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
AND backend_type = 'client backend' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
"""
TABLES = (*Base.metadata.tables, "journal_index")
# Columns of which the planner shall keep no samples: these would outlive what was deleted.
SECRET = ("entries", "body"), ("blobs", "data"), ("journal_index", "words")
# amcheck, where a superuser has installed it for this user, and the indexes that it can check.
AMCHECK = """
SELECT oid::regproc::text FROM pg_proc
WHERE proname = 'bt_index_check' AND pronargs = 2 AND has_function_privilege(oid, 'EXECUTE')
"""
INDEXES = """
SELECT i.indexrelid::regclass::text FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam AND a.amname = 'btree'
WHERE i.indisvalid AND i.indrelid = ANY (%(tables)s::regclass[])
"""

# Start of an SQLSTATE -> what it means here; the first that fits.
REMEDIES: dict[str, tuple[type[StoreError], str]] = {
    "XX001": (CorruptStore, "the server's files are damaged. Restore a backup; deltamem store verify tells more"),
    "XX002": (CorruptStore, "an index is damaged. Stop all writers and REINDEX the database, or restore a backup"),
    "53100": (StoreUnavailable, "the server's disk is full, nothing was written. Free some space there and try again"),
    "53300": (StoreUnavailable, "the server has no connection left. Close some, or raise its max_connections"),
    "53": (StoreUnavailable, "the server is short of memory or of another resource. Try again when it has more"),
    "58": (StoreUnavailable, "the server cannot read or write its files. Check its disk and its log"),
    "25006": (
        StoreUnavailable,
        "the server only reads: a standby, or default_transaction_read_only. Name the primary server, or change that",
    ),
    "28": (StoreUnavailable, "the server refused the user. Check user and password of the URL, and pg_hba.conf"),
    "3D000": (StoreUnavailable, "the database is missing. Make it (createdb), or name another one in the URL"),
    "42501": (StoreUnavailable, "the user has no right to that. Grant it (CREATE on the schema, or the tables' owner)"),
    "42P01": (SchemaMismatch, "tables of the store are missing. Open it again, or restore a backup"),
    "22P05": (StoreUnavailable, "the database is not in UTF-8, and cannot hold this text. Make one that is"),
    "54": (StoreError, "that is more than PostgreSQL can index or hold. Use shorter ids and names"),
    "55P03": (StoreUnavailable, f"another connection kept it locked for {LOCK_SECONDS} seconds. Try again"),
    "57014": (StoreUnavailable, "the statement was cancelled. Try again; the server's statement_timeout may be short"),
    "40": (StoreUnavailable, "other writers were in the way each time. Try again"),
    "57P": (StoreUnavailable, "the server is stopped, or was. Start it and try again"),
    "08": (StoreUnavailable, "the connection was lost. Check the server and the network, and try again"),
}
# The server's answer to a connection carries no SQLSTATE, only words (in English, unless lc_messages says otherwise).
REFUSALS = {
    "57P": ("starting up", "shutting down"),
    "53300": ("too many clients", "too many connections", "connection slots are reserved"),
    "28": (
        "authentication failed", "no password supplied", "no pg_hba.conf entry", "not permitted to log in",
        "SSL was required", "certificate", 'role "',
    ),
    "3D000": ("does not exist",),
    "42501": ("permission denied",),
}  # fmt: skip
# Worth another try. 23505: another writer put in the same row first, and is found the next time.
TRANSIENT = ("08", "57P", "40001", "40P01", "53300", "23505")
UNREACHABLE = "the server cannot be reached. Check that it runs, and host and port of the URL"


class PostgresBackend(Backend):
    """A database on a PostgreSQL server, in its user's current schema ("public", mostly).

    Raises:
        StoreUnavailable: psycopg is not installed, or the server or the database cannot be reached.
    """

    def __init__(self, url: str | URL) -> None:
        wanted = make_url(url)
        self.location = wanted.difference_update_query(["password", "sslpassword"]).render_as_string()
        if wanted.drivername not in ("postgresql", "postgresql+psycopg"):
            raise StoreError(f"store {self.location}: this driver is not supported: write postgresql+psycopg://…")
        self.index = PostgresIndex()
        self._opened = False
        try:
            self.engine = create_engine(
                wanted.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                hide_parameters=True,
                isolation_level="READ COMMITTED",
                connect_args={name: value for name, value in CONNECT.items() if name not in wanted.query},
            )
        except ImportError as error:
            raise StoreUnavailable(
                f'store {self.location}: psycopg is not installed ({error}): pip install "deltamem-agents[postgres]"'
            ) from error
        event.listen(self.engine, "connect", _prepare)
        self._reading = self.engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            with self.transaction(write=False) as connection:
                self.fresh = Base.metadata.tables.keys().isdisjoint(inspect(connection).get_table_names())
        except SQLAlchemyError as error:
            self.close()
            raise self.translate(error) from error

    @contextmanager
    def transaction(self, write: bool) -> Iterator[Connection]:
        """One transaction. A reader sees one state throughout.

        Writers wait for each other at the rows that both lock, and in their first transaction, which may make tables.
        """
        with (self.engine if write else self._reading).begin() as connection:
            if write and not self._opened:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({OPENING})")
            yield connection
        self._opened = self._opened or write

    def insert_missing(self, table: type[Any]) -> Any:
        return insert(table).on_conflict_do_nothing()

    def translate(self, error: SQLAlchemyError) -> StoreError:
        if isinstance(error, PoolTimeout):
            return StoreUnavailable(
                f"store {self.location}: all connections of this process are in use. Use fewer threads, or try again"
            )
        state, cause = _state(error), _cause(error)
        for start, (kind, remedy) in REMEDIES.items():
            if state.startswith(start):
                return kind(f"store {self.location}: {cause}: {remedy}")
        if not state and _lost(error):
            return StoreUnavailable(f"store {self.location}: {cause}: {UNREACHABLE}")
        return StoreError(f"store {self.location}: {cause}. Is it a store of this library? deltamem store verify tells")

    def transient(self, error: SQLAlchemyError) -> bool:
        state = _state(error)
        return state.startswith(TRANSIENT) or (not state and _lost(error))

    def create_index(self, connection: Connection) -> None:
        self.index.create(connection)
        for table, column in SECRET:
            connection.exec_driver_sql(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")

    def index_add(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        self.index.add(connection, rows)

    def index_remove(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        self.index.remove(connection, rows)

    def index_match(self, connection: Connection, agent_pk: int, terms: Sequence[str], limit: int) -> list[int]:
        return self.index.match(connection, agent_pk, terms, limit)

    def scrub(self) -> None:
        """Write all tables and indexes anew: a plain VACUUM leaves what was deleted in the free space of its pages.

        Each table is locked meanwhile. Raises StoreUnavailable when an older transaction goes on: its snapshot keeps
        deleted rows. Transactions of other roles are seen only by a user with pg_read_all_stats.
        """
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                self._wait_for_older(connection)
                for name in self._tables(connection):
                    connection.exec_driver_sql(f"VACUUM (FULL, ANALYZE) {name}")
        except SQLAlchemyError as error:
            raise self.translate(error) from error

    def _wait_for_older(self, connection: Connection) -> None:
        older = set(connection.exec_driver_sql(OLDER))
        until = time.monotonic() + SCRUB_SECONDS
        while older := older & set(connection.exec_driver_sql(OLDER)):
            if time.monotonic() > until:
                raise StoreUnavailable(
                    f"store {self.location}: it is deleted, but its bytes stay in the server's files while older "
                    f"transactions go on (pid {', '.join(str(pid) for pid, _ in sorted(older))}). Run deltamem store "
                    "scrub when they are done"
                )
            time.sleep(0.05)

    def problems(self, connection: Connection) -> list[str]:
        """What amcheck finds in the indexes, where it is installed. The server's checksums are checked by reading."""
        found = []
        check = connection.exec_driver_sql(AMCHECK).scalar()
        for index in self._indexes(connection) if check else ():
            try:
                with connection.begin_nested():
                    connection.exec_driver_sql(f"SELECT {check}(%(index)s::regclass, true)", {"index": index})
            except DBAPIError as error:
                if not _state(error).startswith("XX"):
                    raise
                found.append(f"index {index}: {_cause(error)}")
        return found

    def _tables(self, connection: Connection) -> list[str]:
        """Our tables that are there, as SQL names them."""
        there = set(inspect(connection).get_table_names())
        quote = connection.dialect.identifier_preparer.quote
        return [quote(name) for name in TABLES if name in there]

    def _indexes(self, connection: Connection) -> list[str]:
        return list(connection.exec_driver_sql(INDEXES, {"tables": self._tables(connection)}).scalars())


def _prepare(connection: Any, _: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(SETTINGS)
    connection.commit()


def _state(error: SQLAlchemyError) -> str:
    """The SQLSTATE of an error; for a refused connection, what its words mean; "" when the server said nothing."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    if state := getattr(cause, "sqlstate", None):
        return str(state)
    if isinstance(error, OperationalError):
        for state, words in REFUSALS.items():
            if any(word in str(cause) for word in words):
                return state
    return ""


def _cause(error: SQLAlchemyError) -> str:
    """What happened, in one line; without the server's DETAIL, which quotes rows."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join(str(primary or cause).split())


def _lost(error: SQLAlchemyError) -> bool:
    """Whether there is, or was, no connection: such errors have no SQLSTATE."""
    return isinstance(error, OperationalError) or (isinstance(error, DBAPIError) and error.connection_invalidated)
