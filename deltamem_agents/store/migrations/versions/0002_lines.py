"""Tenants, lines, provenance, bytes per agent, sealed text, and a full-text index."""

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from alembic import context, op
from sqlalchemy import Connection, MetaData, Table, select

from deltamem_agents.store.backend import Backend, Indexed
from deltamem_agents.store.migrations.lines import Known, arrange
from deltamem_agents.store.migrations.tables import NEW, OLD

revision = "0002"
down_revision = "0001"

BATCH = 500
TENANT = "default"
THREAD = "thread "  # 0.1.0 wrote the thread into the source, behind this word
MOVED = ("entries", "parts", "versions", "blobs", "agents")  # a table before those that it refers to
KEPT = ("version_id", "parent", "fingerprint", "resets", "created_at")  # columns of versions

meta, agents, lines, versions, blobs, parts, entries = (
    NEW.tables[name] for name in ("meta", "agents", "lines", "versions", "blobs", "parts", "entries")
)


def upgrade() -> None:
    bind = op.get_bind()
    backend: Backend = context.config.attributes["backend"]
    for name in MOVED:
        op.rename_table(name, f"old_{name}")
    NEW.create_all(bind)
    backend.create_index(bind)
    bind.execute(meta.delete().where(meta.c.key == "schema_version"))
    bind.execute(meta.insert().values(key="journal", value="full"))
    _move_agents(bind)
    _move_bytes(bind)
    _move_entries(bind, backend)
    for name in MOVED:
        op.drop_table(f"old_{name}")


def _old(name: str) -> Table:
    """A table of 0001 under the name that it has meanwhile."""
    return OLD.tables[name].to_metadata(MetaData(), name=f"old_{name}")


def _move_agents(bind: Connection) -> None:
    """Agents, lines and versions."""
    old, first = _old("agents"), 1
    found = bind.execute(select(old).order_by(old.c.created_at, old.c.agent_id)).all()
    for pk, row in enumerate(found, 1):
        values = {"pk": pk, "tenant": TENANT, "name": row.agent_id, "head": row.head, "created_at": row.created_at}
        bind.execute(agents.insert().values(values))
        first = _move_versions(bind, pk, row.agent_id, row.head, first)


def _move_versions(bind: Connection, agent_pk: int, name: str, head: str | None, first: int) -> int:
    """The versions of an agent, whose lines count from ``first``; returns the next free number."""
    old = _old("versions")
    rows = {row.version_id: row for row in bind.execute(select(old).where(old.c.agent_id == name))}
    places, left = arrange({key: Known(row.parent, row.created_at) for key, row in rows.items()}, head, first)
    for pk, place in left.items():
        line, depth = place or (None, None)
        bind.execute(lines.insert().values(pk=pk, agent_pk=agent_pk, parent_line=line, parent_depth=depth))
    fresh = {"agent_pk": agent_pk, "pruned": False, "retired": False}
    placed = [
        {column: getattr(rows[key], column) for column in KEPT} | place._asdict() | fresh
        for key, place in places.items()
    ]
    if placed:
        bind.execute(versions.insert(), placed)
    return first + len(left)


def _move_bytes(bind: Connection) -> None:
    """Parts, and their bytes once for each agent."""
    old_parts, old_blobs = _old("parts"), _old("blobs")
    owned = (
        select(versions.c.pk, versions.c.agent_pk, old_parts.c.name, old_parts.c.checksum)
        .join(old_parts, old_parts.c.version_id == versions.c.version_id)
        .subquery()
    )
    once = select(owned.c.agent_pk, owned.c.checksum).distinct().subquery()
    found = select(once.c.agent_pk, once.c.checksum, old_blobs.c.data).join(
        old_blobs, old_blobs.c.checksum == once.c.checksum
    )
    bind.execute(blobs.insert().from_select(["agent_pk", "checksum", "data"], found))
    found = select(owned.c.pk, owned.c.name, owned.c.agent_pk, owned.c.checksum)
    bind.execute(parts.insert().from_select(["version_pk", "name", "agent_pk", "checksum"], found))


def _move_entries(bind: Connection, backend: Backend) -> None:
    """The journal, and its index."""
    last = 0
    for batch in _batches(bind):
        rows = [_entry(pk, row) for pk, row in enumerate(batch, last + 1)]
        bind.execute(entries.insert(), rows)
        texts = zip(rows, batch, strict=True)
        backend.index_add(bind, [Indexed(new["pk"], new["agent_pk"], row.content) for new, row in texts])
        last += len(rows)


def _batches(bind: Connection) -> Iterator[list[Any]]:
    old = _old("entries")
    query = (
        select(old, versions.c.pk.label("version_pk"), versions.c.agent_pk, versions.c.created_at)
        .join(versions, versions.c.version_id == old.c.version_id)
        .order_by(versions.c.pk, old.c.position)
    )
    with bind.execute(query.execution_options(yield_per=BATCH)) as found:
        yield from (list(batch) for batch in found.partitions(BATCH))


def _entry(pk: int, row: Any) -> dict[str, Any]:
    thread = row.source[len(THREAD) :] or None if (row.source or "").startswith(THREAD) else None
    return {
        "pk": pk,
        "agent_pk": row.agent_pk,
        "version_pk": row.version_pk,
        "position": row.position,
        "entry_id": sha256(f"{row.version_id}:{row.position}".encode()).hexdigest()[:16],
        "role": row.role,
        "sub_states": row.sub_states,
        "message_id": row.message_id,
        "source": row.source if thread is None else None,
        "thread_id": thread,
        "made_at": row.created_at,
        "content_hash": sha256(_json([row.role, row.content, row.sub_states, row.payload], sort=True)).hexdigest(),
        "body": _json([row.content, row.payload]),
    }


def _json(document: Any, sort: bool = False) -> bytes:
    text = json.dumps(document, ensure_ascii=False, sort_keys=sort, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")
