"""Stores of 0.1.0 become stores of today."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from schema_tools import FIRST, Opener, at_once, differences, opening, shape
from sqlalchemy import Connection, select

from deltamem_agents.errors import CorruptStore, StoreError, StoreUnavailable
from deltamem_agents.store import migrations, schema
from deltamem_agents.store.migrations.lines import Known, Place, arrange
from deltamem_agents.store.models import (
    SCHEMA,
    AgentRow,
    BlobRow,
    EntryRow,
    LineRow,
    MetaRow,
    PartRow,
    VersionRow,
)
from deltamem_agents.store.records import Entry, checksum, version_id
from deltamem_agents.store.rows import entry_id
from deltamem_agents.store.sql import open_store

KNOWN = json.loads(FIRST.with_suffix(".json").read_text())  # what 0.1.0 reads from it


@pytest.fixture
def opened() -> Iterator[Opener]:
    with opening() as opener:
        yield opener


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of 0.1.0."""
    return Path(shutil.copy(FIRST, tmp_path / "old.db"))


def test_migrations_and_models_agree(tmp_path: Path, opened: Opener) -> None:
    made, migrated = opened(tmp_path / "made.db"), opened(tmp_path / "migrated.db")
    schema.prepare(made)
    assert schema.upgrade(migrated) == ["0001", "0002"]
    assert schema.current(migrated) == SCHEMA
    assert shape(migrated) == shape(made)
    with migrated.transaction(write=True) as connection:
        assert differences(connection) == []


def test_the_first_revision_is_the_schema_of_the_first_release(tmp_path: Path, old: Path, opened: Opener) -> None:
    backend, release = opened(tmp_path / "new.db"), opened(old)
    with backend.transaction(write=True) as connection:
        assert migrations.run(connection, backend, "0001") == ["0001"]
    made = shape(backend)
    del made["alembic_version"]
    assert made == shape(release)
    assert schema.current(backend) == schema.current(release) == "0001"
    assert schema.upgrade(backend) == ["0002"]


def test_an_upgrade_keeps_everything(old: Path, opened: Opener) -> None:
    backend = opened(old)
    assert schema.upgrade(backend) == ["0002"]
    with backend.transaction(write=True) as connection:
        assert differences(connection) == []
        assert backend.problems(connection) == []
        heads = {row.name: row.head for row in connection.execute(select(AgentRow))}
        assert heads == KNOWN["heads"]
        assert set(connection.scalars(select(AgentRow.tenant))) == {"default"}
        assert {row.key: row.value for row in connection.execute(select(MetaRow))} == {"journal": "full"}
        found = connection.execute(select(VersionRow, AgentRow.name).join_from(VersionRow, AgentRow)).all()
        assert {row.version_id for row in found} == KNOWN["versions"].keys()
        for row in found:
            known = KNOWN["versions"][row.version_id]
            assert row.name == known["agent"]
            assert row.created_at.replace(tzinfo=UTC).isoformat() == known["created_at"]
            assert (row.parent, row.fingerprint, row.resets) == tuple(
                known[k] for k in "parent fingerprint resets".split()
            )
            assert (row.pin, row.pruned, row.retired) == (None, False, False)
            check_parts(connection, row, known["parts"])
            check_entries(connection, row, known["entries"])
    assert not [name for name in shape(backend) if name.startswith("old_")]


def check_parts(connection: Connection, row: Any, known: dict[str, str]) -> None:
    query = select(PartRow.name, BlobRow.data, BlobRow.checksum).where(
        PartRow.version_pk == row.pk, PartRow.checksum == BlobRow.checksum, BlobRow.agent_pk == row.agent_pk
    )
    found = connection.execute(query).all()
    assert {part.name: part.data.hex() for part in found} == known
    assert all(checksum(part.data) == part.checksum for part in found)


