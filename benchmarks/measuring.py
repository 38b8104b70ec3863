"""What the benchmarks share: the machine, interleaved timing, peak memory, results as JSON, a table, a plot.

Times are medians of calls that alternate between the sides that are compared (A B A B …), so that both see the same
clocks, after calls that are not counted. On CUDA they are between two events; elsewhere, of the wall clock.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import deltamem_agents

RESULTS = Path(__file__).parent / "results"
LEAST_REPEATS = 5
Call = Callable[[], Any]


def parser(description: str | None, name: str, repeats: int = 7) -> argparse.ArgumentParser:
    """The options of every benchmark: --out, --repeats, --tiny."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=RESULTS / name, help="folder for the results")
    options.add_argument("--repeats", type=int, default=repeats, help=f"calls of each side, at least {LEAST_REPEATS}")
    options.add_argument("--tiny", action="store_true", help="the same code on a toy, in seconds: the figures are void")
    return options


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """What was measured on what, by which command (without the folder of the results), and when."""
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": _command()}
    if device is not None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "device_memory_gib": round(properties.total_memory / 2**30, 1)}
    else:
        found |= {"device": _processor()}
    found |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "threads": torch.get_num_threads()}
    return found | {
        "deltamem_agents": deltamem_agents.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": _version("transformers"),
        "triton": _version("triton"),
        "python": platform.python_version(),
    }


def _command() -> str:
    """The command line without --out, which says where the results went and nothing about them."""
    words, kept = sys.argv[1:], []
    while words:
        word = words.pop(0)
        if word == "--out":
            words = words[1:]
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Call, device: torch.device) -> float:
    """How long one call takes, the device's work included."""
    synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def interleaved(
    sides: Mapping[str, Call], device: torch.device, repeats: int = 7, warmups: int = 2
) -> dict[str, dict[str, Any]]:
    """Time the sides in turn, ``repeats`` rounds after ``warmups``; see :func:`spread` for what is returned of each."""
    if repeats < LEAST_REPEATS:
        raise SystemExit(f"--repeats {repeats}: a median needs at least {LEAST_REPEATS}")
    for _ in range(warmups):
        for call in sides.values():
            call()
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            took[name].append(seconds(call, device))
    return {name: spread(values) for name, values in took.items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and all samples, in seconds."""
    return {"median_s": float(f"{statistics.median(values):.5g}"), "samples_s": [float(f"{v:.5g}") for v in values]}


def repeated(call: Call, calls: int, device: torch.device) -> Call:
    """``calls`` calls, one after the other; on CUDA a graph of them is replayed, so that none waits for Python."""

    def many() -> None:
        for _ in range(calls):
            call()

    if device.type != "cuda":
        return many
    many()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    return graph.replay


def graphs(sides: Mapping[str, Call], device: torch.device) -> dict[str, Call]:
    """One call of each side as a CUDA graph; elsewhere, the calls themselves.

    The graphs take turns in one pool of memory: what a graph leaves there holds until another of them is replayed. All
    sides run once before the first capture, while no memory belongs to the pool yet.
    """
    if device.type != "cuda":
        return dict(sides)
    for call in sides.values():
        call()
    torch.cuda.synchronize(device)
    pool, captured = torch.cuda.graph_pool_handle(), {}
    for name, call in sides.items():
        captured[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured[name], pool=pool):
            call()
    return {name: graph.replay for name, graph in captured.items()}


def free(device: torch.device) -> None:
    """Let go of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """The most device memory allocated at once during a call, all that stood there before included; None on CPU."""
    if device.type != "cuda":
        call()
        return None
    free(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def ratio(a: float | None, b: float | None, digits: int = 4) -> float | None:
    return round(a / b, digits) if a is not None and b else None


def compare(took: Mapping[str, Mapping[str, Any]], peak_frozen: int | None, peak: int | None) -> dict[str, Any]:
    """Fields of a result: times of "frozen" and "memory", peaks, and their ratios; a speed of 1 costs nothing."""
    return {
        **took,
        "ratio": ratio(took["frozen"]["median_s"], took["memory"]["median_s"]),
        "peak_frozen_bytes": peak_frozen,
        "peak_memory_bytes": peak,
        "peak_ratio": ratio(peak, peak_frozen),
    }


def beside(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Cells of a table for the fields of :func:`compare`."""
    peaks = gib(row["peak_frozen_bytes"]), gib(row["peak_memory_bytes"]), row["peak_ratio"]
    return row["frozen"]["median_s"], row["memory"]["median_s"], row["ratio"], *peaks


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second of a copy of ``size`` bytes on the device, read and written both counted."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = interleaved({"copy": repeated(lambda: target.copy_(source), 10, device)}, device)
    return 2 * size * 10 / took["copy"]["median_s"]


def write_results(folder: Path, name: str, document: Mapping[str, Any]) -> Path:
    """``folder/name.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def gib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**30:.2f}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """In Markdown; numbers to four digits."""
    texts = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(head))]
    lines = ["| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |" for row in texts]
    print("\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]), flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def bars(path: Path, labels: Sequence[str], series: Mapping[str, Sequence[float]], ylabel: str, line: float) -> None:
    """Groups of bars (0: not measured), one group a label, and a dashed line; nothing where matplotlib is missing."""
    if not has_matplotlib():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(ylabel=ylabel)
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        drawn = axes.bar([x + (i - (len(series) - 1) / 2) * width for x in range(len(labels))], values, width)
        axes.bar_label(drawn, [f"{value:.2f}" if value else "" for value in values], fontsize=8)
        drawn.set_label(name)
    axes.axhline(line, color="gray", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 1.15 * max(line, *(value for values in series.values() for value in values)))
    axes.legend(loc="upper left", ncols=len(series), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def has_matplotlib() -> bool:
    """Says so where it is missing."""
    if importlib.util.find_spec("matplotlib") is not None:
        return True
    print('no plot: matplotlib (extra "train") is not installed', flush=True)
    return False
