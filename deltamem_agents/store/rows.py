"""Rows of the tables to the contract's records and back."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, and_, bindparam, insert, select

from ..errors import CorruptState, InvalidName, StoreKeyError
from .backend import Backend, Indexed
from .cipher import Cipher
from .models import AgentRow, BlobRow, EntryRow, PartRow, VersionRow
from .records import MOST_ID, MOST_NAME, Entry, Policy, Record, Version, checksum

CHUNK = 500  # values of one IN list, rows of one step
VERSION = (
    VersionRow.pk,
    VersionRow.version_id,
    VersionRow.parent,
    VersionRow.fingerprint,
    VersionRow.resets,
    VersionRow.line,
    VersionRow.depth,
    VersionRow.pin,
    VersionRow.pruned,
    VersionRow.retired,
    VersionRow.created_at,
)
# Statements of every turn, made once: SQLAlchemy takes longer to put one together than SQLite to run it.
_OWNER = AgentRow.tenant == bindparam("tenant"), AgentRow.name == bindparam("name")
AGENT = select(AgentRow).where(*_OWNER)
LOCKED = AGENT.with_for_update()
_STATES = (
    select(*VERSION, PartRow.name, PartRow.checksum, BlobRow.data)
    .join(AgentRow, AgentRow.pk == VersionRow.agent_pk)
    .join(PartRow, PartRow.version_pk == VersionRow.pk, isouter=True)
    .join(BlobRow, and_(BlobRow.agent_pk == PartRow.agent_pk, BlobRow.checksum == PartRow.checksum), isouter=True)
    .where(*_OWNER)
    .order_by(PartRow.name)
)
HEAD_STATE = _STATES.where(VersionRow.version_id == AgentRow.head)
STATE = _STATES.where(VersionRow.version_id == bindparam("version"))
NEW_PARTS = insert(PartRow)
NEW_ENTRIES = insert(EntryRow)
INDEXED_ENTRIES = NEW_ENTRIES.returning(EntryRow.pk, EntryRow.position)


def chunks(items: Sequence[Any]) -> Iterator[list[Any]]:
    """``items`` in lists of at most CHUNK."""
    for start in range(0, len(items), CHUNK):
        yield list(items[start : start + CHUNK])


def now() -> datetime:
    """As the tables keep it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def stored_time(moment: datetime) -> datetime:
    """A time with or without a zone (then local), as the tables keep it."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def aware(moment: datetime | None) -> datetime:
    """A time of the tables, with its zone. Raises ValueError when a damaged row has none."""
    if moment is None:
        raise ValueError("a time is missing")
    return moment.replace(tzinfo=UTC)


def listed(value: Any) -> tuple[str, ...]:
    """A list of the tables. Raises ValueError when a damaged row has something else."""
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return tuple(value)


def agent_row(connection: Connection, tenant: str, name: str, lock: bool = False) -> Any:
    """The row of an agent, locked until the transaction ends; None when there is none.

    Raises ValueError for a damaged one: its head may seem to be empty.
    """
    row = connection.execute(LOCKED if lock else AGENT, {"tenant": tenant, "name": name}).one_or_none()
    if row is not None:
        aware(row.created_at)
    return row


def checked_name(name: str, what: str) -> str:
    """``name``, if a store can hold it: 1 to MOST_NAME characters, no NUL, no half of a surrogate pair."""
    if not isinstance(name, str) or not name or len(name) > MOST_NAME:
        raise InvalidName(f"{what} {str(name)[:60]!r} must be text of 1 to {MOST_NAME} characters")
    return checked_text(name, what)


def checked_text(text: str, what: str) -> str:
    """``text``, if every database can hold and index it. Raises InvalidName."""
    if len(text) > MOST_ID:
        raise InvalidName(f"{what} {text[:40]!r}… has {len(text)} characters: use at most {MOST_ID}")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise InvalidName(f"{what} {text[:60]!r} holds a NUL or half a surrogate pair: leave these characters out")
    return text


def entry_id(version_id: str, position: int) -> str:
    """The id of a new journal entry (16 hexadecimal digits); it stays with the entry from then on."""
    return sha256(f"{version_id}:{position}".encode()).hexdigest()[:16]


def body_of(entry: Entry) -> bytes:
    """UTF-8 JSON [content, payload]."""
    text = json.dumps([entry.content, entry.payload], ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def to_version(agent_id: str, row: Any, parts: Mapping[str, str]) -> Version:
    return Version(
        version_id=row.version_id,
        agent_id=agent_id,
        parent=row.parent,
        fingerprint=row.fingerprint,
        created_at=aware(row.created_at),
        parts=dict(parts),
        resets=listed(row.resets),
        depth=row.depth,
        pin=row.pin,
        pruned=row.pruned,
        retired=row.retired,
    )


class Sealed:
    """Reading and writing of rows whose bytes are sealed: entries and parts of one store."""

    def __init__(self, backend: Backend, cipher: Cipher, policy: Policy) -> None:
        self.backend, self.cipher, self.policy = backend, cipher, policy

    @property
    def indexed(self) -> bool:
        """Whether the full-text index holds the journal."""
        return self.policy.journal == "full" and not self.policy.encrypted

    def to_record(self, row: Any) -> Record:
        """The record of an EntryRow joined with ``version_id``. Raises CorruptState."""
        content, payload = None, None
        if row.body is not None:
            try:
                opened = self.cipher.open(row.body, b"entry:" + row.content_hash.encode())
                content, payload = json.loads(opened.decode("utf-8", "surrogatepass"))
            except (CorruptState, StoreKeyError, ValueError) as error:
                raise self._damaged(row, str(error)) from error
        entry = Entry(
            role=row.role,
            content=content,
            sub_states=listed(row.sub_states),
            message_id=row.message_id,
            source=row.source,
            payload=payload,
            thread_id=row.thread_id,
            run_id=row.run_id,
            tokens=row.tokens,
            gate=row.gate,
            moved=row.moved,
        )
        if row.body is not None and entry.content_hash != row.content_hash:
            raise self._damaged(row, "it is not what its hash says")
        return Record(row.entry_id, row.version_id, aware(row.made_at), replace(entry, digest=row.content_hash))

    def _damaged(self, row: Any, why: str) -> CorruptState:
        return CorruptState(
            f"journal entry {row.entry_id} in {self.backend.location} is damaged ({why}): restore a backup, or go back "
            "to a version before it: deltamem agents rollback"
        )

    def put_entries(self, connection: Connection, agent_pk: int, version_pk: int, records: Sequence[Record]) -> None:
        """Insert the entries of one version, and index their text."""
        if not records:
            return
        rows = [self._entry(agent_pk, version_pk, position, record) for position, record in enumerate(records)]
        if not self.indexed:
            connection.execute(NEW_ENTRIES, rows)
            return
        made = connection.execute(INDEXED_ENTRIES, rows)
        texts = [(row.pk, records[row.position].entry.content or "") for row in made]
        self.backend.index_add(connection, [Indexed(pk, agent_pk, text) for pk, text in texts])

    def _entry(self, agent_pk: int, version_pk: int, position: int, record: Record) -> dict[str, Any]:
        entry = record.entry
        named = {"role": entry.role, "message id": entry.message_id, "source": entry.source}
        for what, text in (named | {"thread id": entry.thread_id, "run id": entry.run_id}).items():
            checked_text(text or "", what)
        body = None
        if self.policy.journal == "full":
            body = self.cipher.seal(body_of(entry), b"entry:" + entry.content_hash.encode())
        return {
            "agent_pk": agent_pk,
            "version_pk": version_pk,
            "position": position,
            "entry_id": record.entry_id,
            "role": entry.role,
            "sub_states": list(entry.sub_states),
            "message_id": entry.message_id,
            "source": entry.source,
            "thread_id": entry.thread_id,
            "run_id": entry.run_id,
            "tokens": entry.tokens,
            "gate": entry.gate,
            "moved": entry.moved,
            "made_at": stored_time(record.made_at),
            "content_hash": entry.content_hash,
            "body": body,
        }

    def put_parts(
        self,
        connection: Connection,
        agent_pk: int,
        version_pk: int,
        checksums: Mapping[str, str],
        blobs: Iterable[bytes],
    ) -> None:
        """Insert the rows of a version's parts, and the bytes that are not there yet."""
        rows = [
            {"agent_pk": agent_pk, "checksum": (sha := checksum(data)), "data": self.seal(data, sha)} for data in blobs
        ]
        if rows:
            connection.execute(self.backend.insert_missing(BlobRow), rows)
        if checksums:
            connection.execute(
                NEW_PARTS,
                [
                    {"version_pk": version_pk, "name": name, "agent_pk": agent_pk, "checksum": sha}
                    for name, sha in checksums.items()
                ],
            )

    def seal(self, data: bytes, sha: str) -> bytes:
        return self.cipher.seal(data, b"blob:" + sha.encode())

    def open_part(self, data: bytes | None, sha: str, where: str) -> bytes:
        """The plain bytes of a part. Raises CorruptState, saying ``where``, when they are missing or damaged."""
        problem = "missing" if data is None else ""
        if data is not None:
            try:
                data = self.cipher.open(data, b"blob:" + sha.encode())
                problem = "" if checksum(data) == sha else "damaged"
            except (CorruptState, StoreKeyError) as error:
                problem = f"damaged ({error})"
        if problem or data is None:
            raise CorruptState(
                f"{where}: its bytes are {problem} in {self.backend.location}. Compute them again from the journal: "
                "deltamem store verify --repair; or restore a backup"
            )
        return data
