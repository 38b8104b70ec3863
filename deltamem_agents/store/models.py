"""The tables, for SQLite and PostgreSQL.

A version stands on a **line**: a run of versions, each the child of the one before. A commit after the newest version
of a line makes it longer; a commit after any other begins a new line, which knows where it left the old one. So the way
to a version is a few (line, depth) pairs, however many versions it has, and what lies on it is found by index.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "0002"  # revision of the newest migration
OURS = {"meta", "agents", "versions", "blobs", "parts", "entries"}  # tables of every revision
Key = BigInteger().with_variant(Integer, "sqlite")


def _owner() -> Mapped[int]:
    return mapped_column(ForeignKey("agents.pk", ondelete="CASCADE"))


class Base(DeclarativeBase):
    """Base of all tables."""


class MetaRow(Base):
    """What holds for the whole store: its policy, and how to tell a right key from a wrong one."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(String, primary_key=True)
    value: Mapped[str] = mapped_column(String)


class AgentRow(Base):
    __tablename__ = "agents"
    __table_args__ = (UniqueConstraint("tenant", "name"),)
    pk: Mapped[int] = mapped_column(Key, primary_key=True)
    tenant: Mapped[str] = mapped_column(String)
    name: Mapped[str] = mapped_column(String)
    head: Mapped[str | None] = mapped_column(String)  # a version_id
    created_at: Mapped[datetime] = mapped_column(DateTime)  # UTC, as are all times


class LineRow(Base):
    """Where a line left another: after the version at ``parent_depth`` of ``parent_line`` (None: nowhere)."""

    __tablename__ = "lines"
    pk: Mapped[int] = mapped_column(Key, primary_key=True)
    agent_pk: Mapped[int] = _owner()
    parent_line: Mapped[int | None] = mapped_column(Key)
    parent_depth: Mapped[int | None] = mapped_column(Integer)
    __table_args__ = (Index("ix_lines_agent_pk", "agent_pk"),)


class VersionRow(Base):
    __tablename__ = "versions"
    pk: Mapped[int] = mapped_column(Key, primary_key=True)
    agent_pk: Mapped[int] = _owner()
    version_id: Mapped[str] = mapped_column(String)
    parent: Mapped[str | None] = mapped_column(String)  # a version_id
    fingerprint: Mapped[str] = mapped_column(String)
    resets: Mapped[list[str]] = mapped_column(JSON)
    line: Mapped[int] = mapped_column(ForeignKey("lines.pk", ondelete="CASCADE"))
    depth: Mapped[int] = mapped_column(Integer)
    pin: Mapped[str | None] = mapped_column(String)
    pruned: Mapped[bool] = mapped_column(Boolean)
    retired: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(DateTime)
    __table_args__ = (UniqueConstraint("agent_pk", "version_id"), UniqueConstraint("line", "depth"))


class BlobRow(Base):
    """The bytes of a part, sealed by the store's cipher; ``checksum`` is that of the plain bytes."""

    __tablename__ = "blobs"
    agent_pk: Mapped[int] = mapped_column(ForeignKey("agents.pk", ondelete="CASCADE"), primary_key=True)
    checksum: Mapped[str] = mapped_column(String, primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class PartRow(Base):
    """One sub-state of one version. The row of a pruned version stays; its bytes may be gone."""

    __tablename__ = "parts"
    version_pk: Mapped[int] = mapped_column(ForeignKey("versions.pk", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String, primary_key=True)
    agent_pk: Mapped[int] = mapped_column(Key)
    checksum: Mapped[str] = mapped_column(String)
    __table_args__ = (Index("ix_parts_blob", "agent_pk", "checksum"),)


class EntryRow(Base):
    """One message of the journal; ``position`` counts within its version.

    ``body`` is UTF-8 JSON [content, payload], sealed by the store's cipher; NULL where hashes alone are kept.
    """

    __tablename__ = "entries"
    pk: Mapped[int] = mapped_column(Key, primary_key=True)
    agent_pk: Mapped[int] = _owner()
    version_pk: Mapped[int] = mapped_column(ForeignKey("versions.pk", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    entry_id: Mapped[str] = mapped_column(String)
    role: Mapped[str] = mapped_column(String)
    sub_states: Mapped[list[str]] = mapped_column(JSON)
    message_id: Mapped[str | None] = mapped_column(String)
    source: Mapped[str | None] = mapped_column(String)
    thread_id: Mapped[str | None] = mapped_column(String)
    run_id: Mapped[str | None] = mapped_column(String)
    tokens: Mapped[int | None] = mapped_column(Integer)
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    moved: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    made_at: Mapped[datetime] = mapped_column(DateTime)
    content_hash: Mapped[str] = mapped_column(String)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    __table_args__ = (
        UniqueConstraint("version_pk", "position"),
        Index("ix_entries_message", "agent_pk", "message_id"),
        Index("ix_entries_entry", "agent_pk", "entry_id"),
    )


class RedirectRow(Base):
    """A version that was rewritten when entries were forgotten, and the one in its place (None: the empty memory)."""

    __tablename__ = "redirects"
    agent_pk: Mapped[int] = mapped_column(ForeignKey("agents.pk", ondelete="CASCADE"), primary_key=True)
    version_id: Mapped[str] = mapped_column(String, primary_key=True)
    target: Mapped[str | None] = mapped_column(String)


class TombstoneRow(Base):
    """The id of a message that was forgotten: it is not written again."""

    __tablename__ = "tombstones"
    agent_pk: Mapped[int] = mapped_column(ForeignKey("agents.pk", ondelete="CASCADE"), primary_key=True)
    message_id: Mapped[str] = mapped_column(String, primary_key=True)
