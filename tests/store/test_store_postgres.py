"""The store on a PostgreSQL server: the contract, typed errors, and a server that goes away."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from deltamem_agents.errors import CorruptStore, StoreError, StoreUnavailable
from deltamem_agents.store import Write, open_store
from deltamem_agents.store.models import Base, MetaRow
from deltamem_agents.store.postgres import PostgresBackend
from deltamem_agents.store.suite import PRINT, StoreContract, note, put

ROLE = "DO $$ BEGIN CREATE ROLE {} LOGIN PASSWORD 'right'; EXCEPTION WHEN duplicate_object THEN END $$"


class TestPostgres(StoreContract):
    @pytest.fixture
    def store(self, postgres_url):
        with open_store(postgres_url) as store:
            yield store


@pytest.fixture
def backend(postgres_url: str) -> Iterator[PostgresBackend]:
    """A backend with tables."""
    backend = PostgresBackend(postgres_url)
    with backend.transaction(write=True) as connection:
        Base.metadata.create_all(connection)
        backend.create_index(connection)
    yield backend
    backend.close()


def meta(backend: PostgresBackend) -> dict[str, str]:
    with backend.transaction(write=False) as connection:
        return dict(connection.execute(select(MetaRow.key, MetaRow.value)).all())


def failure(backend: PostgresBackend, statement: str) -> SQLAlchemyError:
    """What a statement fails with."""
    with pytest.raises(SQLAlchemyError) as caught, backend.transaction(write=True) as connection:
        connection.execute(text(statement))
    return caught.value


def at_once(*calls: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def raising(state: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = 'told so', DETAIL = 'a secret'; END $$"


# Transactions


def test_fresh_means_none_of_our_tables(postgres_url):
    first = PostgresBackend(postgres_url)
    assert first.fresh
    with first.transaction(write=True) as connection:
        connection.execute(text("CREATE TABLE somebodys (a int)"))
    first.close()
    second = PostgresBackend(postgres_url.replace("+psycopg", ""))
    assert second.fresh and second.engine.dialect.driver == "psycopg"
    with second.transaction(write=True) as connection:
        MetaRow.__table__.create(connection)
    second.close()
    third = PostgresBackend(postgres_url)
    assert not third.fresh
    third.close()


def test_a_transaction_that_raises_leaves_nothing(backend):
    with pytest.raises(ValueError), backend.transaction(write=True) as connection:
        connection.execute(insert(MetaRow).values(key="a", value="1"))
        raise ValueError
    assert meta(backend) == {}


def test_rows_that_are_there_stay(backend):
    with backend.transaction(write=True) as connection:
        connection.execute(backend.insert_missing(MetaRow), [{"key": "a", "value": "1"}])
        connection.execute(backend.insert_missing(MetaRow), [{"key": "a", "value": "2"}, {"key": "b", "value": "2"}])
    assert meta(backend) == {"a": "1", "b": "2"}


def test_a_reader_sees_one_state(backend, postgres_url):
    other = PostgresBackend(postgres_url)
    with backend.transaction(write=False) as reading:
        assert reading.scalar(select(func.count()).select_from(MetaRow)) == 0
        with other.transaction(write=True) as writing:
            writing.execute(insert(MetaRow).values(key="a", value="1"))
        assert reading.scalar(select(func.count()).select_from(MetaRow)) == 0
    assert meta(backend) == {"a": "1"}
    other.close()


def test_writers_wait_for_each_other_at_a_row(backend, postgres_url):
    with backend.transaction(write=True) as connection:
        connection.execute(insert(MetaRow).values(key="a", value="0"))
    other = PostgresBackend(postgres_url)

    def count(of: PostgresBackend) -> None:
        for _ in range(20):
            with of.transaction(write=True) as connection:
                row = connection.execute(select(MetaRow).where(MetaRow.key == "a").with_for_update()).one()
                connection.execute(update(MetaRow).values(value=str(int(row.value) + 1)))

    at_once(lambda: count(backend), lambda: count(other))
    assert meta(backend) == {"a": "40"}
    other.close()


def test_many_make_one_store(postgres_url):
    stores = at_once(*[lambda: open_store(postgres_url)] * 4)
    head = put(stores[0], "a", None, "x").version_id
    assert [store.head("a") for store in stores] == [head] * 4
    for store in stores:
        store.close()


def test_a_commit_is_on_the_disk_whatever_the_servers_default(postgres_cluster, postgres_url):
    name = postgres_url.rpartition("/")[2]
    postgres_cluster.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    backend = PostgresBackend(postgres_url)
    with backend.transaction(write=True) as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(text("SHOW fsync")) == "on"
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
        assert connection.scalar(text("SHOW application_name")) == "deltamem-agents"
    backend.close()


# Errors


def test_states_of_the_server(backend):
    for state, kind, says, transient in (
        ("53100", StoreUnavailable, "disk is full", False),
        ("53300", StoreUnavailable, "max_connections", True),
        ("58030", StoreUnavailable, "its disk", False),
        ("25006", StoreUnavailable, "only reads", False),
        ("XX001", CorruptStore, "backup", False),
        ("XX002", CorruptStore, "REINDEX", False),
        ("42501", StoreUnavailable, "Grant", False),
        ("57P01", StoreUnavailable, "Start it", True),
        ("40001", StoreUnavailable, "other writers", True),
        ("40P01", StoreUnavailable, "other writers", True),
        ("54000", StoreError, "shorter", False),
        ("22012", StoreError, "deltamem store verify", False),
    ):
        error = failure(backend, raising(state))
        told = backend.translate(error)
        assert (type(told), backend.transient(error)) == (kind, transient), state
        assert says in str(told) and "told so" in str(told) and backend.location in str(told)
        assert "secret" not in str(told)


def test_a_database_that_only_reads(backend, postgres_cluster, postgres_url):
    name = postgres_url.rpartition("/")[2]
    postgres_cluster.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    backend.engine.dispose()
    error = failure(backend, "INSERT INTO meta VALUES ('a', '1')")
    assert isinstance(backend.translate(error), StoreUnavailable) and not backend.transient(error)


def test_a_row_that_stays_locked(backend, monkeypatch):
    with backend.transaction(write=True) as connection:
        connection.execute(insert(MetaRow).values(key="a", value="1"))
        connection.execute(text("LOCK TABLE meta"))
        error = failure(backend, "SET LOCAL lock_timeout = '50ms'; SELECT * FROM meta")
    assert type(backend.translate(error)) is StoreUnavailable and "kept it locked" in str(backend.translate(error))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("postgres@", "checked:wrong@", "password"),
        ("postgres@", "checked@", "password"),
        ("postgres@", "nobody@", "user"),
        ("postgres@", "guest@", "right"),
        ("/t", "/nowhere", "createdb"),
        ("127.0.0.1", "no.such.host.invalid", "reached"),
    ],
)
def test_who_and_where(postgres_cluster, postgres_url, old, new, says):
    name = postgres_url.rpartition("/")[2]
    for role in ("checked", "guest"):
        postgres_cluster.execute(ROLE.format(role))
    postgres_cluster.execute(f'REVOKE CONNECT ON DATABASE "{name}" FROM public')
    with pytest.raises(StoreUnavailable, match=says) as caught:
        PostgresBackend(postgres_url.replace(old, new, 1))
    assert "wrong" not in str(caught.value) and "right" not in str(caught.value).replace("no right", "")
    cause = caught.value.__cause__
    assert isinstance(cause, SQLAlchemyError)


def test_a_right_password_is_not_shown(postgres_cluster, postgres_url):
    postgres_cluster.execute(ROLE.format("checked"))
    for url in (
        postgres_url.replace("postgres@", "checked:right@"),
        postgres_url.replace("postgres@", "checked@") + "?password=right",
    ):
        backend = PostgresBackend(url)
        told = str(backend.translate(failure(backend, "CREATE TABLE x (a int)")))
        backend.close()
        assert "right" not in told.replace("no right", "") and "checked" in backend.location and "Grant" in told


def test_other_drivers_are_refused():
    with pytest.raises(StoreError, match=r"psycopg2.*write postgresql\+psycopg"):
        PostgresBackend("postgresql+psycopg2://host/db")


def test_without_psycopg(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreUnavailable, match=r'pip install "deltamem-agents\[postgres\]"'):
        PostgresBackend("postgresql://host/db")


# Files: what is deleted, what is damaged


def files_with(cluster, url: str, what: bytes) -> list[str]:
    """Files of a database that hold some bytes."""
    name = url.rpartition("/")[2]
    cluster.execute("CHECKPOINT")
    oid = cluster.execute(f"SELECT oid FROM pg_database WHERE datname = '{name}'")[0][0]
    return [path.name for path in (cluster.data / "base" / str(oid)).iterdir() if what in path.read_bytes()]


def test_what_is_deleted_is_gone_from_the_files(postgres_cluster, postgres_url):
    with open_store(postgres_url) as store:
        head = None
        for i in range(3):
            head = put(store, "a", head, f"the secretword{i}", b"secretstate%d" % i).version_id
        put(store, "b", None, "kept", b"keptstate")
        postgres_cluster.execute("ANALYZE", postgres_url.rpartition("/")[2])
        assert files_with(postgres_cluster, postgres_url, b"secretword1")
        assert files_with(postgres_cluster, postgres_url, b"secretstate1")
        store.delete("a")
        assert files_with(postgres_cluster, postgres_url, b"secret") == []
        assert store.load("b").parts == {"facts": b"keptstate"} and len(store.search("b", "kept")) == 1


def test_scrubbing_waits_for_older_readers(backend, postgres_url, monkeypatch):
    other = PostgresBackend(postgres_url)
    with other.transaction(write=False) as reading:
        pid = reading.scalar(text("SELECT pg_backend_pid() FROM meta RIGHT JOIN (SELECT 1) AS one ON true"))
        monkeypatch.setattr("deltamem_agents.store.postgres.SCRUB_SECONDS", 0.1)
        with pytest.raises(StoreUnavailable, match=rf"pid {pid}\).*deltamem store scrub"):
            backend.scrub()
    backend.scrub()
    other.close()


def test_damaged_files_are_told(backend, postgres_cluster, postgres_url):
    with backend.transaction(write=True) as connection:
        connection.execute(insert(MetaRow).values(key="a", value="1"))
        path = connection.scalar(text("SELECT pg_relation_filepath('meta')"))
    postgres_cluster.stop()
    with (postgres_cluster.data / path).open("r+b") as file:
        file.seek(100)
        file.write(b"?" * 100)
    postgres_cluster.start()
    error = failure(backend, "SELECT * FROM meta")
    assert type(backend.translate(error)) is CorruptStore and not backend.transient(error)


def test_a_damaged_index_is_a_problem(backend, postgres_cluster, postgres_url):
    name = postgres_url.rpartition("/")[2]
    with backend.transaction(write=False) as connection:
        assert backend.problems(connection) == []  # amcheck is not there
    postgres_cluster.execute("CREATE EXTENSION amcheck", name)
    with backend.transaction(write=False) as connection:
        assert backend.problems(connection) == []
    ready = "UPDATE pg_index SET indisready = {} WHERE indexrelid = 'meta_pkey'::regclass"
    postgres_cluster.execute(ready.format("false"), name)
    postgres_cluster.execute("INSERT INTO meta VALUES ('a', '1')", name)
    postgres_cluster.execute(ready.format("true"), name)
    with backend.transaction(write=False) as connection:
        assert "meta_pkey" in "".join(backend.problems(connection))


# A server that goes away


def test_a_stopped_server(backend, postgres_cluster):
    for mode in ("fast", "immediate"):
        with pytest.raises(SQLAlchemyError) as caught, backend.transaction(write=True) as connection:
            connection.execute(insert(MetaRow).values(key="a", value="1"))
            postgres_cluster.stop(mode)
            connection.execute(text("SELECT 1"))
        lost, away = caught.value, failure(backend, "SELECT 1")
        assert backend.transient(lost) and backend.transient(away)
        assert type(backend.translate(lost)) is type(backend.translate(away)) is StoreUnavailable
        assert "Check that it runs" in str(backend.translate(away))
        postgres_cluster.start()
        assert meta(backend) == {}


@contextmanager
def writing(store, acknowledged: list[str], failed: list[str]) -> Iterator[None]:
    """Two threads write until the block ends."""
    end = Event()

    def write(name: str) -> None:
        i = 0
        while not end.is_set():
            words = f"{name} {i}"
            new = Write([note(words)], {"facts": words.encode()})
            try:
                store.append("a", lambda head, new=new: new, fingerprint=PRINT)
                acknowledged.append(words)
            except StoreUnavailable:
                failed.append(words)
            i += 1
            time.sleep(0.01)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, name) for name in "xy"]
        try:
            yield
        finally:
            end.set()
        for writer in writers:
            writer.result()


def wait_for_more(acknowledged: list[str]) -> None:
    """Until some more is written."""
    wanted = len(acknowledged) + 10
    until = time.monotonic() + 60
    while len(acknowledged) < wanted:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(("away", "patience", "crashes"), [(0.3, 60.0, 2), (2.5, 0.5, 1)], ids=["restart", "outage"])
def test_a_crash_during_writes_loses_and_repeats_nothing(
    postgres_cluster, postgres_url, monkeypatch, away, patience, crashes
):
    monkeypatch.setattr("deltamem_agents.store.reading.RETRY_SECONDS", patience)
    acknowledged: list[str] = []
    failed: list[str] = []
    with open_store(postgres_url) as store:
        with writing(store, acknowledged, failed):
            for _ in range(crashes):
                wait_for_more(acknowledged)
                postgres_cluster.stop("immediate")
                time.sleep(away)
                postgres_cluster.start()
            wait_for_more(acknowledged)
        there = Counter(record.entry.content for record in store.journal("a"))
        assert set(there.values()) == {1} and set(acknowledged) <= set(there) <= {*acknowledged, *failed}
        assert bool(failed) == (away > patience)
        for record in store.journal("a"):
            assert store.load("a", record.version_id).parts == {"facts": record.entry.content.encode()}
        assert list(store.verify()) == []


def test_a_server_that_stays_down(postgres_cluster, postgres_url, monkeypatch):
    monkeypatch.setattr("deltamem_agents.store.reading.RETRY_SECONDS", 1.0)
    with open_store(postgres_url) as store:
        first = put(store, "a", None, "x").version_id
        postgres_cluster.stop("immediate")
        for call in (lambda: put(store, "a", first, "y"), lambda: store.load("a"), lambda: open_store(postgres_url)):
            begin = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"store postgresql.*Check that it runs"):
                call()
            assert time.monotonic() - begin < 10
        postgres_cluster.start()
        assert store.head("a") == first and put(store, "a", first, "y").parent == first
