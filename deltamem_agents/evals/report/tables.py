"""Cells and tables in Markdown."""

from collections.abc import Iterable, Sequence

from ..statistics import Interval

NOTHING = "-"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (columns, marks, *rows))


def percent(found: Interval | None, sign: bool = False) -> str:
    """A share in per cent with its 95 % interval; of a single example there is no interval."""
    if found is None:
        return NOTHING
    mean, low, high = (
        f"{round(100 * share, 1) + 0.0:{'+.1f' if sign else '.1f'}}"  # + 0.0: no minus before a zero
        for share in (found.mean, found.low, found.high)
    )
    return f"{mean} (1 example)" if found.clusters < 2 else f"{mean} [{low}, {high}]"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands set apart."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def size(count: float | None) -> str:
    """Bytes, in the unit that fits."""
    if count is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
