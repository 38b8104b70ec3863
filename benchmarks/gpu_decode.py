"""What reading costs while tokens are generated: 128 after a prompt of 512, with memory and without, by one engine.

    python benchmarks/gpu_decode.py --decode graph
    python benchmarks/gpu_decode.py --decode compile
    python benchmarks/gpu_decode.py --decode eager

Qwen3-4B's shape with random weights, bfloat16, sdpa, greedy, no end token; 1 reply and 64 at once, of 64 different
memories (eager: 1 reply of 48 tokens). The time of a step is that of all tokens less that of the first one of the same
prompts, over the number of the others, so that reading the prompt does not count. The ratio is tokens a second with
memory over tokens a second without. A graph keeps the addresses and kernels that it was captured with, so engines
differ more than calls of one engine: ``--engines`` builds several for each row, one after the other, and the row is
that of the engine with the median ratio, with all of the ratios beside it. Beside it the floor of a step: the bytes of
all weights that it reads, over the bandwidth of a copy on the device; and the first call of the first engine, in which
graphs are captured and kernels compiled.

One file of results for each way of decoding; the plot shows all that are in the folder. gpu_cold.py has the time of a
fresh process to its first token.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from engines import build_engine, without_end
from measuring import (
    bars,
    best_device,
    copy_bandwidth,
    environment,
    free,
    gib,
    interleaved,
    parser,
    peak_bytes,
    print_table,
    ratio,
    seconds,
    write_results,
)
from qwen3_shape import (
    MODES,
    build_model,
    mode_adapter,
    model_bytes,
    random_ids,
    random_states,
)

from deltamem_agents.engine import Engine, Request
from deltamem_agents.memory import Adapter, MemoryState

NAME = "gpu_decode"
WAYS = ("graph", "compile", "eager")
PROMPT, TOKENS, EAGER_TOKENS = 512, 128, 48
BATCHES, EAGER_BATCHES = (1, 64), (1,)
COPIED = 2 << 30  # bytes
READ = ("memory_q_proj", "delta_")  # parameters of an adapter that a step reads when it does not write


class Replies:
    """The same prompts, answered with memory and without."""

    def __init__(self, engine: Engine, states: MemoryState, prompts: Sequence[Sequence[int]]) -> None:
        self.engine, self.states, self.prompts = engine, states, prompts

    def generate(self, tokens: int, reads: bool) -> None:
        requests = [Request(conversation=(), ids=list(ids), max_new_tokens=tokens) for ids in self.prompts]
        replies = self.engine.generate_requests(requests, self.states if reads else None)
        if any(reply.completion_tokens != tokens for reply in replies):
            counts = sorted({reply.completion_tokens for reply in replies})
            raise SystemExit(f"{tokens} tokens were asked for, {counts} came: the figures would be void")


def measure(replies: Replies, tokens: int, floors: dict[str, float], repeats: int) -> dict[str, Any]:
    """``floors``: seconds of a step that only reads its weights, for "memory" and "frozen"."""
    device = replies.engine.device
    batch = len(replies.prompts)
    first = {name: first_call(replies, tokens, reads) for name, reads in (("memory", True), ("frozen", False))}
    sides = {
        f"{name}{count}": lambda reads=reads, count=count: replies.generate(count, reads)
        for name, reads in (("memory", True), ("frozen", False))
        for count in (tokens, 1)
    }
    peaks = {name: peak_bytes(call, device) for name, call in sides.items()}  # and a warm-up
    took = interleaved(sides, device, repeats, warmups=0)
    found: dict[str, Any] = {"batch": batch, "new_tokens": tokens}
    for name in ("memory", "frozen"):
        whole, one = took[f"{name}{tokens}"], took[f"{name}1"]
        step = (whole["median_s"] - one["median_s"]) / (tokens - 1)
        found[name] = {
            "whole": whole,
            "one_token": one,
            "step_s": float(f"{step:.5g}"),
            "tokens_per_s": float(f"{batch / step:.5g}"),
            "floor_share": ratio(floors[name], step),
            "peak_bytes": peaks[f"{name}{tokens}"],
            "first_call": first[name],
        }
    found["ratio"] = ratio(found["memory"]["tokens_per_s"], found["frozen"]["tokens_per_s"])
    found["whole_ratio"] = ratio(found["frozen"]["whole"]["median_s"], found["memory"]["whole"]["median_s"])
    return found


def first_call(replies: Replies, tokens: int, reads: bool) -> dict[str, Any]:
    device = replies.engine.device
    took: list[float] = []
    peak = peak_bytes(lambda: took.append(seconds(lambda: replies.generate(tokens, reads), device)), device)
    return {"seconds": round(took[0], 3), "peak_bytes": peak}


def floor_seconds(frozen: Any, adapter: Adapter, bandwidth: float) -> dict[str, float]:
    size = torch.finfo(frozen.dtype).bits // 8
    read = sum(
        size * tensor.numel() for key, tensor in adapter.tensors.items() if key.rpartition(".")[2].startswith(READ)
    )
    weights = model_bytes(frozen)
    return {"memory": (weights + read) / bandwidth, "frozen": weights / bandwidth}


def measure_mode(frozen: Any, mode: str, way: str, bandwidth: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    adapter = mode_adapter(frozen, mode)
    floors = floor_seconds(frozen, adapter, bandwidth)
    prompt, tokens, batches = sizes(way, args.tiny)
    rows = []
    for batch in batches:
        found = []
        for _ in range(args.engines):
            engine = without_end(build_engine(frozen, adapter, way))
            states = random_states(engine.memory, batch, engine.device)
            replies = Replies(engine, states, random_ids(frozen, batch, prompt).tolist())
            found.append({"mode": mode, "decode": engine_way(engine)} | measure(replies, tokens, floors, args.repeats))
            engine.memory.detach()
            del engine, states, replies
            free(frozen.device)
        rows.append(median_of(found))
    return rows


def median_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The one with the median ratio (of two, the lower), all ratios beside it, and the first call of the first."""
    ranked = sorted(found, key=lambda row: row["ratio"])
    row = ranked[(len(ranked) - 1) // 2]
    for name in ("memory", "frozen"):
        row[name]["first_call"] = found[0][name]["first_call"]
    return row | {"engine_ratios": [each["ratio"] for each in found]}


def engine_way(engine: Engine) -> str:
    """How it decodes, which is not what was asked for where there is no CUDA."""
    return str(getattr(engine, "decode", "eager"))


def sizes(way: str, tiny: bool) -> tuple[int, int, tuple[int, ...]]:
    """Tokens of the prompt, new tokens, and numbers of replies."""
    if tiny:
        return 16, 8, (1, 4) if way != "eager" else (1,)
    return (PROMPT, EAGER_TOKENS, EAGER_BATCHES) if way == "eager" else (PROMPT, TOKENS, BATCHES)


def main() -> None:
    asked = parser(__doc__, NAME, repeats=5)
    asked.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES), help="adapters")
    asked.add_argument("--decode", nargs="+", default=list(WAYS), choices=WAYS, help="ways of decoding")
    asked.add_argument("--engines", type=int, default=3, help="engines built for each row")
    args = asked.parse_args()
    device = best_device()
    frozen = build_model(device, args.tiny)
    bandwidth = copy_bandwidth(device, 1 << 20 if args.tiny else COPIED)
    free(device)
    for way in args.decode:
        document: dict[str, Any] = {
            "environment": environment(device),
            "tiny": args.tiny,
            "prompt_tokens": sizes(way, args.tiny)[0],
            "weights_bytes": model_bytes(frozen),
            "copy_bytes_per_s": float(f"{bandwidth:.4g}"),
            "rows": [],
        }
        for mode in args.modes:
            document["rows"] += measure_mode(frozen, mode, way, bandwidth, args)
            write_results(args.out, way, document)
        report(document["rows"], way)
    plot(args.out)


