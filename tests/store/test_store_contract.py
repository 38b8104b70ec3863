"""The contract on SQLite: in a file, in memory, encrypted, for another tenant. PostgreSQL: test_store_postgres.py."""

import pytest

from deltamem_agents.store import open_store
from deltamem_agents.store.cipher import new_key
from deltamem_agents.store.suite import StoreContract, put


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


class TestEncrypted(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        with open_store(tmp_path / "memory.db", key=new_key()) as store:
            yield store


class TestBesideAnotherTenant(StoreContract):
    """Everything holds in a file in which another tenant has agents of the same names and the same messages."""

    @pytest.fixture
    def store(self, tmp_path):
        with open_store(tmp_path / "memory.db", tenant="neighbour") as other:
            for agent in "ab":
                for text in ("x", "word0", "the port of atlas"):
                    put(other, agent, other.head(agent), text)
            before = other.tree("a"), other.journal("b"), other.load("a")
            with open_store(tmp_path / "memory.db", tenant="Ωμέγα") as store:
                yield store
            assert (other.tree("a"), other.journal("b"), other.load("a")) == before
            assert list(other.verify()) == []
