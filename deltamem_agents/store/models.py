"""The tables. Versions are append-only; the bytes of parts are kept once for each checksum."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1


class Base(DeclarativeBase):
    """Base of all tables."""


class MetaRow(Base):
    """``schema_version`` of the file."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(String, primary_key=True)
    value: Mapped[str] = mapped_column(String)


class AgentRow(Base):
    __tablename__ = "agents"
    agent_id: Mapped[str] = mapped_column(String, primary_key=True)
    head: Mapped[str | None] = mapped_column(String)
    created_at: Mapped[datetime] = mapped_column(DateTime)  # UTC


class VersionRow(Base):
    __tablename__ = "versions"
    version_id: Mapped[str] = mapped_column(String, primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.agent_id", ondelete="CASCADE"), index=True)
    parent: Mapped[str | None] = mapped_column(String, index=True)
    fingerprint: Mapped[str] = mapped_column(String)
    resets: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime)  # UTC


class BlobRow(Base):
    """Bytes by their SHA-256."""

    __tablename__ = "blobs"
    checksum: Mapped[str] = mapped_column(String, primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class PartRow(Base):
    """One sub-state of one version."""

    __tablename__ = "parts"
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.version_id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String, primary_key=True)
    checksum: Mapped[str] = mapped_column(ForeignKey("blobs.checksum"), index=True)


class EntryRow(Base):
    """One message of the journal; ``position`` counts within its version."""

    __tablename__ = "entries"
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.version_id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(String)
    content: Mapped[str] = mapped_column(Text)
    sub_states: Mapped[list[str]] = mapped_column(JSON)
    message_id: Mapped[str | None] = mapped_column(String)
    source: Mapped[str | None] = mapped_column(String)
    payload: Mapped[dict[str, Any] | None] = mapped_column(JSON)
