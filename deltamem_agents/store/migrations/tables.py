"""The tables as they were at revisions 0001 and 0002. Never changed: databases of that age are out there."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

OLD = MetaData()  # 0001

Table("meta", OLD, Column("key", String, primary_key=True), Column("value", String, nullable=False))
Table(
    "agents",
    OLD,
    Column("agent_id", String, primary_key=True),
    Column("head", String),
    Column("created_at", DateTime, nullable=False),
)
Table(
    "versions",
    OLD,
    Column("version_id", String, primary_key=True),
    Column("agent_id", String, ForeignKey("agents.agent_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("parent", String, index=True),
    Column("fingerprint", String, nullable=False),
    Column("resets", JSON, nullable=False),
    Column("created_at", DateTime, nullable=False),
)
Table("blobs", OLD, Column("checksum", String, primary_key=True), Column("data", LargeBinary, nullable=False))
Table(
    "parts",
    OLD,
    Column("version_id", String, ForeignKey("versions.version_id", ondelete="CASCADE"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("checksum", String, ForeignKey("blobs.checksum"), nullable=False, index=True),
)
Table(
    "entries",
    OLD,
    Column("version_id", String, ForeignKey("versions.version_id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("role", String, nullable=False),
    Column("content", Text, nullable=False),
    Column("sub_states", JSON, nullable=False),
    Column("message_id", String),
    Column("source", String),
    Column("payload", JSON),
)

NEW = MetaData()  # 0002
KEY = BigInteger().with_variant(Integer, "sqlite")


def _owner(primary: bool = False) -> "Column[int]":
    return Column("agent_pk", KEY, ForeignKey("agents.pk", ondelete="CASCADE"), primary_key=primary, nullable=False)


def _key() -> "Column[int]":
    return Column("pk", KEY, primary_key=True)


Table("meta", NEW, Column("key", String, primary_key=True), Column("value", String, nullable=False))
Table(
    "agents",
    NEW,
    _key(),
    Column("tenant", String, nullable=False),
    Column("name", String, nullable=False),
    Column("head", String),
    Column("created_at", DateTime, nullable=False),
    UniqueConstraint("tenant", "name"),
)
Table(
    "lines",
    NEW,
    _key(),
    _owner(),
    Column("parent_line", KEY),
    Column("parent_depth", Integer),
    Index("ix_lines_agent_pk", "agent_pk"),
)
Table(
    "versions",
    NEW,
    _key(),
    _owner(),
    Column("version_id", String, nullable=False),
    Column("parent", String),
    Column("fingerprint", String, nullable=False),
    Column("resets", JSON, nullable=False),
    Column("line", KEY, ForeignKey("lines.pk", ondelete="CASCADE"), nullable=False),
    Column("depth", Integer, nullable=False),
    Column("pin", String),
    Column("pruned", Boolean, nullable=False),
    Column("retired", Boolean, nullable=False),
    Column("created_at", DateTime, nullable=False),
    UniqueConstraint("agent_pk", "version_id"),
    UniqueConstraint("line", "depth"),
)
Table(
    "blobs",
    NEW,
    _owner(primary=True),
    Column("checksum", String, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
Table(
    "parts",
    NEW,
    Column("version_pk", KEY, ForeignKey("versions.pk", ondelete="CASCADE"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("agent_pk", KEY, nullable=False),
    Column("checksum", String, nullable=False),
    Index("ix_parts_blob", "agent_pk", "checksum"),
)
Table(
    "entries",
    NEW,
    _key(),
    _owner(),
    Column("version_pk", KEY, ForeignKey("versions.pk", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("entry_id", String, nullable=False),
    Column("role", String, nullable=False),
    Column("sub_states", JSON, nullable=False),
    Column("message_id", String),
    Column("source", String),
    Column("thread_id", String),
    Column("run_id", String),
    Column("tokens", Integer),
    Column("gate", JSON),
    Column("moved", JSON),
    Column("made_at", DateTime, nullable=False),
    Column("content_hash", String, nullable=False),
    Column("body", LargeBinary),
    UniqueConstraint("version_pk", "position"),
    Index("ix_entries_message", "agent_pk", "message_id"),
    Index("ix_entries_entry", "agent_pk", "entry_id"),
)
Table("redirects", NEW, _owner(primary=True), Column("version_id", String, primary_key=True), Column("target", String))
Table("tombstones", NEW, _owner(primary=True), Column("message_id", String, primary_key=True))