def check_entries(connection: Connection, row: Any, known: list[dict[str, Any]]) -> None:
    query = select(EntryRow).where(EntryRow.version_pk == row.pk).order_by(EntryRow.position)
    found, entries = connection.execute(query).all(), []
    assert len(found) == len(known)
    for position, (entry, wanted) in enumerate(zip(found, known, strict=True)):
        content, payload = json.loads(entry.body.decode("utf-8", "surrogatepass"))
        entries.append(Entry(entry.role, content, tuple(entry.sub_states), entry.message_id, payload=payload))
        assert [content, payload] == [wanted["content"], wanted["payload"]]
        assert entry.content_hash == wanted["content_hash"] == entries[-1].content_hash
        thread = wanted["source"].partition("thread ")[2] or None
        assert (entry.thread_id, entry.source) == (thread, None if thread else wanted["source"])
        assert (entry.position, entry.entry_id) == (position, entry_id(row.version_id, position))
        assert (entry.agent_pk, entry.made_at) == (row.agent_pk, row.created_at)
        assert (entry.run_id, entry.tokens, entry.gate, entry.moved) == (None,) * 4
    made = version_id(row.name, row.parent, entries, row.fingerprint, row.resets)
    assert made == row.version_id


def test_lines_lead_to_the_same_ancestors(old: Path, opened: Opener) -> None:
    backend = opened(old)
    schema.upgrade(backend)
    with backend.transaction(write=False) as connection:
        lines = {row.pk: row for row in connection.execute(select(LineRow))}
        rows = connection.execute(select(VersionRow).order_by(VersionRow.pk)).all()
    at = {(row.agent_pk, row.line, row.depth): row for row in rows}
    places = {row.version_id: row for row in rows}
    for row in rows:
        line, depth = lines[row.line], row.depth - 1
        if (row.agent_pk, row.line, depth) not in at:
            assert (line.agent_pk, line.parent_depth or 0) == (row.agent_pk, max(depth, 0))
            before = at.get((row.agent_pk, line.parent_line, line.parent_depth))
        else:
            before = at[row.agent_pk, row.line, depth]
        assert (before.version_id if before else None) == row.parent
        assert before is None or (before.pk < row.pk and before.depth == depth)
    for head in filter(None, KNOWN["heads"].values()):
        line, way = places[head].line, places[head]
        while way.parent is not None:
            way = places[way.parent]
            assert way.line == line
    ada = [row for row in rows if KNOWN["versions"][row.version_id]["agent"] == "ada"]
    assert len({row.line for row in ada}) == 4  # three branches


def test_the_index_finds_words(old: Path, opened: Opener) -> None:
    backend = opened(old)
    schema.upgrade(backend)
    with backend.transaction(write=False) as connection:
        agents = dict(connection.execute(select(AgentRow.name, AgentRow.pk)).tuples().all())

        def hits(agent: str, word: str) -> list[str]:
            found = backend.index_match(connection, agents[agent], [word], 10)
            bodies = connection.scalars(select(EntryRow.body).where(EntryRow.pk.in_(found)))
            return [json.loads(body)[0] for body in bodies if body is not None]

        assert hits("ada", "violet") == ["Ada likes violet umbrellas"]
        assert hits("ada", "zebra") == ["A zebra — 斑马 — crossed"]
        assert hits("", "violet") == ["violet"]
        assert hits("headless", "violet") == []


def test_a_store_works_on_after_its_upgrade(old: Path, opened: Opener) -> None:
    schema.upgrade(opened(old))
    with open_store(old) as store:
        assert list(store.verify()) == []
        assert {agent.agent_id: agent.head for agent in store.agents()} == KNOWN["heads"]
        for identity, known in KNOWN["versions"].items():
            parts = store.load(known["agent"], identity).parts
            assert {name: data.hex() for name, data in parts.items()} == known["parts"]
        ada, entry = KNOWN["heads"]["ada"], Entry("user", "on", ("facts",))
        assert [hit.record.entry.message_id for hit in store.search("ada", "violet")] == ["m1"]
        assert len(store.written("ada", ada, ["m1", "m4", "m9"])) == 2
        made = store.commit("ada", parent=ada, parts={}, entries=[entry], fingerprint="adapter-two")
        assert [record.entry.content for record in store.journal("ada")][-2:] == ["late", "on"]
        assert [version.version_id for version in store.history("ada")][:2] == [made.version_id, ada]


