"""After delete, forget and collect nothing of it is in the files: the database with its free pages, log, and index.

Entries of several agents lie between each other, on the same pages. Each has a word that occurs nowhere else, in its
text, its payload and (by the full-text index) in pieces; each state has bytes of its own. Afterwards the files are
searched for every piece of six characters of the words, in any case, and for pieces of the states.
"""

import random
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from store_fire_turn import unsynced

from deltamem_agents.store import Entry, Filter, Store

PRINT = "adapter/backbone"
PIECE = 6  # characters of a word that would tell it
LETTERS = "bcdfghjkmnpqrstvwxz"
GONE = "agent to go"


class Secrets:
    """Words and states that are made once; ``kept`` and ``gone`` hold those whose owners stay or go."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.words: dict[str, list[str]] = {"kept": [], "gone": []}
        self.states: dict[str, list[bytes]] = {"kept": [], "gone": []}

    def word(self, kind: str) -> str:
        made = "".join(self.draw.choices(LETTERS, k=18))
        self.words[kind].append(made)
        return made

    def state(self, kind: str) -> bytes:
        made = self.draw.randbytes(self.draw.randrange(200, 9000))
        self.states[kind].append(made)
        return made


def entry(secrets: Secrets, kind: str, number: int) -> Entry:
    word, filler = secrets.word(kind), "the port of atlas is 80 " * secrets.draw.randrange(12)
    text = f"{filler}{word.capitalize()} é {word.upper()}"
    return Entry("human", text, ("facts",), f"id {number}", payload={"call": {"argument": secrets.word(kind)}})


def put(store: Store, agent: str, entries: Sequence[Entry], state: bytes, **more: Any) -> str:
    """Commit after the head, or after ``parent``."""
    more = {"parent": store.head(agent)} | more
    return store.commit(agent, parts={"facts": state}, entries=entries, fingerprint=PRINT, **more).version_id


def crowd(store: Store, secrets: Secrets, rounds: int, kept: Iterable[str]) -> None:
    """Versions of the agents that stay, and the one to go, in turn."""
    for i in range(rounds):
        for agent in (*kept, GONE):
            kind = "gone" if agent == GONE else "kept"
            entries = [entry(secrets, kind, 10 * i + j) for j in range(1 + secrets.draw.randrange(3))]
            put(store, agent, entries, secrets.state(kind))


def files(path: Path) -> bytes:
    """The bytes of the store's files. Read by another process: closing the file here would drop this one's locks."""
    names = [str(each) for each in sorted(path.parent.glob(f"{path.name}*"))]
    return subprocess.run(["cat", *names], check=True, capture_output=True).stdout


def pieces(secrets: Secrets) -> set[bytes]:
    """What would tell a word that is to go; no piece of a word or state that stays."""

    def of(kind: str) -> set[bytes]:
        return {word[i : i + PIECE].encode() for word in secrets.words[kind] for i in range(len(word) - PIECE + 1)}

    return cut(b"".join(secrets.states["kept"]).lower(), of("gone"), False) - of("kept")


def cut(raw: bytes, wanted: set[bytes], found: bool = True) -> set[bytes]:
    """Those pieces that are in some bytes (or are not)."""
    there = set[bytes]()
    for start in range(0, len(raw), 2**16):
        there |= wanted & {raw[i : i + PIECE] for i in range(start, start + 2**16)}
    return there if found else wanted - there


def found(path: Path, secrets: Secrets) -> tuple[int, int]:
    """How many pieces of words that are to go, and how many states with any piece of 32 bytes, are in the files."""
    raw, states = files(path), secrets.states["gone"]
    held = sum(any(state[i : i + 32] in raw for i in range(0, len(state) - 32, 2048)) for state in states)
    return len(cut(raw.lower(), pieces(secrets))), held


def deleting(store: Store, secrets: Secrets, rounds: int) -> None:
    crowd(store, secrets, rounds, ["agent b", "agent c", "agent d"])


def delete(store: Store, secrets: Secrets) -> None:
    store.delete(GONE)


def forgetting(store: Store, secrets: Secrets, rounds: int) -> None:
    """One agent: every third entry is to go, and all states that saw one of them."""
    draw = secrets.draw
    for i in range(rounds * 4):
        gone = i % 3 == 1
        two = [entry(secrets, "gone" if gone else "kept", 10 * i), entry(secrets, "kept", 10 * i + 1)]
        put(store, "agent", two, secrets.state("gone" if i else "kept"))
        put(store, "other", [entry(secrets, "kept", i)], draw.randbytes(500))


def forget(store: Store, secrets: Secrets) -> None:
    """What a chat model does, with other bytes in the place of computed ones."""
    words = set(secrets.words["gone"])
    gone = {r.entry_id for r in store.records("agent", Filter()) if set(str(r.entry.content).lower().split()) & words}
    new: dict[str, str | None] = {}
    for version in store.tree("agent"):
        records = store.journal("agent", version.version_id, after=version.parent)
        parent = new.get(str(version.parent), version.parent)
        left = [record for record in records if record.entry_id not in gone]
        if len(left) == len(records) and parent == version.parent:
            continue
        state = secrets.state("kept")
        new[version.version_id] = put(store, "agent", left, state, parent=parent, move_head=False)
    store.rewrite("agent", new, gone)


def collecting(store: Store, secrets: Secrets, rounds: int) -> None:
    """A trunk that stays, and branches that lead nowhere."""
    for i in range(rounds * 2):
        at = store.head("agent")
        for j in range(2):
            tip = put(
                store, "agent", [entry(secrets, "gone", 100 * i + j)], secrets.state("gone"), parent=at, move_head=False
            )
            put(store, "agent", [entry(secrets, "gone", 100 * i + 50 + j)], secrets.state("gone"), parent=tip,
                move_head=False)  # fmt: skip
        put(store, "agent", [entry(secrets, "kept", 100 * i + 99)], secrets.state("kept"))


def collect(store: Store, secrets: Secrets) -> None:
    store.collect("agent", older_than=timedelta(0))


def encrypting(store: Store, secrets: Secrets, rounds: int) -> None:
    """Everything is to be encrypted."""
    for i in range(rounds):
        for agent in (GONE, "agent b"):
            put(store, agent, [entry(secrets, "gone", i)], secrets.state("gone"))


def encrypt(store: Store, secrets: Secrets) -> None:
    store.rotate([b"k" * 32])


Step = Callable[[Store, Secrets], None]
WAYS: dict[str, tuple[Callable[[Store, Secrets, int], None], Step]] = {
    "delete": (deleting, delete),
    "forget": (forgetting, forget),
    "collect": (collecting, collect),
    "encrypt": (encrypting, encrypt),
}


def way(folder: Path, name: str, rounds: int, seed: int) -> dict[str, Any]:
    """Build a store, erase in one of the ways, and search the files while the store is open and after it is closed."""
    path, secrets = folder / f"{name}.db", Secrets(seed)
    fill, erase = WAYS[name]
    with closing(unsynced(path)) as store:
        fill(store, secrets, rounds)
        before = found(path, secrets)
        assert before[0] > len(pieces(secrets)) * 0.9 and before[1] == len(secrets.states["gone"]), before
        begin = time.monotonic()
        erase(store, secrets)
        seconds = time.monotonic() - begin
        while_open = found(path, secrets)
        assert (problems := list(store.verify())) == [], problems
        kept = secrets.words["kept"]
        texts = " ".join(str(r.entry.content) for a in store.agents() for r in store.journal(a.agent_id)).lower()
        assert sum(word in texts for word in kept) >= len(kept) / 2, "what was to stay is gone"  # the rest: payloads
    figures = {
        "pieces_of_words_before": before[0],
        "states_before": before[1],
        "pieces_of_words_after": while_open[0],
        "states_after": while_open[1],
        "file_mb": round(path.stat().st_size / 1e6, 2),
        "seconds": round(seconds, 2),
    }
    assert while_open == (0, 0) == found(path, secrets), f"{name}: {figures}"
    return figures


def erase(folder: Path, *, rounds: int = 60, seed: int = 0) -> dict[str, Any]:
    """Every way of erasing, on stores of some hundred entries."""
    return {name: way(folder, name, rounds, seed) for name in WAYS}
