"""The engine: one backbone, many agents. Loading, writing to memory, generating while reading it."""

from .engine import Engine, WriteTrace
from .load import load_engine
from .reply import Chunk, Generation, Request

__all__ = ["Chunk", "Engine", "Generation", "Request", "WriteTrace", "load_engine"]
