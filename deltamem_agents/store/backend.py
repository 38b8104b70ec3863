"""What differs between databases. One subclass for each: sqlite.py, postgres.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StoreError


class Indexed(NamedTuple):
    """A journal entry as the full-text index sees it: primary keys of entry and agent, and the plain text.

    The text of a damaged entry is not known: None, where it is taken out.
    """

    pk: int
    agent_pk: int
    text: str | None


class Backend(ABC):
    """One database.

    Attributes:
        location: what errors call it: a path, or a URL without its password.
        engine: SQLAlchemy's engine for it.
        fresh: whether the database had no tables when it was opened.
    """

    location: str
    engine: Engine
    fresh: bool

    @contextmanager
    def transaction(self, write: bool) -> Iterator[Connection]:
        """One transaction; it is rolled back when the block raises. Writers exclude each other from its beginning."""
        with self.engine.begin() as connection:
            yield connection

    @abstractmethod
    def insert_missing(self, table: type[Any]) -> Any:
        """An INSERT that leaves rows alone that are there already."""

    @abstractmethod
    def translate(self, error: SQLAlchemyError) -> StoreError:
        """The error of the library for one of the database: it names the store and the remedy."""

    @abstractmethod
    def transient(self, error: SQLAlchemyError) -> bool:
        """Whether the same transaction may succeed a little later (a server that restarts, a serialisation failure)."""

    @abstractmethod
    def create_index(self, connection: Connection) -> None:
        """Make the full-text index of the journal; nothing happens when it is there."""

    @abstractmethod
    def index_add(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        """Put texts into the index."""

    @abstractmethod
    def index_remove(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        """Take texts out again; they must be what was put in."""

    @abstractmethod
    def index_match(self, connection: Connection, agent_pk: int, terms: Sequence[str], limit: int) -> list[int]:
        """Primary keys of an agent's entries that hold any of the terms, roughly the best first."""

    @abstractmethod
    def scrub(self) -> None:
        """Make what was deleted unreadable in the files: free pages, index, write-ahead log. Outside a transaction."""

    @abstractmethod
    def problems(self, connection: Connection) -> list[str]:
        """What the database itself finds wrong with its files."""

    def close(self) -> None:
        """Give back connections."""
        self.engine.dispose()
