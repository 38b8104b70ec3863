"""A chat model over the tiny adapter folder, with a new SQLite store for each test."""

from pathlib import Path

import pytest
from tiny import build_adapter_folder

from deltamem_agents.chat_model import DeltaMemChatModel


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("tiny"), window=1024)


@pytest.fixture
def model(tiny_adapter: Path, tmp_path: Path) -> DeltaMemChatModel:
    return DeltaMemChatModel(adapter=str(tiny_adapter), device="cpu", store=str(tmp_path / "memory.db"), max_tokens=16)
