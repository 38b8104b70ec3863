"""What the tests of schema and upgrade share: files of stores, and how their tables look."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from deltamem_agents.store.backend import Backend
from deltamem_agents.store.models import Base
from deltamem_agents.store.sqlite import SQLiteBackend

FIRST = Path(__file__).parents[1] / "data" / "store" / "v1.sqlite"  # a store of deltamem-agents 0.1.0
Opener = Callable[[Path], SQLiteBackend]


@contextmanager
def opening() -> Iterator[Opener]:
    """Opens files, and closes them at the end."""
    made: list[SQLiteBackend] = []

    def opener(path: Path) -> SQLiteBackend:
        made.append(SQLiteBackend(str(path)))
        return made[-1]

    yield opener
    for backend in made:
        backend.close()


def shape(backend: Backend) -> dict[str, str]:
    """The statements that make tables and indexes."""
    with backend.transaction(write=False) as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
    return {name: " ".join(sql.replace('"', "").split()) for name, sql in rows}


def differences(connection: Connection) -> list[Any]:
    """What Alembic would change to make the tables those of models.py."""

    def ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        table = name if kind == "table" else thing.table.name
        return table in Base.metadata.tables

    context = MigrationContext.configure(connection, opts={"include_object": ours, "compare_type": True})
    return list(compare_metadata(context, Base.metadata))


WORKER = """
import sys
from deltamem_agents.store import schema
from deltamem_agents.store.sql import open_backend
print("ready", flush=True)
for target in sys.stdin:
    try:
        backend = open_backend(target.strip())
        print(getattr(schema, sys.argv[1])(backend), schema.current(backend), flush=True)
        backend.close()
    except Exception as error:
        print(repr(error), flush=True)
"""


def at_once(function: str, targets: Sequence[Path | str]) -> list[set[str]]:
    """Call a function of the schema module for each database in two processes at a time; what the two say."""
    pipe, command = subprocess.PIPE, [sys.executable, "-c", WORKER, function]
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]

    def answers() -> set[str]:
        return {worker.stdout.readline().strip() for worker in workers if worker.stdout}

    said = [answers()]
    for target in targets:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{target}\n")
            worker.stdin.flush()
        said.append(answers())
    for worker in workers:
        worker.communicate()
    return said[1:]
