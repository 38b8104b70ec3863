"""Turns in processes of their own: killed at random moments, of one thread at once, of two threads at once."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from graph.killing import (
    AGENT,
    TEXT,
    Memory,
    Turn,
    Worker,
    agent_of,
    at_once,
    call,
    calling,
    config,
    lines,
    memory,
    said,
    undisturbed,
)
from langgraph.checkpoint.sqlite import SqliteSaver

EARLIER, OTHER = "Mila opens the door", "the report is blue"
Durability = Literal["sync", "async", "exit"]
both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def kill_and_resume(adapter: Path, tmp_path: Path, turn: Turn, moments: int, seed: int) -> None:
    """Kill the second turn of a thread at random moments and go on with it: nothing is lost or written twice."""
    expected = undisturbed(adapter, tmp_path / "undisturbed", EARLIER, TEXT)
    chance, killed = random.Random(seed), 0
    longest = _seconds(replace(turn, folder=_begun(turn, tmp_path / "timed")))
    for moment in range(moments):
        folder = _begun(turn, tmp_path / str(moment))
        worker = Worker(replace(turn, folder=folder))
        worker.go()
        killed += worker.kill(after=chance.uniform(0, longest))
        resumed = Worker(replace(turn, folder=folder))
        resumed.go()
        resumed.finish()
        assert memory(calling(adapter, folder)) == expected, f"moment {moment} of seed {seed}"
    assert killed >= moments // 5  # 0 of a few: a moment may come after the end of the turn


def _begun(turn: Turn, folder: Path) -> Path:
    """A folder in which the thread has one turn behind it."""
    folder.mkdir()
    replace(turn, folder=folder, text=EARLIER).take()
    return folder


def _seconds(turn: Turn) -> float:
    worker = Worker(turn)
    worker.go()
    return worker.finish()


@pytest.mark.parametrize(
    ("durability", "asynchronous"),
    [("sync", False), pytest.param("async", True, marks=pytest.mark.slow), ("exit", True)],
)
def test_a_turn_killed_at_any_moment_is_resumed(
    tiny_adapter: Path, tmp_path: Path, asynchronous: bool, durability: Durability
) -> None:
    turn = Turn(str(tiny_adapter), tmp_path, durability=durability, asynchronous=asynchronous)
    kill_and_resume(tiny_adapter, tmp_path, turn, moments=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@both
def test_a_turn_killed_at_a_hundred_moments_is_resumed(
    tiny_adapter: Path, tmp_path: Path, asynchronous: bool, durability: Durability
) -> None:
    turn = Turn(str(tiny_adapter), tmp_path, durability=durability, asynchronous=asynchronous)
    kill_and_resume(tiny_adapter, tmp_path, turn, moments=100, seed=2)


def said_by_people(remembered: Memory) -> list[str | None]:
    return [text for role, text, _ in remembered.journal if role == "user"]


def is_in(part: Sequence[object], whole: Sequence[object]) -> bool:
    """Whether all of ``part`` is in ``whole``, in its order."""
    rest = iter(whole)
    return all(item in rest for item in part)


@both
def test_two_workers_go_on_with_one_turn(tiny_adapter: Path, tmp_path: Path, asynchronous: bool) -> None:
    make = partial(agent_of, calling(tiny_adapter, tmp_path))
    call(make, tmp_path, said(TEXT), config(), asynchronous, interrupt_before=["remember"])
    at_once(*[Turn(str(tiny_adapter), tmp_path, asynchronous=asynchronous)] * 2)
    model = calling(tiny_adapter, tmp_path)
    expected = undisturbed(tiny_adapter, tmp_path / "undisturbed", TEXT)
    assert memory(model) == expected and lines(model) == [expected]


@both
def test_two_turns_of_one_thread_at_once(tiny_adapter: Path, tmp_path: Path, asynchronous: bool) -> None:
    turn = Turn(str(tiny_adapter), tmp_path, asynchronous=asynchronous, resumes=False)
    replace(turn, text=EARLIER).take()
    at_once(replace(turn, text=TEXT), replace(turn, text=OTHER))
    model = calling(tiny_adapter, tmp_path)
    told = [said_by_people(line) for line in lines(model)]
    assert all(line[0] == EARLIER for line in told)
    assert {text for line in told for text in line} == {EARLIER, TEXT, OTHER}
    with SqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
        thread = agent_of(model, saver).get_state(config()).values
    journal = model.opened_store.journal(AGENT, thread["memory_version"])
    assert is_in([message.id for message in thread["messages"]], [record.entry.message_id for record in journal])


@both
def test_two_threads_of_one_agent_at_once(tiny_adapter: Path, tmp_path: Path, asynchronous: bool) -> None:
    turn = Turn(str(tiny_adapter), tmp_path, asynchronous=asynchronous)
    replace(turn, text=EARLIER).take()
    at_once(turn, replace(turn, text=OTHER, thread="2"))
    model = calling(tiny_adapter, tmp_path)
    (remembered,) = lines(model)
    assert memory(model) == remembered
    assert sorted(filter(None, said_by_people(remembered))) == sorted([EARLIER, TEXT, OTHER])
    journal = list(model.opened_store.journal(AGENT))
    assert len(journal) == 15
    with SqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
        for thread in ("1", "2"):
            messages = agent_of(model, saver).get_state(config(thread)).values["messages"]
            written = [record.entry.message_id for record in journal if record.entry.thread_id == thread]
            assert written == [message.id for message in messages]
