"""How v1.sqlite and v1.json were made: by deltamem-agents 0.1.0, whose store had schema 1.

Run in a checkout of that release: python tests/data/store/make_v1.py FOLDER
"""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

from deltamem_agents.store import Entry, Store, open_store

ADAPTER, OTHER = "adapter-one", "adapter-two"
SHARED = b"\x00the same bytes\xff" * 5
CALLS = {"tool_calls": [{"name": "suche", "args": {"q": "Käse ☕", "n": 1.5, "half": "\ud83d"}, "id": None}]}


def note(text: str, number: int, role: str = "user", **more: Any) -> Entry:
    return Entry(role, text, ("facts", "style"), message_id=f"m{number}", source="thread 7", **more)


def fill(store: Store) -> None:
    ada = "ada"
    one = store.commit(
        ada, parent=None, parts={"facts": SHARED, "style": b"s1"}, fingerprint=ADAPTER,
        entries=[note("Ada likes violet umbrellas", 1), note("", 2, "ai", payload=CALLS), note("Käse: 3 €", 3, "tool")],
    )  # fmt: skip
    for number in (10, 11):  # branches, made before the way to the head goes on
        store.commit(
            ada, parent=one.version_id, parts={"facts": b"branch %d" % number}, fingerprint=ADAPTER, move_head=False,
            entries=[Entry("user", f"branch {number}", ("facts",), source="Bob")],
        )  # fmt: skip
    two = store.commit(
        ada, parent=one.version_id, parts={"facts": b"f2"}, resets=["style"], fingerprint=ADAPTER,
        entries=[note("A zebra — 斑马 — crossed", 4)],
    )  # fmt: skip
    three = store.commit(ada, parent=two.version_id, parts={}, entries=[], resets=["facts"], fingerprint=OTHER)
    store.commit(ada, parent=three.version_id, parts={"facts": SHARED}, entries=[note("late", 5)], fingerprint=OTHER)
    store.commit(
        ada, parent=two.version_id, parts={"style": b""}, fingerprint=ADAPTER, move_head=False,
        entries=[Entry("user", "quiet aside", ("style",), source="threadbare")],
    )  # fmt: skip
    names = "../Grüße ⚑'\"%", ""
    for name in names:
        store.commit(name, parent=None, parts={"facts": SHARED}, entries=[note("violet", 1)], fingerprint=ADAPTER)
    store.commit("headless", parent=None, parts={}, entries=[note("a", 1)], fingerprint=ADAPTER, move_head=False)
    store.commit("headless", parent=None, parts={}, entries=[note("b", 2)], fingerprint=ADAPTER, move_head=False)


def describe(path: Path) -> dict[str, Any]:
    """What the old library reads from it."""
    rows = sqlite3.connect(path).execute("SELECT version_id, resets FROM versions ORDER BY rowid").fetchall()
    versions = {}
    with open_store(path) as store:
        for identity, resets in rows:
            version = store.version(identity)
            own = [entry for where, entry in store.journal(version.agent_id, identity) if where == identity]
            versions[identity] = {
                "agent": version.agent_id,
                "parent": version.parent,
                "fingerprint": version.fingerprint,
                "created_at": version.created_at.isoformat(),
                "resets": json.loads(resets),
                "parts": {name: data.hex() for name, data in store.load(identity).items()},
                "entries": [{**vars(entry), "content_hash": entry.content_hash} for entry in own],
            }
        return {"heads": {agent.agent_id: agent.head for agent in store.agents()}, "versions": versions}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with open_store(folder / "v1.sqlite") as made:
        fill(made)
    (folder / "v1.json").write_text(json.dumps(describe(folder / "v1.sqlite"), indent=1) + "\n")
