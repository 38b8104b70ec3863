"""What was written already, and by which thread: what writing exactly once asks the journal."""

from collections.abc import Collection

from sqlalchemy import Connection, exists, select

from .lines import Way, on_way
from .models import EntryRow, VersionRow
from .rows import chunks


def written(c: Connection, way: Way, agent_pk: int, message_ids: Collection[str]) -> set[tuple[str, str]]:
    """(message id, content hash) of those messages that are on the way, or on a version that is retired."""
    table, there = on_way(way)
    query = (
        select(EntryRow.message_id, EntryRow.content_hash)
        .join(VersionRow, VersionRow.pk == EntryRow.version_pk)
        .where(EntryRow.agent_pk == agent_pk)
        .where(VersionRow.retired | exists(select(table.c.line).where(there)))
    )
    return {
        (row.message_id, row.content_hash)
        for ids in chunks(list(message_ids))
        for row in c.execute(query.where(EntryRow.message_id.in_(ids)))
    }


def last_written(c: Connection, way: Way, messages: Collection[tuple[str | None, str]]) -> str | None:
    """The version on the way in which the last of these messages was written."""
    wanted = set(messages)
    table, there = on_way(way)
    query = (
        select(VersionRow.depth, VersionRow.version_id, EntryRow.message_id, EntryRow.content_hash)
        .join(EntryRow, EntryRow.version_pk == VersionRow.pk)
        .join(table, there)
    )
    found = [
        (row.depth, row.version_id)
        for ids in chunks([identity for identity, _ in wanted if identity is not None])
        for row in c.execute(query.where(EntryRow.message_id.in_(ids)))
        if (row.message_id, row.content_hash) in wanted
    ]
    return max(found)[1] if found else None


def wrote(c: Connection, way: Way, thread_id: str) -> bool:
    """Whether a thread wrote anything on the way."""
    table, there = on_way(way)
    query = (
        select(EntryRow.pk)
        .join(VersionRow, VersionRow.pk == EntryRow.version_pk)
        .join(table, there)
        .where(EntryRow.thread_id == thread_id)
    )
    return c.execute(query.limit(1)).first() is not None
