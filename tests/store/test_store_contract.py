"""The SQLite store keeps the contract, in a file and in memory."""

import pytest

from deltamem_agents.store import open_store
from deltamem_agents.store.suite import StoreContract


class TestFile(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        with open_store(tmp_path / "new" / "folder" / "memory.db") as store:
            yield store


class TestInMemory(StoreContract):
    @pytest.fixture
    def store(self):
        with open_store("sqlite://") as store:
            yield store