def test_the_old_file_is_kept_beside_the_new_one(old: Path, opened: Opener) -> None:
    old.chmod(0o600)
    said: list[str] = []
    (old.parent / "old.db.0001.bak").write_bytes(b"an earlier one")
    schema.upgrade(opened(old), said.append)
    assert (old.parent / "old.db.0001.bak").read_bytes() == b"an earlier one"
    copy = old.parent / "old.db.0001.bak2"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert str(copy) in said[0] and "0002" in said[-1]
    assert schema.current(opened(copy)) == "0001"
    kept, made = sqlite3.connect(copy), sqlite3.connect(FIRST)
    assert list(kept.iterdump()) == list(made.iterdump())


def test_a_failing_upgrade_changes_nothing(old: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the power is gone")

    backend = opened(old)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(backend, "index_add", fail)
        schema.upgrade(backend)
    backend.close()
    assert old.read_bytes() == FIRST.read_bytes()
    assert [path.name for path in old.parent.iterdir()] == ["old.db"]
    assert schema.upgrade(opened(old)) == ["0002"]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("UPDATE entries SET content = CAST(x'ff' AS TEXT)", StoreError),
        ("UPDATE entries SET payload = '{'", CorruptStore),
        ("UPDATE versions SET parent = 'x' WHERE parent IS NOT NULL", CorruptStore),
    ],
)
def test_damage_stops_an_upgrade(old: Path, opened: Opener, damage: str, error: type[StoreError]) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute(damage)
    connection.close()
    before = old.read_bytes()
    backend = opened(old)
    with pytest.raises(error, match=r"old\.db"):
        schema.upgrade(backend)
    backend.close()
    assert old.read_bytes() == before


def test_bytes_that_are_missing_do_not_stop_it(old: Path, opened: Opener) -> None:
    """They can be computed again from the journal."""
    with sqlite3.connect(old) as connection:
        connection.execute("DELETE FROM blobs")
    connection.close()
    backend = opened(old)
    assert schema.upgrade(backend) == ["0002"]
    with backend.transaction(write=False) as reading:
        assert checksum(b"f2") in set(reading.scalars(select(PartRow.checksum)))


def test_no_upgrade_without_a_copy(old: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    backend = opened(old)
    monkeypatch.setattr(schema.os, "open", full)  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable, match=r"old\.db\.0001\.bak.*No space left"):
        schema.upgrade(backend)
    monkeypatch.undo()
    assert schema.current(backend) == "0001"


def test_lines_of_a_crooked_tree() -> None:
    times = [datetime(2026, 1, day) for day in range(1, 9)]
    tree = {"a": None, "late": "a", "early": "a", "b": "early", "c": "early", "root": None}
    versions = {name: Known(parent, times[number]) for number, (name, parent) in enumerate(tree.items())}
    places, lines = arrange(versions, "c", 5)
    assert places["a"] == Place(5, 0)
    assert places["early"] == Place(5, 1) and places["c"] == Place(5, 2)  # the way to the head
    assert lines == {5: None, 6: Place(5, 0), 7: Place(5, 1), 8: None}
    assert list(places) == list(tree)
    with pytest.raises(ValueError, match="parent"):
        arrange({"a": Known("b", times[0]), "b": Known("a", times[1])}, "a", 1)


def test_two_processes_upgrade_at_once(tmp_path: Path) -> None:
    paths = [Path(shutil.copy(FIRST, tmp_path / f"{number}.db")) for number in range(5)]
    assert at_once("upgrade", paths) == [{f"[] {SCHEMA}", f"['0002'] {SCHEMA}"}] * 5
    assert len(list(tmp_path.glob("*.bak*"))) == len(paths)
