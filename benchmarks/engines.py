"""Engines for the benchmarks: over random weights, and without an end to what they say."""

from typing import Any

from qwen3_shape import twin
from transformers import AutoTokenizer

from deltamem_agents.config import DEFAULT_ADAPTER, find_adapter
from deltamem_agents.engine import Engine
from deltamem_agents.memory import Adapter, attach


def build_engine(model: Any, adapter: Adapter, decode: str) -> Engine:
    """An engine over a twin of ``model``, with the tokenizer of the embedded model: any will do for random weights."""
    folder = find_adapter(DEFAULT_ADAPTER)
    assert folder is not None
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone", local_files_only=True)
    own = twin(model)
    return Engine(own, tokenizer, attach(own, adapter), decode=decode)


def without_end(engine: Engine) -> Engine:
    """No reply of it ends before it has all the tokens that were asked for."""
    engine.ends = frozenset()
    return engine
