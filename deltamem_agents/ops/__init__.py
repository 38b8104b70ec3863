"""The recurrence of δ-mem: naive.py is the specification; chunk.py, loop.py, triton_scan.py are fast; scan.py picks."""

from .chunk import chunk_delta_scan
from .loop import loop_delta_scan
from .naive import naive_delta_scan
from .scan import choose_form, delta_read, delta_scan

__all__ = ["choose_form", "chunk_delta_scan", "delta_read", "delta_scan", "loop_delta_scan", "naive_delta_scan"]
