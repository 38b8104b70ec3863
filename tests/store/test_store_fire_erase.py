"""What was deleted is not in the files any more."""

import fire  # noqa: F401
import pytest
from store_fire_erase import WAYS, way

from deltamem_agents.errors import StoreUnavailable
from deltamem_agents.store import open_store
from deltamem_agents.store.suite import put


@pytest.mark.parametrize("name", WAYS)
def test_nothing_is_left(tmp_path, name):
    figures = way(tmp_path, name, 12, seed=3)
    assert figures["pieces_of_words_after"] == figures["states_after"] == 0


def test_nothing_is_left_between_the_rows_of_a_page(tmp_path):
    way(tmp_path, "collect", 60, seed=1)  # secure_delete alone leaves half a word here


def test_a_reader_of_an_older_state_keeps_the_bytes_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr("deltamem_agents.store.sqlite.SCRUB_SECONDS", 0.05)
    with open_store(tmp_path / "memory.db") as store, open_store(tmp_path / "memory.db") as other:
        put(store, "a", None, "x")
        put(store, "b", None, "y")
        with other.backend.transaction(write=False) as connection:
            connection.exec_driver_sql("SELECT * FROM agents").all()
            with pytest.raises(StoreUnavailable, match=r"memory\.db.*another process reads.*deltamem store scrub"):
                store.delete("a")
        assert store.head("a") is None
        store.scrub()
        assert (tmp_path / "memory.db-wal").stat().st_size == 0 and store.load("b").parts == {"facts": b"1"}
