"""How the tables of a store change from one version of this library to the next, by Alembic.

env.py      what Alembic runs
tables.py   the tables as they were at each revision; models.py has the newest ones only
lines.py    for 0002: on which line each version stands
versions/   the revisions, one file each; the newest one's is models.SCHEMA

A new revision is a new file in versions/, and the same change in models.py; a test compares the two. There is no
alembic.ini: ``deltamem store upgrade`` calls :func:`run`.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from ..backend import Backend


def run(connection: Connection, backend: Backend, revision: str = "head") -> list[str]:
    """Run what is missing up to a revision, in the transaction of ``connection``; returns the revisions."""
    done: list[str] = []
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes.update(connection=connection, backend=backend, done=done)
    command.upgrade(config, revision)
    return done
