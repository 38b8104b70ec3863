"""Ways through the tree of versions, as a few stretches of lines (see models.py), and joins with what lies on them."""

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    and_,
    column,
    delete,
    func,
    select,
    update,
    values,
)

from .models import LineRow, VersionRow


class Stretch(NamedTuple):
    """The versions of one line with ``low`` < depth <= ``high``."""

    line: int
    low: int
    high: int


Way = list[Stretch]


def way_to(connection: Connection, line: int, depth: int) -> Way:
    """From the version at (line, depth) back to its first ancestor, newest stretch first."""
    way: Way = []
    at: int | None = line
    while at is not None:
        left = connection.execute(select(LineRow.parent_line, LineRow.parent_depth).where(LineRow.pk == at)).one()
        way.append(Stretch(at, -1 if left.parent_line is None else left.parent_depth, depth))
        at, depth = left.parent_line, left.parent_depth
    return way


def beyond(way: Way, other: Way) -> Way:
    """The part of ``way`` that is not on ``other``."""
    shared = {stretch.line: stretch.high for stretch in other}
    cut = [Stretch(s.line, max(s.low, min(s.high, shared.get(s.line, s.low))), s.high) for s in way]
    return [stretch for stretch in cut if stretch.low < stretch.high]


def newest(way: Way, count: int | None) -> Way:
    """The part of ``way`` with its newest ``count`` versions (None: all), as if no depth on it were missing."""
    if count is None:
        return way
    cut: Way = []
    for stretch in way:
        if count <= 0:
            break
        cut.append(Stretch(stretch.line, max(stretch.low, stretch.high - count), stretch.high))
        count -= stretch.high - stretch.low
    return cut


def holds(way: Way, line: int, depth: int) -> bool:
    """Whether the version at (line, depth) is on the way."""
    return any(s.line == line and s.low < depth <= s.high for s in way)


def on_way(way: Way) -> tuple[Any, ColumnElement[bool]]:
    """A table of the stretches, and the condition that joins VersionRow with it."""
    columns = column("line", BigInteger), column("low", Integer), column("high", Integer)
    table = values(*columns, name="way").data(list(way) or [(-1, -1, -1)]).cte("way")
    condition = and_(VersionRow.line == table.c.line, VersionRow.depth > table.c.low, VersionRow.depth <= table.c.high)
    return table, condition


def mark_retired(connection: Connection, way: Way, retired: bool) -> None:
    """Set the flag on all versions of a way."""
    for stretch in way:
        there = and_(VersionRow.line == stretch.line, VersionRow.depth > stretch.low, VersionRow.depth <= stretch.high)
        connection.execute(update(VersionRow).where(there, VersionRow.retired != retired).values(retired=retired))


def straighten(connection: Connection, agent_pk: int) -> None:
    """After deletions: drop empty lines, and join a line to the one whose end it left.

    So the ways stay short however often something is forgotten or collected.
    """
    ends: dict[int, int] = dict(
        connection.execute(
            select(VersionRow.line, func.max(VersionRow.depth))
            .where(VersionRow.agent_pk == agent_pk)
            .group_by(VersionRow.line)
        ).all()  # type: ignore[arg-type]
    )
    lines = connection.execute(select(LineRow).where(LineRow.agent_pk == agent_pk).order_by(LineRow.pk)).all()
    into = {row.pk: row.pk for row in lines}
    for row in lines:
        if row.pk not in ends:
            connection.execute(delete(LineRow).where(LineRow.pk == row.pk))
            continue
        target = into.get(row.parent_line, row.parent_line)
        if target is not None and ends.get(target) == row.parent_depth:
            connection.execute(update(VersionRow).where(VersionRow.line == row.pk).values(line=target))
            connection.execute(update(LineRow).where(LineRow.parent_line == row.pk).values(parent_line=target))
            connection.execute(delete(LineRow).where(LineRow.pk == row.pk))
            ends[target] = ends.pop(row.pk)
            into[row.pk] = target
