"""Forgetting one entry of a thousand, and moving a thousand to another adapter: bit for bit, on the CPU in float32.

With the embedded adapter. An agent that forgot an entry is compared with one that never saw it; one that was moved to
another adapter of the same backbone, with one that was written by that adapter in the first place. Each message is a
version of its own.
"""

import random
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from deltamem_agents.store import Filter, Store, open_store

PEOPLE = "Mila Otto Vera Juno Kasper Ilse".split()
THINGS = "tank pump valve door sensor report".split()
PLACES = "north hall|harbour|third floor|depot|east wing|archive".split("|")


def messages(count: int, seed: int) -> list[Any]:
    """Short messages of a day's work; every third is an answer of the agent."""
    from langchain_core.messages import AIMessage, HumanMessage

    draw = random.Random(seed)
    made = []
    for i in range(count):
        person, thing, place = draw.choice(PEOPLE), draw.choice(THINGS), draw.choice(PLACES)
        kind = AIMessage if i % 3 == 2 else HumanMessage
        text = f"{person} moved {thing} {draw.randrange(100)} to the {place}."
        made.append(kind(text, id=f"m{i}"))
    return made


def second_adapter(folder: Path) -> Path:
    """A fresh adapter for the embedded backbone, of the same shape as the embedded one, but other weights."""
    from deltamem_agents.engine import load_engine
    from deltamem_agents.memory import load_adapter, new_adapter

    engine = load_engine(device="cpu", dtype="float32")
    config = load_adapter("worldops-msw").config
    new_adapter(engine.model, config, output_std=0.05, seed=7).save(folder)
    return folder


def tell(memory: Any, agent: str, said: Sequence[Any]) -> float:
    """Write each message in a version of its own; the seconds it took."""
    begin = time.perf_counter()
    for message in said:
        memory.remember([message], agent)
    return time.perf_counter() - begin


def same(memory: Any, one: str, other: str) -> bool:
    """Whether two agents have the same bits in every sub-state, and the same journal, and their heads are whole."""
    store: Store = memory.store
    mine, theirs = store.load(one), store.load(other)
    journals = [[(r.entry, r.entry.gate, r.entry.moved) for r in store.journal(agent)] for agent in (one, other)]
    return bool(mine.parts) and mine.parts == theirs.parts and journals[0] == journals[1]


def timed(call: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    return call(), round(time.perf_counter() - begin, 2)


def replay(folder: Path, *, entries: int = 1000, at: int = 100, seed: int = 0) -> dict[str, Any]:
    """Forget the entry number ``at`` of ``entries``, and move ``entries`` to another adapter."""
    from deltamem_agents.chat_model import replay as journal
    from deltamem_agents.chat_model.memory import AgentMemory
    from deltamem_agents.engine import load_engine

    embedded = load_engine(device="cpu", dtype="float32")
    other = load_engine(second_adapter(folder / "adapter"), backbone=_backbone(), device="cpu", dtype="float32")
    said = messages(entries, seed)
    figures: dict[str, Any] = {"entries": entries}
    with closing(open_store(folder / "memory.db")) as store:
        old, new = AgentMemory(embedded, store), AgentMemory(other, store)
        assert old.engine.fingerprint != new.engine.fingerprint
        figures["write_s"] = round(tell(old, "moved", said), 2)
        tell(old, "forgot", said)
        tell(old, "never saw it", [*said[:at], *said[at + 1 :]])
        tell(new, "written by the new adapter", said)
        problems, figures["replay_and_compare_s"] = timed(lambda: list(journal.replay(old, "forgot")))
        assert problems == []
        done, figures["forget_s"] = timed(lambda: journal.forget(old, "forgot", Filter(ids=[f"m{at}"])))
        assert (done.entries, done.versions) == (1, entries - at)
        assert same(old, "forgot", "never saw it"), "forgetting left something"
        assert store.tombstones("forgot") == {f"m{at}"}
        moved, figures["migrate_s"] = timed(lambda: journal.migrate(new, "moved"))
        assert moved.versions == entries
        assert same(new, "moved", "written by the new adapter"), "the states are not the new adapter's"
        assert store.version("moved", store.head("moved")).fingerprint == new.engine.fingerprint
        assert (problems := list(store.verify())) == [], problems
    return figures | {"forgot_equals_never_saw_it": True, "migrated_equals_written": True, "rewritten": entries - at}


def _backbone() -> Path:
    from deltamem_agents.config import find_adapter

    found = find_adapter("worldops-msw")
    assert found is not None, "the embedded adapter is not here"
    return found / "backbone"
