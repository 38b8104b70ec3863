"""Opening stores: URLs, policies, keys, tenants, what is refused; and changing keys."""

import base64
import os
import threading

import pytest

from deltamem_agents.errors import InvalidName, SchemaMismatch, StoreError, StoreKeyError, StoreUnavailable
from deltamem_agents.store import Policy, open_store
from deltamem_agents.store.cipher import KEY_VARIABLE, new_key
from deltamem_agents.store.suite import chain, put, texts

SECRET = "the vault opens with quicksilver"


def bytes_of(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_a_url_and_a_path_name_the_same_file(tmp_path):
    path = tmp_path / "a b" / "memory.db"
    with open_store(path) as store:
        made = put(store, "a", None, "x")
    with open_store(f"sqlite:///{path}") as store:
        assert store.head("a") == made.version_id
    assert path.stat().st_mode & 0o077 == 0  # for its owner alone
    with open_store("sqlite://") as one, open_store(":memory:") as other:
        put(one, "a", None, "x")
        assert other.agents() == []


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite+nothing", "://", "redis://x"])
def test_other_databases_are_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "://" in url:
        with pytest.raises(StoreError, match=r"sqlite:///"):
            open_store(url)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="another path"):
        open_store(tmp_path / "file" / "memory.db")
    with pytest.raises(StoreUnavailable):
        open_store(tmp_path)


def test_the_policy_is_kept(tmp_path):
    path = tmp_path / "memory.db"
    with pytest.raises(StoreError, match="journal"):
        open_store(path, journal="some")  # type: ignore[arg-type]
    with open_store(path, journal="hash") as store:
        assert store.policy == Policy("hash", False)
        put(store, "a", None, SECRET)
    with open_store(path) as store:
        assert store.policy.journal == "hash" and texts(store.journal("a")) == [None]
        assert list(store.verify()) == []
    assert b"quicksilver" not in bytes_of(tmp_path)
    with pytest.raises(SchemaMismatch, match="'hash'"):
        open_store(path, journal="full")


def test_an_encrypted_store_opens_with_its_key_alone(tmp_path, monkeypatch):
    path, key = tmp_path / "memory.db", new_key()
    with open_store(path, key=key) as store:
        assert store.policy.encrypted
        put(store, "a", None, SECRET, b"bytes of a state", entries=[])
        put(store, "a", store.head("a"), SECRET, b"bytes of a state")
    found = bytes_of(tmp_path)
    assert b"quicksilver" not in found and b"bytes of a state" not in found
    for wrong in ([], [new_key()]):
        with pytest.raises(StoreKeyError):
            open_store(path, key=wrong or None)
    monkeypatch.setenv(KEY_VARIABLE, f"{new_key()},{key}")
    with open_store(path) as store:
        assert texts(store.journal("a")) == [SECRET] and store.load("a").parts == {"facts": b"bytes of a state"}
        assert [hit.record.entry.content for hit in store.search("a", "vault")] == [SECRET]
    monkeypatch.delenv(KEY_VARIABLE)
    with open_store(path, key=lambda: base64.b64decode(key)) as store:
        assert store.head("a")
    with open_store(tmp_path / "clear.db"):
        pass
    with pytest.raises(StoreKeyError, match="not encrypted"):
        open_store(tmp_path / "clear.db", key=key)


def test_keys_are_changed(tmp_path):
    path = tmp_path / "memory.db"
    first, second = os.urandom(32), os.urandom(32)
    with open_store(path) as store:
        ids = chain(store, "a", 3)
        put(store, "a", ids[-1], SECRET, b"bytes of a state")
        before = store.tree("a"), store.journal("a"), store.load("a")
        for keys in ([first], [second], [second], []):
            changed = store.rotate(keys)
            assert changed == (0 if keys == [second] and changed == 0 else 8)
            assert (store.tree("a"), store.journal("a"), store.load("a")) == before
            assert store.policy.encrypted == bool(keys) and len(store.search("a", "quicksilver")) == 1
            assert (b"quicksilver" in bytes_of(tmp_path)) != bool(keys)
            assert list(store.verify()) == []
            with open_store(path, key=keys or None) as again:
                assert again.load("a") == before[2]


def test_a_change_of_keys_that_was_stopped_goes_on(tmp_path, monkeypatch):
    path, key = tmp_path / "memory.db", os.urandom(32)
    with open_store(path) as store:
        chain(store, "a", 3)
        monkeypatch.setattr(store, "_change_cipher", None)
        with pytest.raises(TypeError):
            store.rotate([key])
    with open_store(path) as store:
        store.rotate([key])
        assert texts(store.journal("a")) == ["word0", "word1", "word2"] and list(store.verify()) == []
    with open_store(path, key=key) as store:
        assert store.load("a").parts


@pytest.mark.parametrize("tenant", ["", "x" * 201, "a\0"])
def test_tenants_have_names(tenant):
    with pytest.raises(InvalidName, match="tenant"):
        open_store("sqlite://", tenant=tenant)


def test_a_store_in_memory_serves_many_threads():
    with open_store("sqlite://") as store:
        errors: list[Exception] = []

        def work(name):
            try:
                chain(store, name, 20)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(f"a{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and [agent.versions for agent in store.agents()] == [20] * 6
