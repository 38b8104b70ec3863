"""Figures of a long run from its rows: turn times, memory, recall over the turns and by age; table and plot."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from long_run_script import Row, Settings
from measuring import has_matplotlib, print_table, ratio

WINDOW, WINDOWS = 250, 20  # turns in a window; a short run has so many windows, of 10 turns at least
SPAN = 500  # turns at the beginning and at the end that are compared
SETTLED = 50  # turns after which a process's memory is taken for its beginning
WARM = 3  # turns of a process that are not timed
AGES = ((1, 10), (11, 50), (51, 200), (201, None))  # turns


def summary(rows: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """All figures of the one agent."""
    turns = [row for row in rows if row["row"] == "turn"]
    forks, days = ([row for row in rows if row["row"] == what] for what in ("fork", "day"))
    lookups = [row for row in turns if row["kind"] == "lookup"]
    return {
        "turn": times(turns, settings),
        "memory": resident(turns),
        "state_bytes": sorted({row["state_bytes"] for row in days}),
        "files": {name: {"first": turns[0][name], "last": turns[-1][name], "most": max(row[name] for row in turns)}
                  for name in ("memory_db", "checkpoints_db")},
        "recall": recall(turns),
        "small_talk": _exact([row for row in turns if row["kind"] == "talk"]),
        "window_turns": (size := min(WINDOW, max(10, len(turns) // WINDOWS))),
        "windows": [window(turns[start : start + size]) for start in range(0, len(turns), size)],
        "lookups": {"asked": len(lookups), "called": sum(bool(row["tool_calls"]) for row in lookups)},
        "processes": [row["before_turn"] for row in rows if row["row"] == "process"],
        "taken_over": [{"turn": row["turn"], "how": row["how"]} for row in turns if row["how"] != "whole"],
        "forks": forks,
        "days": {name: _median(days, name) for name in ("delete_threads_s", "prune_s")} | {"count": len(days)},
    }  # fmt: skip


def times(turns: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """Medians of the first and the last turns after all facts were told; those of a process's start are left out."""
    timed = [row for row in turns if row["n"] >= WARM and row["how"] == "whole" and row["turn"] >= settings.facts]
    span = min(SPAN, len(timed) // 2)
    found: dict[str, Any] = {"compared_turns": span}
    for name in ("wall_s", "cpu_s"):
        first, last = _median(timed[:span], name), _median(timed[len(timed) - span :], name)
        found[name] = {"median": _median(timed, name), "first": first, "last": last, "ratio": ratio(last, first)}
    kinds = sorted({row["kind"] for row in timed})
    found["cpu_s_by_kind"] = {kind: _median([r for r in timed if r["kind"] == kind], "cpu_s") for kind in kinds}
    tenths = sorted({10 * (row["into_thread"] // 10) for row in timed})
    found["cpu_s_by_turns_into_the_thread"] = {
        str(t): _median([r for r in timed if t <= r["into_thread"] < t + 10], "cpu_s") for t in tenths
    }
    return found


def resident(turns: Sequence[Row]) -> dict[str, Any]:
    """Resident bytes: of the first and the last process after equally many turns, and of the longest one."""
    processes = {number: [r for r in turns if r["process"] == number] for number in {r["process"] for r in turns}}
    first, last = processes[min(processes)], processes[max(processes)]
    after = min(len(first), len(last))
    longest = max(processes.values(), key=len)
    start = min(SETTLED, len(longest)) - 1
    return {
        "after_turns_of_the_process": after,
        "first_process": first[after - 1]["rss"],
        "last_process": last[after - 1]["rss"],
        "ratio": ratio(last[after - 1]["rss"], first[after - 1]["rss"]),
        "longest_process": {
            "turns": len(longest), f"after_{start + 1}": longest[start]["rss"], "at_its_end": longest[-1]["rss"],
            "ratio": ratio(longest[-1]["rss"], longest[start]["rss"]),
        },
        "most": max(row["rss"] for row in turns),
    }  # fmt: skip


def recall(turns: Iterable[Row]) -> dict[str, Any]:
    """Exact answers: of all questions, and by how many turns ago the fact was told last."""
    asked = [row for row in turns if row["kind"] == "ask"]
    ages = []
    for low, high in AGES:
        some = [row for row in asked if low <= row["age"] and (high is None or row["age"] <= high)]
        ages.append({"turns_ago": f"{low}-{high}" if high else f"{low} or more", **_exact(some)})
    return {**_exact(asked), "by_age": ages}


def window(turns: Sequence[Row]) -> dict[str, Any]:
    """One point of the series."""
    return {
        "first_turn": turns[0]["turn"],
        **_exact([row for row in turns if row["kind"] == "ask"]),
        "small_talk_exact_match": _exact([row for row in turns if row["kind"] == "talk"])["exact_match"],
        **{name: _median([row for row in turns if row["n"] >= WARM], name) for name in ("wall_s", "cpu_s")},
        **{name: turns[-1][name] for name in ("rss", "memory_db", "checkpoints_db", "process")},
    }


def _exact(rows: Sequence[Row]) -> dict[str, Any]:
    share = round(sum(row["right"] for row in rows) / len(rows), 4) if rows else None
    return {"exact_match": share, "questions": len(rows)}


def _median(rows: Sequence[Row], name: str) -> float | None:
    return round(median(row[name] for row in rows), 5) if rows else None


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def report(document: dict[str, Any]) -> None:
    """The figures as Markdown tables."""
    turn, memory, crowd = document["turn"], document["memory"], document["crowd"]
    print_table(
        ("one agent", "first", "last", "ratio"),
        [
            *(
                (f"turn, {name}", *(turn[name][side] for side in ("first", "last", "ratio")))
                for name in ("wall_s", "cpu_s")
            ),
            ("resident memory", _mib(memory["first_process"]), _mib(memory["last_process"]), memory["ratio"]),
            *((n, _mib(f["first"]), _mib(f["last"]), None) for n, f in document["files"].items()),
        ],
    )
    rows = [{"turns_ago": "all", **document["recall"]}, *document["recall"]["by_age"]]
    rows.append({"turns_ago": "small talk", **document["small_talk"]})
    print_table(
        ("told so many turns ago", "exact match", "questions"),
        [(row["turns_ago"], row["exact_match"], row["questions"]) for row in rows],
    )
    print_table(
        ("agents at once", "turns/s", "exact match", "crossings", "peak memory"),
        [
            (
                crowd["agents"],
                crowd["turns_per_s"],
                crowd["exact_match"],
                len(crowd["crossings"]),
                _mib(crowd["peak_rss"]),
            )
        ],
    )


def plot(document: dict[str, Any], path: Path) -> None:
    """Time of a turn, resident memory and recall over the turns; recall by age."""
    if not has_matplotlib():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    (time, rss), (over, by_age) = figure.subplots(2, 2)
    windows = document["windows"]
    at = [row["first_turn"] for row in windows]
    for name, label in (("wall_s", "clock"), ("cpu_s", "processor")):
        time.plot(at, [row[name] for row in windows], marker=".", label=label)
    time.set(ylabel="seconds a turn, median", xlabel="turn")
    time.legend()
    rss.plot(at, [row["rss"] / 2**20 for row in windows], marker=".")
    rss.set(ylabel="resident memory, MiB", xlabel="turn")
    for axes in (time, rss):
        axes.set_ylim(0, 1.15 * axes.dataLim.y1)
    for name, label in (("exact_match", "questions"), ("small_talk_exact_match", "small talk")):
        asked = [(row["first_turn"], row[name]) for row in windows if row[name] is not None]
        over.plot([x for x, _ in asked], [y for _, y in asked], marker=".", label=label)
    over.set(ylabel="exact match", xlabel="turn", ylim=(-0.02, 1.02))
    over.legend()
    for start in document["processes"][1:]:
        for axes in (time, rss, over):
            axes.axvline(start, color="gray", linestyle=":", linewidth=1)
    ages = [row for row in document["recall"]["by_age"] if row["questions"]]
    drawn = by_age.bar([row["turns_ago"] for row in ages], [row["exact_match"] for row in ages])
    by_age.bar_label(drawn, [f"{row['exact_match']:.2f} of {row['questions']}" for row in ages])
    by_age.set(ylabel="exact match", xlabel="turns since the fact was told", ylim=(0, 1.1))
    figure.savefig(path, dpi=110)
