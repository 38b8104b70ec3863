"""One tiny adapter folder for all tests of the engine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import build_adapter_folder

from deltamem_agents.engine import Engine, load_engine


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine(tiny_adapter: Path) -> Engine:
    return load_engine(tiny_adapter, device="cpu")
