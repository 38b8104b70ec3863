"""One tiny adapter folder for the tests of evaluations, and the embedded default."""

from pathlib import Path

import pytest
from tiny import build_adapter_folder

from deltamem_agents.config import DEFAULT_ADAPTER
from deltamem_agents.engine import Engine, load_engine


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine(tiny_adapter: Path) -> Engine:
    return load_engine(tiny_adapter, device="cpu")


@pytest.fixture(scope="session")
def default_engine() -> Engine:
    return load_engine(DEFAULT_ADAPTER, device="cpu")
