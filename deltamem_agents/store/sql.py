"""open_store: a store in SQLite or PostgreSQL, by its path or URL.

reading.py  agents, versions, bytes, the journal        lines.py    ways through the tree of versions
writing.py  commits, heads, pins                        rows.py     rows to records and back
copying.py  fork, dump, restore                         schema.py   tables, and their upgrade (migrations/)
upkeep.py   forgetting, pruning, verifying, keys        sqlite.py, postgres.py   what differs between databases
"""

from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, insert, make_url, select
from sqlalchemy.exc import ArgumentError

from ..errors import SchemaMismatch, StoreError, StoreKeyError
from .backend import Backend
from .cipher import Cipher, KeySource, keys_from
from .models import MetaRow
from .records import DEFAULT_TENANT, Policy
from .schema import prepare
from .sqlite import SQLiteBackend
from .upkeep import Upkeep

Journal = Literal["full", "hash"]


class SQLStore(Upkeep):
    """See :class:`Store`."""

    def __init__(
        self, backend: Backend, *, tenant: str = DEFAULT_TENANT, key: KeySource = None, journal: Journal | None = None
    ) -> None:
        keys = keys_from(key)
        prepare(backend)
        cipher = Cipher.of(keys)
        super().__init__(backend, cipher, Policy(), tenant)
        found = self._run(self._meta)
        if "journal" not in found:
            found = self._run(lambda c: self._first(c, cipher, bool(keys), journal), write=True)
        self.policy = self.sealed.policy = self._policy(found, cipher, bool(keys), journal)

    def _meta(self, c: Connection) -> dict[str, str]:
        return dict(c.execute(select(MetaRow.key, MetaRow.value)).all())  # type: ignore[arg-type]

    def _first(self, c: Connection, cipher: Cipher, keyed: bool, journal: Journal | None) -> dict[str, str]:
        """Keep the policy of a store that was made just now, unless another process was first."""
        if "journal" not in (found := self._meta(c)):
            if journal not in (None, "full", "hash"):
                raise StoreError(f'journal = {journal!r} is not known: use "full" or "hash"')
            found = {"journal": journal or "full"} | ({"cipher": cipher.check_value()} if keyed else {})
            c.execute(insert(MetaRow), [{"key": key, "value": value} for key, value in found.items()])
        return found

    def _policy(self, found: dict[str, str], cipher: Cipher, keyed: bool, journal: Journal | None) -> Policy:
        """The policy that the store was made with, which must be the one that is asked for."""
        if journal is not None and journal != found["journal"]:
            raise SchemaMismatch(
                f"store {self.location} was made with journal={found['journal']!r}, not {journal!r}: leave it out, or "
                "make another store"
            )
        if "cipher" in found:
            try:
                cipher.check(found["cipher"])
            except StoreError as error:
                raise type(error)(f"store {self.location}: {error}") from error
        elif keyed:
            raise StoreKeyError(
                f"store {self.location} is not encrypted, and a key was given: leave it out (DELTAMEM_STORE_KEY), or "
                "encrypt the store: deltamem store rotate-key"
            )
        return Policy("hash" if found["journal"] == "hash" else "full", "cipher" in found)


def open_store(
    target: str | Path,
    *,
    tenant: str = DEFAULT_TENANT,
    key: KeySource = None,
    journal: Journal | None = None,
) -> SQLStore:
    """Open (or make) a store.

    Args:
        target: a path, whose folders are made, or a URL: "sqlite:///memory.db", "sqlite://" (in this process's memory),
            "postgresql+psycopg://user@host/database".
        tenant: whose agents it serves.
        key: for encryption at rest: base64 text or 32 bytes, several of them (the first encrypts, the others open what
            was encrypted before), or a callable that gives them. None: DELTAMEM_STORE_KEY, if it is set.
        journal: for a new store: "full" keeps the text of messages, "hash" hashes alone (see :class:`Policy`).

    Raises:
        SchemaMismatch: another version of this library made it, or something else did.
        StoreKeyError: it is encrypted with another key, or not at all.
        StoreUnavailable, CorruptStore: it cannot be opened or read.
    """
    return SQLStore(open_backend(target), tenant=tenant, key=key, journal=journal)


def open_backend(target: str | Path) -> Backend:
    """The database at a path or URL, before anything is read from it."""
    text = str(target)
    if "://" not in text:
        return SQLiteBackend(None if text == ":memory:" else text)
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise StoreError(f"store {text!r}: not a URL: give a path, sqlite:///… or postgresql+psycopg://…") from error
    if url.get_backend_name() == "sqlite":
        return SQLiteBackend(None if url.database in (None, "", ":memory:") else url.database)
    if url.get_backend_name() == "postgresql":
        from .postgres import PostgresBackend

        return PostgresBackend(url)
    raise StoreError(
        f"store {url.render_as_string()!r}: only SQLite and PostgreSQL are supported: give a path, sqlite:///… or "
        "postgresql+psycopg://…"
    )
