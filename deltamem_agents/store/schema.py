"""Whether a database is a store of this library, and of which revision; makes the tables of a new one.

Alembic keeps the revision in the table ``alembic_version``; it is loaded by :func:`upgrade` alone, because an existing
store is opened often and shall open fast. Stores of deltamem-agents 0.1.0 have no such table: they are revision "0001".
"""

import os
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from ..errors import CorruptStore, SchemaMismatch, StoreError, StoreUnavailable
from .backend import Backend
from .models import OURS, SCHEMA, Base, MetaRow

FIRST = "0001"
REVISION = Table(  # as Alembic makes it
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
QUICK = text("SELECT v.version_num FROM alembic_version AS v LEFT JOIN meta AS m ON m.key = 'journal'")
SEARCH_PATH = "?options=-csearch_path%3Ddeltamem"


def prepare(backend: Backend) -> None:
    """Make the tables in an empty database, once, however many processes open it; check those of any other.

    Raises:
        SchemaMismatch: the tables are older, newer, or something else's. Nothing was changed.
    """
    found = current(backend)
    if found is None:
        with _translated(backend), backend.transaction(write=True) as connection:
            found = _look(connection, backend)  # another process may have been first
            if found is None:
                found = SCHEMA
                Base.metadata.create_all(connection)
                backend.create_index(connection)
                _stamp(connection, SCHEMA)
    if found != SCHEMA:
        raise _mismatch(backend, found)


def current(backend: Backend) -> str | None:
    """The revision of a database; None when it is empty.

    Raises:
        SchemaMismatch: it belongs to something else.
    """
    with _translated(backend):
        try:
            with backend.transaction(write=False) as connection:
                return str(connection.execute(QUICK).scalar_one())
        except SQLAlchemyError as error:  # one of the tables is not there
            if backend.transient(error):
                raise
        with backend.transaction(write=False) as connection:
            return _look(connection, backend)


def upgrade(backend: Backend, say: Callable[[str], object] = lambda _: None) -> list[str]:
    """Bring a store to the newest schema, in one transaction; returns the revisions that were run.

    A SQLite file is copied first, to ``<file>.<revision>.bak``. When the upgrade fails the store is as it was, and that
    copy is gone again.

    Args:
        say: is told what happens, in sentences for people.

    Raises:
        SchemaMismatch: the store is newer than this library, or none of ours.
        CorruptStore: rows that cannot be read.
    """
    found = current(backend)
    if found == SCHEMA:
        return []
    if found is not None and found > SCHEMA:
        raise _mismatch(backend, found)
    with _translated(backend), backend.transaction(write=True) as connection:
        done = _upgrade(connection, backend, say)
    if done:
        say(f"store {backend.location}: upgraded to revision {SCHEMA}")
    return done


def _upgrade(connection: Connection, backend: Backend, say: Callable[[str], object]) -> list[str]:
    from . import migrations

    found, copy = _look(connection, backend), None
    if found == SCHEMA:  # another process was first
        return []
    try:
        if found is not None:
            if copy := _copy(connection, backend, found):
                say(f"store {backend.location}: what it was, revision {found}, is kept in {copy}")
            if not inspect(connection).has_table(REVISION.name):
                _stamp(connection, found)
        return migrations.run(connection, backend)
    except BaseException:
        if copy is not None:
            copy.unlink(missing_ok=True)
        raise


def _look(connection: Connection, backend: Backend) -> str | None:
    """What :func:`current` tells, by the tables that are there."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    if tables >= OURS:
        if REVISION.name in tables:
            found = connection.execute(select(REVISION.c.version_num)).scalar()
        else:
            found = connection.execute(select(MetaRow.value).where(MetaRow.key == "schema_version")).scalar()
            found = FIRST if found == "1" else found
        if found is not None:
            return str(found)
    names = ", ".join(sorted(tables)[:3]) + (", …" if len(tables) > 3 else "")
    own = "another file"
    if connection.dialect.name != "sqlite":
        own = "another database, or a schema of its own: CREATE SCHEMA deltamem, and in the URL " + SEARCH_PATH
    raise SchemaMismatch(
        f"store {backend.location}: it belongs to something else (tables {names}) and was left untouched. Give the "
        f"store {own}"
    )


def _stamp(connection: Connection, revision: str) -> None:
    REVISION.create(connection)
    connection.execute(insert(REVISION).values(version_num=revision))


def _mismatch(backend: Backend, found: str) -> SchemaMismatch:
    if found < SCHEMA:
        command = f"deltamem store upgrade --store {shlex.quote(backend.location)}"
        return SchemaMismatch(
            f"store {backend.location} was made by an older version of this library (revision {found}, now {SCHEMA}). "
            f"Stop what uses it, make a backup, and run: {command}"
        )
    return SchemaMismatch(
        f"store {backend.location} was made by a newer version of this library (revision {found}, this one knows "
        f"{SCHEMA}): upgrade the library"
    )


def _copy(connection: Connection, backend: Backend, revision: str) -> Path | None:
    """Copy a SQLite file beside itself, under a name that is free; None for other databases.

    The transaction has begun and written nothing yet, so that nobody can write between copy and upgrade.
    """
    if connection.dialect.name != "sqlite":
        return None
    file = next(row[2] for row in connection.exec_driver_sql("PRAGMA database_list") if row[1] == "main")
    if not file:
        return None  # in memory
    number = 1
    while True:
        copy = Path(f"{file}.{revision}.bak{number if number > 1 else ''}")
        try:
            os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, os.stat(file).st_mode & 0o777))
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _no_copy(backend, copy, error) from error
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except BaseException as error:
        copy.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise _no_copy(backend, copy, error) from error
        raise
    return copy


def _no_copy(backend: Backend, copy: Path, error: Exception) -> StoreError:
    return StoreUnavailable(
        f"store {backend.location}: its backup {copy} cannot be written ({error}), so it was not upgraded. Make its "
        "folder writable, with as much free space as the store has bytes"
    )


@contextmanager
def _translated(backend: Backend) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise backend.translate(error) from error
    except ValueError as error:  # JSON or text that cannot be read
        raise CorruptStore(f"store {backend.location}: {error}. Nothing was changed; restore a backup") from error
