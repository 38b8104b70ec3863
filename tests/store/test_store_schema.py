"""Which databases a store takes, and how it makes a new one."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from schema_tools import FIRST, Opener, at_once, differences, opening, shape
from sqlalchemy import event, inspect

from deltamem_agents.errors import SchemaMismatch
from deltamem_agents.store import migrations, schema
from deltamem_agents.store.models import SCHEMA
from deltamem_agents.store.sqlite import SQLiteBackend


@pytest.fixture
def opened() -> Iterator[Opener]:
    with opening() as opener:
        yield opener


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of 0.1.0."""
    return Path(shutil.copy(FIRST, tmp_path / "old.db"))


# New and current databases


def test_a_new_file_gets_all_tables(tmp_path: Path, opened: Opener) -> None:
    backend = opened(tmp_path / "new.db")
    assert schema.current(backend) is None
    schema.prepare(backend)
    assert schema.current(backend) == SCHEMA
    with backend.transaction(write=True) as connection:
        assert differences(connection) == []
        assert backend.index_match(connection, 1, ["word"], 3) == []
    before = shape(backend)
    schema.prepare(backend)
    assert shape(backend) == before
    assert schema.upgrade(backend) == []


def test_a_store_in_memory(opened: Opener) -> None:
    backend = SQLiteBackend(None)
    schema.prepare(backend)
    schema.prepare(backend)
    assert schema.current(backend) == SCHEMA


def test_opening_an_existing_store_is_cheap(tmp_path: Path, opened: Opener) -> None:
    backend = opened(tmp_path / "new.db")
    schema.prepare(backend)
    said: list[str] = []
    event.listen(backend.engine, "before_cursor_execute", lambda *arguments: said.append(arguments[2]))
    schema.prepare(backend)
    assert len([statement for statement in said if not statement.startswith("BEGIN")]) == 1
    code = (
        "import sys\nfrom deltamem_agents.store import schema, sqlite\n"
        "schema.prepare(sqlite.SQLiteBackend(sys.argv[1]))\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "new.db")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "alembic" not in done.stdout.split()


# Refusals


def test_an_older_store_names_the_command(old: Path, opened: Opener) -> None:
    spaced = old.rename(old.parent / "my old.db")
    before = spaced.read_bytes()
    backend = opened(spaced)
    with pytest.raises(SchemaMismatch, match=r"deltamem store upgrade --store '.*my old\.db'") as caught:
        schema.prepare(backend)
    assert "older" in str(caught.value)
    backend.close()
    assert spaced.read_bytes() == before


@pytest.mark.parametrize("revision", ["0003", "1a2b3c"])
def test_a_newer_store_asks_for_a_newer_library(tmp_path: Path, opened: Opener, revision: str) -> None:
    backend = opened(tmp_path / "new.db")
    schema.prepare(backend)
    with backend.transaction(write=True) as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    for call in (schema.prepare, schema.upgrade):
        with pytest.raises(SchemaMismatch, match=f"{revision}.*upgrade the library"):
            call(backend)


@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE recipes (name TEXT)",
        "CREATE TABLE meta (key TEXT, value TEXT); INSERT INTO meta VALUES ('schema_version', '1')",
        "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('0002')",
        "CREATE TABLE agents (pk INT); CREATE TABLE entries (pk INT); CREATE TABLE x (y INT); CREATE TABLE z (y INT)",
    ],
)
def test_the_database_of_something_else_is_left_alone(tmp_path: Path, tables: str) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(tables)
    connection.close()
    before = path.read_bytes()
    for call in (schema.prepare, schema.current, schema.upgrade):
        with pytest.raises(SchemaMismatch, match="something else"):
            backend = SQLiteBackend(str(path))
            try:
                call(backend)
            finally:
                backend.close()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["other.db"]


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 500)
    with pytest.raises(SchemaMismatch, match=r"notes\.txt.*(no|not a) .*database"):
        schema.prepare(SQLiteBackend(str(path)))
    assert path.read_text() == "Dear diary, " * 500


# PostgreSQL


def test_postgres(postgres_url: str) -> None:
    from deltamem_agents.store.postgres import PostgresBackend

    backend = PostgresBackend(postgres_url)
    assert schema.current(backend) is None
    schema.prepare(backend)
    with backend.transaction(write=True) as connection:
        assert differences(connection) == []
        assert backend.index_match(connection, 1, ["word"], 3) == []
    schema.prepare(backend)
    assert schema.upgrade(backend) == []
    backend.close()


def test_postgres_migrations(postgres_url: str) -> None:
    from deltamem_agents.store.postgres import PostgresBackend

    backend = PostgresBackend(postgres_url)
    with backend.transaction(write=True) as connection:
        assert migrations.run(connection, backend, "0001") == ["0001"]
    with pytest.raises(SchemaMismatch, match="deltamem store upgrade --store postgresql"):
        schema.prepare(backend)
    assert schema.upgrade(backend) == ["0002"]
    schema.prepare(backend)
    with backend.transaction(write=True) as connection:
        assert differences(connection) == []
    backend.close()


def test_postgres_tables_of_something_else(postgres_url: str) -> None:
    from deltamem_agents.store.postgres import PostgresBackend

    backend = PostgresBackend(postgres_url)
    with backend.transaction(write=True) as connection:
        connection.exec_driver_sql("CREATE TABLE recipes (name TEXT)")
        connection.exec_driver_sql("CREATE SCHEMA deltamem")
    with pytest.raises(SchemaMismatch, match=r"something else.*search_path") as caught:
        schema.prepare(backend)
    with backend.transaction(write=False) as connection:
        assert inspect(connection).get_table_names() == ["recipes"]
    backend.close()
    option = str(caught.value).partition("?")[2].split()[0]
    own = PostgresBackend(f"{postgres_url}{'&' if '?' in postgres_url else '?'}{option}")
    schema.prepare(own)
    assert schema.current(own) == SCHEMA
    own.close()


# Several processes


def test_two_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    said = at_once("prepare", [tmp_path / f"{number}.db" for number in range(20)])
    assert said == [{f"None {SCHEMA}"}] * 20


def test_two_processes_open_a_new_postgres_store_at_once(postgres_url: str) -> None:
    assert at_once("prepare", [postgres_url]) == [{f"None {SCHEMA}"}]
