"""On which line each version of an agent stands, for versions that knew their parents alone."""

import heapq
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple


class Known(NamedTuple):
    """What is known of a version."""

    parent: str | None
    made_at: datetime


class Place(NamedTuple):
    """Where it stands: number of the line, number of its ancestors."""

    line: int
    depth: int


def arrange(
    versions: Mapping[str, Known], head: str | None, first: int
) -> tuple[dict[str, Place], dict[int, Place | None]]:
    """Places of all versions, parents before children and else the oldest first; and where each line left another.

    The way to the head is one line. A version elsewhere stands on its parent's line when it is the first to come after
    it, else on a new one.

    Args:
        first: number of the first line.

    Raises:
        ValueError: a version's parent is not there.
    """
    children: dict[str | None, list[str]] = defaultdict(list)
    for name, known in versions.items():
        children[known.parent].append(name)
    way = _way(versions, head)
    taken = {versions[name].parent for name in way}  # versions that have their follower
    places: dict[str, Place] = {}
    lines: dict[int, Place | None] = {}
    ready = [(versions[name].made_at, name) for name in children[None]]
    heapq.heapify(ready)
    while ready:
        _, name = heapq.heappop(ready)
        parent = versions[name].parent
        before = None if parent is None else places[parent]
        if before is not None and (name in way or parent not in taken):
            places[name] = Place(before.line, before.depth + 1)
            taken.add(parent)
        else:
            line = first + len(lines)
            lines[line] = before
            places[name] = Place(line, 0 if before is None else before.depth + 1)
        for child in children[name]:
            heapq.heappush(ready, (versions[child].made_at, child))
    if lost := versions.keys() - places.keys():
        raise ValueError(f"the parent of version {min(lost)} is missing")
    return places, lines


def _way(versions: Mapping[str, Known], head: str | None) -> set[str]:
    """A head and its ancestors."""
    way: set[str] = set()
    while head is not None and head in versions and head not in way:
        way.add(head)
        head = versions[head].parent
    return way
