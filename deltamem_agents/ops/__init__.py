"""The recurrence of δ-mem: naive.py is the specification; chunk.py, loop.py, triton_scan.py are fast; scan.py picks."""

from .chunk import chunk_delta_scan
from .correction import add_correction, read_correction
from .gates import GateSpec, gates
from .loop import loop_delta_scan
from .masked import masked_linear
from .naive import naive_delta_scan
from .scan import choose_form, delta_read, delta_scan, gated_read, gated_scan

__all__ = [
    "GateSpec",
    "add_correction",
    "choose_form",
    "chunk_delta_scan",
    "delta_read",
    "delta_scan",
    "gated_read",
    "gated_scan",
    "gates",
    "loop_delta_scan",
    "masked_linear",
    "naive_delta_scan",
    "read_correction",
]
