"""One agent over thousands of turns, through killed processes and forks; then many agents at once. On a CPU.

    PYTHONPATH=. python benchmarks/long_run.py --turns 5000 --facts 50 --forks 10 --restarts 5 --agents 200

Every turn is answered by the default adapter and written to SQLite files, memory and checkpoints, synced. Facts are
told, told again, changed, looked up by a tool and asked for, mixed with small talk. The process is killed (SIGKILL) at
random moments, and the next one goes on. Forks read the memory of an older checkpoint. Measured: seconds of a turn, of
the clock and of the processor, resident memory, sizes of the files, exact answers over the turns and by the age of the
fact. An interrupted command goes on when it is started again with the same options. About 20 minutes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from random import Random
from typing import Any

import torch
from long_run_report import plot, report, summary
from long_run_script import ROWS, SETTINGS, Settings, fork_points, read_rows, read_settings
from measuring import RESULTS, environment, write_results

NAME = "long_run"
KILLS = "kills.jsonl"
POLL = 0.005  # seconds
LATE = 0.4  # at most so many seconds after a turn ended the process is killed: in one of the next turns


def options() -> tuple[Settings, Path]:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--turns", type=int, default=5000, help="of the one agent")
    asked.add_argument("--facts", type=int, default=50, help="that are known at any time")
    asked.add_argument("--forks", type=int, default=10, help="from older checkpoints")
    asked.add_argument("--restarts", type=int, default=5, help="how often its process is killed")
    asked.add_argument("--agents", type=int, default=200, help="that run at once afterwards")
    asked.add_argument("--day", type=int, default=50, help="turns in a thread")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--threads", type=int, default=1, help="of PyTorch")
    asked.add_argument("--end-tasks", action="store_true", help="every day ends its task: task_progress is emptied")
    asked.add_argument("--out", type=Path, default=RESULTS / NAME, help="folder for results, databases and progress")
    given = asked.parse_args()
    settings = Settings(**{field.name: getattr(given, field.name) for field in fields(Settings)})
    least = {"turns": 10, "facts": 1, "forks": 0, "restarts": 0, "agents": 1, "day": 5, "threads": 1}
    for name, value in least.items():
        if getattr(settings, name) < value:
            asked.error(f"--{name} {getattr(settings, name)}: at least {value}")
    if settings.turns <= settings.facts:
        asked.error(f"--turns {settings.turns}: each of {settings.facts} facts takes one; ask for more turns")
    fork_points(settings)
    return settings, given.out


def prepare(settings: Settings, out: Path) -> None:
    """Make the folder, or see that what it holds is of the same run."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    if not path.exists():
        path.write_text(json.dumps(asdict(settings)), encoding="utf-8")
    elif (found := read_settings(out)) != settings:
        raise SystemExit(f"{out} holds a run with other options ({found}): repeat those, or give another --out")


def kill_points(settings: Settings) -> list[int]:
    """After how many turns the process is killed."""
    rng = Random(f"kills {settings.seed}")
    return sorted(rng.sample(range(2, settings.turns - 1), settings.restarts))


def started(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(Path(__file__).with_name(script)), *arguments])


def finish(script: str, *arguments: str) -> None:
    """Run a script to its end."""
    if (code := started(script, *arguments).wait()) != 0:
        raise SystemExit(f"{script} ended with status {code}: see above")


def done_turns(out: Path) -> Iterator[int]:
    """How many turns are done, again and again; new lines alone are read."""
    done, path = 0, out / ROWS
    while not path.exists():
        yield 0
    with path.open("rb") as file:
        rest = b""
        while True:
            *lines, rest = (rest + file.read()).split(b"\n")
            done += sum(json.loads(line)["row"] == "turn" for line in lines)
            yield done


def play(settings: Settings, out: Path) -> list[dict[str, Any]]:
    """All turns, in processes that are killed at the points that are left; returns the kills."""
    path = out / KILLS
    path.touch()
    kills = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for point in kill_points(settings)[len(kills) :]:
        kills.append(kill(settings, out, point, len(kills)))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(kills[-1]) + "\n")
    if sum(row["row"] == "turn" for row in read_rows(out)) < settings.turns:
        finish("long_run_agent.py", "play", str(out), str(os.getpid()))
    return kills


def kill(settings: Settings, out: Path, point: int, number: int) -> dict[str, Any]:
    """Start a process and kill it within the turns after ``point``.

    Raises:
        SystemExit: it ended by itself before.
    """
    read_rows(out)  # cuts off the beginning of a line
    late = LATE * Random(f"late {settings.seed} {number}").random()
    worker = started("long_run_agent.py", "play", str(out), str(os.getpid()))
    try:
        for done in done_turns(out):
            if done >= point or worker.poll() is not None:
                break
            time.sleep(POLL)
        time.sleep(late)
    finally:
        worker.kill()
        status = worker.wait()
    if status not in (-signal.SIGKILL, 0):
        raise SystemExit(f"a process ended with status {status} after {done} turns: see above")
    return {"turns_done": done, "seconds_later": round(late, 3), "killed": status != 0}


def part(out: Path, name: str, script: str, *arguments: str) -> dict[str, Any]:
    """What a script wrote, which is run if it was not."""
    path = out / f"{name}.json"
    if not path.exists():
        finish(script, *arguments)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    settings, out = options()
    torch.set_num_threads(settings.threads)
    prepare(settings, out)
    kills = play(settings, out)
    verified = part(out, "verified", "long_run_agent.py", "verify", str(out))
    crowd = part(out, "crowd", "long_run_crowd.py", str(out))
    document: dict[str, Any] = {
        "environment": environment(),
        "settings": asdict(settings),
        **summary(read_rows(out), settings),
        "kills": kills,
        "verified": verified,
        "crowd": crowd,
    }
    write_results(out, NAME, document)
    report(document)
    plot(document, out / f"{NAME}.png")
    if verified["problems"] or crowd["crossings"]:
        raise SystemExit(f"{len(verified['problems'])} problems in the store, {len(crowd['crossings'])} crossings")


if __name__ == "__main__":
    main()
