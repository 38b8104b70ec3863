"""What the store withstands, measured. One command for each row of the table in docs/store.md.

    python benchmarks/store_fire.py kill
    python benchmarks/store_fire.py turn --folder /var/tmp

Each writes its figures, the machine, the versions and the command to benchmarks/results/store/NAME.json, and fails when
something does not hold. The options of a command are the keywords of its function; ``--help`` shows them.
"""

import argparse
import json
import os
import platform
import shlex
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from math import ceil
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "store"
COMMANDS = {
    "kill": "store_fire_kill",
    "crowd": "store_fire_crowd",
    "damage": "store_fire_damage",
    "postgres": "store_fire_postgres",
    "replay": "store_fire_replay",
    "turn": "store_fire_turn",
    "growth": "store_fire_growth",
    "erase": "store_fire_erase",
}
LIBRARIES = ("deltamem-agents", "SQLAlchemy", "psycopg", "torch", "transformers")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and tail of some times, in milliseconds."""
    figures = {"p50_ms": percentile(seconds, 50), "p99_ms": percentile(seconds, 99), "max_ms": max(seconds)}
    return {name: round(1000 * value, 3) for name, value in figures.items()}


def sync_times(folder: Path, size: int = 160_000, times: int = 200) -> dict[str, float]:
    """What the disk alone takes: ``size`` bytes written over others and synced, as a commit does to its log."""
    path = folder / "sync"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    took = []
    try:
        os.pwrite(descriptor, bytes(20 * size), 0)
        os.fsync(descriptor)
        for i in range(times):
            begin = time.perf_counter()
            os.pwrite(descriptor, os.urandom(size), i % 20 * size)
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - begin)
    finally:
        os.close(descriptor)
        path.unlink()
    return spread(took)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory[0] / 2**20) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in LIBRARIES:
        try:
            found[name.lower()] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measure(
    name: str, function: Callable[..., dict[str, Any]], folder: Path | None, results: Path, options: dict[str, Any]
) -> Path:
    """Run one command in a folder of its own, and write down what came out."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deltamem-fire-", dir=folder) as place:
        load = os.getloadavg()[0]
        sync = sync_times(Path(place))
        begin = time.monotonic()
        figures = function(Path(place), **options)
    result = {
        "name": name,
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "benchmarks/store_fire.py", *_arguments()]),
        "machine": machine() | {"load_before": round(load, 2), "load_after": round(os.getloadavg()[0], 2)},
        "disk_alone_160_kb_synced": sync,
        "versions": versions(),
        "seconds": round(time.monotonic() - begin, 1),
        "options": options,
        "figures": figures,
    }
    results.mkdir(parents=True, exist_ok=True)
    target = results / f"{name}.json"
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return target


def _arguments() -> list[str]:
    """The command's arguments, without folders: they are this machine's."""
    arguments = sys.argv[1:]
    for option in ("--folder", "--results"):
        if option in arguments:
            at = arguments.index(option)
            arguments = [*arguments[:at], *arguments[at + 2 :]]
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("--folder", type=Path, help="where the files are made, and deleted afterwards")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are written")
    name, rest = sys.argv[1:2], []
    function = None
    if name and name[0] in COMMANDS:
        function = getattr(import_module(COMMANDS[name[0]]), name[0])
        rest = [p for p in signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for parameter in rest:
            parser.add_argument(f"--{parameter.name}", type=type(parameter.default), default=parameter.default)
    given = parser.parse_args()
    assert function is not None
    target = measure(given.name, function, given.folder, given.results, {p.name: getattr(given, p.name) for p in rest})
    print(target.read_text())


if __name__ == "__main__":
    main()
