"""What writing costs: one forward call that writes 8192, 32768 or 64 x 512 tokens, beside the frozen backbone's.

    python benchmarks/gpu_prefill.py --profile

Qwen3-4B's shape with random weights, bfloat16, sdpa, no cache, no gradients; the mask of ones that the engine passes is
given to both sides. The ratio is the frozen backbone's time over the time with memory: 1.00 costs nothing. Peaks are of
allocated device memory, the weights included. Beside it the scan of one layer alone, times the layers, as a share of
the prefill that it is a part of. About two minutes; ``--profile`` adds the kernels of one call of each side.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from measuring import (
    Call,
    bars,
    beside,
    best_device,
    compare,
    environment,
    free,
    interleaved,
    parser,
    peak_bytes,
    print_table,
    ratio,
    repeated,
    write_results,
)
from qwen3_shape import MODES, build_model, model_bytes, random_ids, routes, with_memory
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from deltamem_agents.memory import DeltaMemory
from deltamem_agents.ops import choose_form, delta_scan

NAME = "gpu_prefill"
SHAPES = ((1, 8192), (1, 32768), (64, 512))
TINY_SHAPES = ((1, 64), (1, 128), (4, 32))
SCAN_MODE, SCAN_CALLS = "msw4", 20
KERNELS = 40


def frozen_prefill(model: Any, rows: int, tokens: int) -> Call:
    ids = random_ids(model, rows, tokens)
    mask = torch.ones_like(ids)

    def call() -> None:
        with torch.no_grad():
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)

    return call


def writing_prefill(model: Any, memory: DeltaMemory, mode: str, rows: int, tokens: int) -> Call:
    inner = frozen_prefill(model, rows, tokens)
    state = memory.new_state(rows, device=model.device)
    where = routes(mode, rows, tokens, model.device)

    def call() -> None:
        with torch.no_grad(), memory.bind(state, write=True, sub_states=where):
            inner()

    return call


def measure(
    frozen: Any, frozen_peaks: dict[tuple[int, int], int | None], mode: str, shapes: tuple[Any, ...], repeats: int
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """A row for each shape; for one of the modes also the scan alone."""
    device = frozen.device
    model, memory = with_memory(frozen, mode)
    rows = []
    for batch, tokens in shapes:
        sides = {
            "frozen": frozen_prefill(frozen, batch, tokens),
            "memory": writing_prefill(model, memory, mode, batch, tokens),
        }
        took = interleaved(sides, device, repeats)
        peak = peak_bytes(sides["memory"], device)
        rows.append(
            {"mode": mode, "batch": batch, "tokens": tokens, **compare(took, frozen_peaks[batch, tokens], peak)}
        )
    scan = measure_scan(model, memory, shapes[0], rows[0], repeats) if mode == SCAN_MODE else None
    memory.detach()
    free(device)
    return rows, scan


def measure_scan(
    model: Any, memory: DeltaMemory, shape: tuple[int, int], row: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """The scan of one layer (its projections, gates and recurrence), and the recurrence alone; times all layers."""
    batch, tokens = shape
    device, layers = model.device, len(memory.layers)
    arguments = scan_arguments(model, memory, batch, tokens)
    inputs = recurrence_inputs(batch, tokens, memory.config.num_state_heads, memory.config.rank, device)
    layer: Any = memory.layers[0]
    with torch.no_grad():
        sides = {
            "layer": repeated(lambda: layer.scan(*arguments[0], **arguments[1]), SCAN_CALLS, device),
            "recurrence": repeated(lambda: delta_scan(*inputs), SCAN_CALLS, device),
        }
        took = interleaved(sides, device, repeats)
        form = choose_form(inputs[0])
    found: dict[str, Any] = {"mode": SCAN_MODE, "batch": batch, "tokens": tokens, "layers": layers, "form": form}
    for name, value in took.items():
        once = value["median_s"] / SCAN_CALLS
        found[f"{name}_s"] = float(f"{once:.5g}")
        found[f"{name}_share_of_prefill"] = ratio(once * layers, row["memory"]["median_s"])
    return found


def scan_arguments(model: Any, memory: DeltaMemory, batch: int, tokens: int) -> tuple[Any, Any]:
    """What the first layer's scan is given when a prefill writes."""
    layer: Any = memory.layers[0]
    scan, given = layer.scan, []

    def noting(*args: Any, **kwargs: Any) -> Any:
        given.append((args, kwargs))
        return scan(*args, **kwargs)

    layer.scan = noting
    try:
        writing_prefill(model, memory, SCAN_MODE, batch, tokens)()
    finally:
        del layer.scan
    return given[0]