def report(rows: list[dict[str, Any]], way: str) -> None:
    print(f"decode: {way}")
    head = (
        "adapter",
        "replies",
        "frozen tok/s",
        "memory tok/s",
        "ratio",
        "of floor",
        "first call s",
        "peak GiB",
        "ratios",
    )
    print_table(head, [cells(row) for row in rows])


def cells(row: dict[str, Any]) -> tuple[Any, ...]:
    ours = row["memory"]
    speeds = row["frozen"]["tokens_per_s"], ours["tokens_per_s"], row["ratio"], ours["floor_share"]
    ratios = " ".join(f"{each:.3f}" for each in row["engine_ratios"])
    return row["mode"], row["batch"], *speeds, ours["first_call"]["seconds"], gib(ours["peak_bytes"]), ratios


def plot(folder: Path) -> None:
    """The ratios of all ways of decoding whose results are in the folder."""
    rows = []
    for way in WAYS:
        if (path := folder / f"{way}.json").is_file():
            rows += [row | {"decode": way} for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    groups = list(dict.fromkeys((row["decode"], row["batch"]) for row in rows))
    at = {(row["mode"], row["decode"], row["batch"]): row["ratio"] for row in rows}
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    series = {mode: [at.get((mode, *group), 0.0) for group in groups] for mode in modes}
    labels = [f"{way}\n{batch} at once" for way, batch in groups]
    bars(folder / f"{NAME}.png", labels, series, "tokens/s with memory / without", 1.0)


if __name__ == "__main__":
    main()
