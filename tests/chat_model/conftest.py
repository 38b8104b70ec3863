"""A chat model over the tiny adapter folder, with a new SQLite store for each test."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import build_adapter_folder

from deltamem_agents.chat_model import DeltaMemChatModel


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_model(tiny_adapter: Path, tmp_path: Path) -> Callable[..., DeltaMemChatModel]:
    """Chat models that share one store."""

    def make(**settings: object) -> DeltaMemChatModel:
        defaults = {
            "adapter": str(tiny_adapter),
            "device": "cpu",
            "store": str(tmp_path / "memory.db"),
            "max_tokens": 8,
        }
        return DeltaMemChatModel(**(defaults | settings))

    return make


@pytest.fixture
def model(make_model: Callable[..., DeltaMemChatModel]) -> DeltaMemChatModel:
    return make_model(agent_id="otto")
