"""What the forms of the recurrence take on a CPU without gradients.

    python benchmarks/scan_cpu.py
    python benchmarks/scan_cpu.py --threads 2

Medians of 7 calls after one; written to benchmarks/results/scan_cpu.json, which keeps the runs of other thread counts.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from deltamem_agents.ops import choose_form, delta_scan

RESULTS = Path(__file__).parent / "results" / "scan_cpu.json"
SHAPES = ((1, 8, 8, 32), (1, 512, 1, 8), (1, 512, 4, 8), (1, 512, 8, 32), (1, 2048, 8, 32), (64, 31, 16, 16))
FORMS = ("naive", "loop", "chunk")


def inputs(shape: tuple[int, int, int, int]) -> list[torch.Tensor]:
    """q, k, v, keep, erase, write (B, T, H, r) and a state (B, H, r, r)."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(shape, generator=g), dim=-1) for _ in range(2))
    gate = 0.1 * torch.rand(shape, generator=g)
    batch, _, heads, rank = shape
    return [q, k, torch.randn(shape, generator=g), 1 - gate, gate, gate, torch.zeros(batch, heads, rank, rank)]


def measure(form: str, tensors: list[torch.Tensor]) -> float:
    """Milliseconds of one call."""
    took = []
    for _ in range(8):
        start = time.perf_counter()
        delta_scan(*tensors, form=form)
        took.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(took[1:]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            tensors = inputs(shape)
            rows.append({"shape_BTHr": shape, "chosen": choose_form(tensors[0])})
            rows[-1] |= {f"{form}_ms": measure(form, tensors) for form in FORMS}
            print(rows[-1])
    document = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    document[f"{threads} threads"] = machine | {"torch": torch.__version__, "forms": rows}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
