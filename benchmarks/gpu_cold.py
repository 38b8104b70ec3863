"""How long a fresh process takes to its first token: started, libraries imported, weights made, memory attached, asked.

    python benchmarks/gpu_cold.py
    python benchmarks/gpu_cold.py --decode graph

Qwen3-4B's shape with random weights, made in the process, and a random adapter; a prompt of 512 tokens that reads its
memory. Each way of decoding runs in two processes one after the other with a cache of compiled code of their own: the
second finds what the first has compiled, and it is the second that counts. The first token comes from the prompt alone;
the time to the eighth, which the steps that follow have captured and compiled, stands beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engines import build_engine, without_end
from measuring import best_device, environment, has_matplotlib, parser, print_table, synchronize, write_results
from qwen3_shape import MODES, build_model, mode_adapter, random_ids, random_states

from deltamem_agents.engine import Request

NAME = "gpu_cold"
WAYS = ("compile", "graph", "eager")
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
PROMPT, TOKENS = 512, 8


def child(started: float, way: str, mode: str, tiny: bool) -> dict[str, Any]:
    """What the process has done since ``started`` (time.time()), in seconds for each phase."""
    device = best_device()
    marks = [("start and import", time.time())]

    def mark(name: str) -> None:
        synchronize(device)
        marks.append((name, time.time()))

    model = build_model(device, tiny)
    mark("weights")
    engine = without_end(build_engine(model, mode_adapter(model, mode), way))
    states = random_states(engine.memory, 1, device)
    mark("attach")
    ids = random_ids(model, 1, PROMPT).tolist()[0]
    engine.generate_requests([Request(conversation=(), ids=ids, max_new_tokens=1)], states)
    mark("first token")
    engine.generate_requests([Request(conversation=(), ids=ids, max_new_tokens=TOKENS)], states)
    mark(f"{TOKENS} tokens")
    times = [started, *(at for _, at in marks)]
    phases = {name: round(at - times[i], 3) for i, (name, at) in enumerate(marks)}
    to_first = dict(marks)["first token"] - started
    return {"phases_s": phases, "to_first_token_s": round(to_first, 3), "whole_s": round(times[-1] - started, 3)}


def run_child(way: str, mode: str, tiny: bool, cache: Path) -> dict[str, Any]:
    places = {name: str(cache / name.lower()) for name in CACHES}
    command = [sys.executable, __file__, "--decode", way, "--mode", mode, *(["--tiny"] if tiny else [])]
    done = subprocess.run(
        [*command, "--started", repr(time.time())],
        env=os.environ | places,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def options() -> argparse.Namespace:
    asked = parser(__doc__, NAME)
    asked.add_argument("--decode", nargs="+", default=["compile"], choices=WAYS, help="ways of decoding")
    asked.add_argument("--mode", default="msw4", choices=list(MODES), help="adapter")
    asked.add_argument("--started", type=float, help=argparse.SUPPRESS)  # in the processes that are measured
    return asked.parse_args()


def main() -> None:
    args = options()
    if args.started is not None:
        print(json.dumps(child(args.started, args.decode[0], args.mode, args.tiny)), flush=True)
        return
    rows = []
    for way in args.decode:
        with tempfile.TemporaryDirectory() as cache:
            runs = [run_child(way, args.mode, args.tiny, Path(cache)) for _ in range(2)]
        rows.append({"mode": args.mode, "decode": way, "empty_cache": runs[0], "warm_cache": runs[1]})
    document = {"environment": environment(best_device()), "tiny": args.tiny, "prompt_tokens": PROMPT, "rows": rows}
    write_results(args.out, NAME, document)
    print_table(
        ("decode", "cache", *rows[0]["warm_cache"]["phases_s"], "to first token s"),
        [
            (row["decode"], kind, *row[f"{kind}_cache"]["phases_s"].values(), row[f"{kind}_cache"]["to_first_token_s"])
            for row in rows
            for kind in ("empty", "warm")
        ],
    )
    plot(rows, args.out / f"{NAME}.png")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The phases of each process, one after the other."""
    if not has_matplotlib():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.5 + len(rows)), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds since the process was started")
    runs = [(f"{row['decode']}, {kind} cache", row[f"{kind}_cache"]) for row in rows for kind in ("empty", "warm")]
    left = [0.0] * len(runs)
    for phase in runs[0][1]["phases_s"]:
        widths = [run["phases_s"][phase] for _, run in runs]
        axes.barh([name for name, _ in runs], widths, left=left, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
