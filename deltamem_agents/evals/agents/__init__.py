"""The agents that are compared. All answer with the same frozen backbone, greedily; they differ in what they keep.

base.py  what they share      context.py  what was told, in the prompt      retrieval.py  the best of it
memory.py  δ-mem              lora.py  weights of their own, trained on what was told
"""

from .base import EngineAgent, NoMemory
from .context import SlidingWindow, WholeContext
from .lora import LoRA
from .memory import DeltaMem, DeltaMemBM25
from .retrieval import BM25, Dense

__all__ = [
    "BM25",
    "DeltaMem",
    "DeltaMemBM25",
    "Dense",
    "EngineAgent",
    "LoRA",
    "NoMemory",
    "SlidingWindow",
    "WholeContext",
]
