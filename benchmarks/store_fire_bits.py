"""A small store, damaged in every place: what is read must be what was written, or a typed error.

Every page of the file is overwritten in turn, and single bits are flipped all over it.
"""

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltamem_agents.errors import StoreError
from deltamem_agents.store import Entry, Store, open_store

PRINT = "adapter/backbone"
PAGE = 4096
REMEDY = re.compile(
    r"restore a backup|deltamem (store|agents) \w+|free some|free space|permissions|name another|another file|"
    r"choose another|open the store again|upgrade the library|try again|set DELTAMEM_STORE_KEY",
    re.IGNORECASE,
)


def state(text: str) -> bytes:
    return random.Random(text).randbytes(3 * PAGE)


def put(store: Store, agent: str, text: str) -> str:
    entries = [
        Entry("human", f"{text} says the port of atlas is 80 " * 4, ("facts",), f"id {text}", "mira", {"text": text}),
        Entry("ai", f"noted {text}", ("facts",), thread_id="thread", gate={"facts": 0.5}, moved={"facts": 1.5}),
    ]
    parts = {"facts": state(text)}
    head = store.head(agent)
    return store.commit(agent, parent=head, parts=parts, entries=entries, fingerprint=PRINT).version_id


def made(path: Path, agents: int = 5, versions: int = 4) -> Path:
    """A small store, its log written back."""
    with open_store(path) as store:
        for i in range(versions):
            for a in range(agents):
                put(store, f"agent {a}", f"text {a} {i}")
    return path


def said(error: StoreError, path: Path, kinds: type[StoreError] | tuple[type[StoreError], ...] = StoreError) -> str:
    """The message of an error; it is of the right kind and names file and remedy."""
    text = str(error)
    assert isinstance(error, kinds), f"{type(error).__name__}: {text}"
    assert path.name in text, f"the file is not named: {text}"
    assert REMEDY.search(text), f"no remedy: {text}"
    return f"{type(error).__name__}: {text.replace(str(path.parent) + '/', '')}"


def failure(call: Callable[[], object], path: Path, kinds: type[StoreError] | tuple[type[StoreError], ...]) -> str:
    """What a call that must fail says."""
    try:
        call()
    except StoreError as error:
        return said(error, path, kinds)
    raise AssertionError("it did not fail")


def everything(store: Store) -> dict[str, Any]:
    """All that can be read of each agent; a StoreError where it cannot be read."""
    found: dict[str, Any] = {}
    for a in range(5):
        name = f"agent {a}"
        calls: dict[str, Callable[[], Any]] = {
            "state": lambda name=name: store.load(name).parts,
            "versions": lambda name=name: [(v.version_id, v.parent, v.parts) for v in store.history(name)],
            "journal": lambda name=name: [
                (r.entry.role, r.entry.content, r.entry.payload, r.entry.sub_states) for r in store.journal(name)
            ],
        }
        for what, call in calls.items():
            try:
                found[f"{name}: {what}"] = call()
            except StoreError as error:
                found[f"{name}: {what}"] = error
    return found


def looked_at(path: Path, expected: dict[str, Any]) -> Counter[str]:
    """Open a damaged file and read everything: counts of what came out. Raises when anything is wrong or untyped."""
    counts: Counter[str] = Counter()
    try:
        store = open_store(path)
    except StoreError as error:
        said(error, path)
        return Counter(refused_to_open=1)
    with store:
        found, wrong = everything(store), False
        for what, value in found.items():
            if isinstance(value, StoreError):
                said(value, path)
                counts["reads_refused"] += 1
            elif value == expected[what]:
                counts["reads_right"] += 1
            else:
                assert value not in ([], {}), f"{what} seems to be empty"
                counts[f"{what.partition(': ')[2]}_of_another_version"] += 1
                wrong = True
        refused = {what.partition(":")[0] for what, value in found.items() if isinstance(value, StoreError)}
        counts["agents_with_a_read_refused"] += len(refused)
        problems = list(store.verify())
        counts["damage_told_by_verify"] += bool(problems)
        assert problems or not wrong, "verify does not see it"
        counts["damage_told_by_nothing"] += not problems and not refused
    return counts


def damaged(folder: Path, harm: list[tuple[int, bytes]]) -> dict[str, int]:
    """For each (place, bytes): overwrite the bytes there in a copy of a store, and read everything."""
    whole = made(folder / "whole.db")
    with open_store(whole) as store:
        expected = everything(store)
    total: Counter[str] = Counter()
    for at, data in harm:
        path = folder / "memory.db"
        shutil.copy(whole, path)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)
        try:
            total += looked_at(path, expected)
        except BaseException as error:
            error.add_note(f"{len(data)} bytes at {at} (page {at // PAGE + 1}): {data[:16].hex()}…")
            raise
        total["files"] += 1
        for name in ("memory.db", "memory.db-wal", "memory.db-shm"):
            (folder / name).unlink(missing_ok=True)
    return dict(total)


def pages(folder: Path, every: int = 1, seed: int = 0) -> dict[str, int]:
    """Every page, or each ``every``-th, with random bytes and with zeros."""
    draw = random.Random(seed)
    size = made(folder / "size.db").stat().st_size
    places = range(draw.randrange(every) * PAGE, size, every * PAGE)
    return damaged(folder, [(at, data) for at in places for data in (draw.randbytes(PAGE), bytes(PAGE))])


def flips(folder: Path, times: int, seed: int = 0) -> dict[str, int]:
    """Single bits anywhere."""
    draw = random.Random(seed)
    data = made(folder / "size.db").read_bytes()
    places = [draw.randrange(len(data)) for _ in range(times)]
    return damaged(folder, [(at, bytes([data[at] ^ 1 << draw.randrange(8)])) for at in places])