def recurrence_inputs(batch: int, tokens: int, heads: int, rank: int, device: torch.device) -> list[torch.Tensor]:
    """q, k, v, keep, erase, write (B, T, H, r), state and mask, as a layer would give them."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, tokens, heads, rank)
    q, k, v, gate = (torch.randn(shape, generator=generator, device=device) for _ in range(4))
    q, k = (torch.nn.functional.normalize(x.tanh(), dim=-1) for x in (q, k))
    beta = torch.sigmoid(gate - 1.5)
    state = torch.zeros(batch, heads, rank, rank, device=device)
    return [q, k, v, 1 - beta, beta, beta, state, torch.ones(shape[:3], dtype=torch.bool, device=device)]


def write_profile(frozen: Any, mode: str, shape: tuple[int, int], path: Path) -> None:
    """The kernels (on CPU: the operators) of one prefill of each side, those that took longest first."""
    model, memory = with_memory(frozen, mode)
    sides = {"frozen": frozen_prefill(frozen, *shape), mode: writing_prefill(model, memory, mode, *shape)}
    lines = []
    for name, call in sides.items():
        found = kernels(call, frozen.device)
        total = sum(taken for _, _, taken in found)
        lines.append(
            f"{name}, {shape[0]} x {shape[1]} tokens: {total / 1000:.3f} ms in {sum(n for _, n, _ in found)} calls"
        )
        lines += [f"{taken / 1000:10.3f} ms {taken / total:7.2%} {n:6d}  {key}" for key, n, taken in found[:KERNELS]]
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    memory.detach()


def kernels(call: Call, device: torch.device) -> list[tuple[str, int, float]]:
    """Name, number of calls and microseconds of each."""
    cuda = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        call()
        if cuda:
            torch.cuda.synchronize(device)
    events = [e for e in found.key_averages() if not cuda or e.device_type == DeviceType.CUDA]
    times = [(e.key, e.count, e.self_device_time_total if cuda else e.self_cpu_time_total) for e in events]
    return sorted(times, key=lambda row: -row[2])


def options() -> argparse.Namespace:
    asked = parser(__doc__, NAME)
    asked.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES), help="adapters")
    asked.add_argument("--profile", action="store_true", help="write the kernels of one prefill to profile.txt")
    return asked.parse_args()


def main() -> None:
    args = options()
    device = best_device()
    shapes = TINY_SHAPES if args.tiny else SHAPES
    frozen = build_model(device, args.tiny)
    peaks = {}
    for shape in shapes:
        call = frozen_prefill(frozen, *shape)
        call()
        peaks[shape] = peak_bytes(call, device)
    document: dict[str, Any] = {
        "environment": environment(device),
        "tiny": args.tiny,
        "weights_bytes": model_bytes(frozen),
        "rows": [],
        "scan": None,
    }
    for mode in args.modes:
        rows, scan = measure(frozen, peaks, mode, shapes, args.repeats)
        document["rows"] += rows
        document["scan"] = scan or document["scan"]
        write_results(args.out, NAME, document)
    if args.profile:
        write_profile(frozen, SCAN_MODE, shapes[0], args.out / "profile.txt")
    report(document, args.out)


def report(document: dict[str, Any], folder: Path) -> None:
    rows = document["rows"]
    print_table(
        ("adapter", "tokens", "frozen s", "memory s", "ratio", "frozen GiB", "memory GiB", "peak ratio"),
        [(r["mode"], f"{r['batch']}x{r['tokens']}", *beside(r)) for r in rows],
    )
    if document["scan"]:
        print("scan:", document["scan"])
    modes = dict.fromkeys(r["mode"] for r in rows)
    labels = list(dict.fromkeys(f"{r['batch']}×{r['tokens']}" for r in rows))
    series = {mode: [r["ratio"] for r in rows if r["mode"] == mode] for mode in modes}
    bars(folder / f"{NAME}.png", labels, series, "frozen time / time with memory", 1.0)


if __name__ == "__main__":
    main()
