"""One agent that lives through thousands of turns: the process that plays them, and what is checked at their end.

    python benchmarks/long_run_agent.py play FOLDER PARENT

It is started by long_run.py, whose process id is PARENT, and stops when that is gone.
What was done stands in ``rows.jsonl``, a line for each turn, day, fork and process. A process that is killed leaves a
thread in any state; the next one goes on from the thread's checkpoint. Turns have ids: at the end each must be in the
journal once.

The agent's memory needs no thread, and a thread keeps all its messages: every day (``--day`` turns) has a thread of its
own. At its end, ``task_progress`` is emptied with ``--end-tasks``, threads older than yesterday are deleted, and memory
versions older than three days keep their bytes at every 50th: the journal brings the others back.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from long_run_script import ROWS, Settings, Turn, facts_at, fork_points, read_rows, read_settings, script, thread_of

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent

AGENT = "long run"
MAX_TOKENS = 24
KEEP_EVERY = 50  # of the versions older than three days, those whose bytes stay
REBUILT = 100  # of the newest versions, and a tenth as many of all: computed again at the end


def resident_bytes() -> int:
    """Resident memory of this process."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        raise SystemExit("resident memory is read from /proc/self/statm: run this on Linux")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def size_of(folder: Path, name: str) -> int:
    """Bytes of a database with its write-ahead log."""
    return sum(path.stat().st_size for path in (folder / name, folder / f"{name}-wal") if path.exists())


class Worker:
    """Plays what is left of the script."""

    def __init__(self, folder: Path, settings: Settings, saver: Any, parent: int) -> None:
        self.folder, self.settings, self.saver, self.parent = folder, settings, saver, parent
        self.turns, self.forks = script(settings), fork_points(settings)
        rows = read_rows(folder)
        self.done = sum(row["row"] == "turn" for row in rows)
        self.forked = {row["before_turn"] for row in rows if row["row"] == "fork"}
        self.tidied = {row["before_turn"] for row in rows if row["row"] == "day"}
        self.process = sum(row["row"] == "process" for row in rows)
        self.model = DeltaMemChatModel(store=str(folder / "memory.db"), max_tokens=MAX_TOKENS)
        self.tool_result: str | None = None
        self.tool = self._tool()
        self.agent = create_deltamem_agent(self.model, [self.tool], checkpointer=saver)

    def _tool(self) -> Any:
        def get_service(name: str) -> str:
            """Look up a service.

            Args:
                name: Name of the service.
            """
            found = self.tool_result
            known = found is not None and json.loads(found)["service"].lower() == name.lower()
            return found if known and found else '{"error": "not found"}'

        return get_service

    def write(self, **row: Any) -> None:
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def run(self) -> None:
        """To the end of the script, or of the process that started this one."""
        self.write(row="process", process=self.process, before_turn=self.done)
        for n, turn in enumerate(self.turns[self.done :]):
            if os.getppid() != self.parent:
                raise SystemExit("the process that started this one is gone: start the command again to go on")
            if turn.number in self.forks and turn.number not in self.forked:
                self.fork(turn.number)
            if turn.number and turn.number % self.settings.day == 0 and turn.number not in self.tidied:
                self.tidy(turn.number)
            self.play(turn, n)

    def play(self, turn: Turn, n: int) -> None:
        """One turn, measured; one that a killed process began is resumed."""
        config = self.config(turn.number)
        self.tool_result = turn.tool_result
        wall, cpu = time.perf_counter(), time.process_time()
        found, how = self.resumed(turn, config) if n == 0 else (None, "whole")
        if found is None:
            found = self.say(turn.text, f"turn-{turn.number}", config)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer, called = answer_of(found), calls_of(found, f"turn-{turn.number}")
        self.write(
            row="turn", turn=turn.number, kind=turn.kind, process=self.process, n=n, how=how,
            into_thread=turn.number - thread_of(self.settings, self.forks, turn.number)[1],
            wall_s=round(wall, 5), cpu_s=round(cpu, 5), rss=resident_bytes(), age=turn.age, answer=answer,
            right=answer == turn.answer, tool_calls=called,
            memory_db=size_of(self.folder, "memory.db"), checkpoints_db=size_of(self.folder, "checkpoints.db"),
        )  # fmt: skip

    def config(self, turn: int) -> RunnableConfig:
        thread, _ = thread_of(self.settings, self.forks, turn)
        return {"configurable": {"agent_id": AGENT, "thread_id": thread}}

    def say(self, text: str, identity: str, config: RunnableConfig) -> dict[str, Any]:
        said = {"messages": [{"role": "user", "content": text, "id": identity}]}
        result: dict[str, Any] = self.agent.invoke(said, config, durability="sync")
        return result

    def resumed(self, turn: Turn, config: RunnableConfig) -> tuple[dict[str, Any] | None, str]:
        """The thread's state after a turn that an earlier process began, and how far that had come."""
        state = self.agent.get_state(config)
        if all(message.id != f"turn-{turn.number}" for message in state.values.get("messages", ())):
            return None, "whole"
        if not state.next:
            return dict(state.values), "ended before"
        result: dict[str, Any] = self.agent.invoke(None, config, durability="sync")
        return result, f"resumed at {state.next[0]}"

    def fork(self, before: int) -> None:
        """Ask at an older checkpoint of the thread: the memory of that moment answers, and the head stays.

        Raises:
            SystemExit: it is not so.
        """
        rng, config = Random(f"fork {self.settings.seed} {before}"), self.config(before - 1)
        ends = self.turn_ends(config, before)
        moment = rng.choice(sorted(ends)[:-1])
        then, now = facts_at(self.turns[: moment + 1]), facts_at(self.turns[:before])
        changed = [fact for key, fact in then.items() if now[key] != fact]
        fact = rng.choice(changed or list(then.values()))
        question, version = fact.ask(rng), ends[moment].values["memory_version"]
        store = self.model.opened_store
        head = store.head(AGENT)
        asked = {"agent_id": AGENT, "memory_version": version, "history": "all"}
        direct = self.model.bind_tools([self.tool]).invoke([HumanMessage(question)], **asked)
        there: RunnableConfig = {"configurable": {**ends[moment].config["configurable"], "agent_id": AGENT}}
        wall = time.perf_counter()
        found = self.say(question, f"fork-{before}", there)
        wall = time.perf_counter() - wall
        ids, branch = [message.id for message in found["messages"]], found["memory_version"]
        checks = {
            "the head moved": store.head(AGENT) == head,
            "what it wrote is on the head's line": not store.is_ancestor(AGENT, branch, str(head)),
            "what it wrote does not come after that moment's version": store.is_ancestor(AGENT, version, branch),
            "it did not read that moment's memory": found["messages"][ids.index(f"fork-{before}") + 1].text
            == direct.text,
        }
        if wrong := [what for what, holds in checks.items() if not holds]:
            raise SystemExit(f"the fork before turn {before} from the end of turn {moment}: {'; '.join(wrong)}")
        self.write(
            row="fork", before_turn=before, from_end_of_turn=moment, changed_since=bool(changed), question=question,
            answer=answer_of(found), right=answer_of(found) == fact.value, wall_s=round(wall, 5),
        )  # fmt: skip

    def turn_ends(self, config: RunnableConfig, before: int) -> dict[int, Any]:
        """Turn -> the thread's checkpoint at its end; at least two."""
        ends: dict[int, Any] = {}
        for state in self.agent.get_state_history(config):
            ids = [message.id for message in state.values.get("messages", ()) if message.type == "human"]
            if not state.next and ids and ids[-1].startswith("turn-"):
                ends.setdefault(int(ids[-1].removeprefix("turn-")), state)
        if len(ends) < 2:
            raise SystemExit(f"fork before turn {before}: its thread has {len(ends)} turns: choose a longer --day")
        return ends

    def tidy(self, before: int) -> None:
        """What happens each day: its task ends, threads older than yesterday go, so do the bytes of old versions."""
        if self.settings.end_tasks:
            self.model.reset(AGENT, "task_progress")
        keep = before - self.settings.day
        begin = time.perf_counter()
        for thread in self._threads(keep):
            self.saver.delete_thread(thread)
        middle = time.perf_counter()
        pruned = self.model.opened_store.prune(AGENT, keep_every=KEEP_EVERY, keep_last=3 * self.settings.day)
        end = time.perf_counter()
        state = len(self.model.load_state(AGENT).to_bytes())
        self.write(
            row="day", before_turn=before, delete_threads_s=round(middle - begin, 4), prune_s=round(end - middle, 4),
            pruned=pruned, state_bytes=state,
        )  # fmt: skip

    def _threads(self, keep: int) -> Iterator[str]:
        """Threads of the day that ended before ``keep``."""
        starts = {thread_of(self.settings, self.forks, turn) for turn in range(keep - self.settings.day, keep)}
        yield from sorted(thread for thread, start in starts if 0 <= start < keep)


def answer_of(state: dict[str, Any]) -> str:
    return str(state["messages"][-1].text).strip()


def calls_of(state: dict[str, Any], identity: str) -> int:
    """How many tools were called since the message of that id."""
    ids = [message.id for message in state["messages"]]
    return sum(message.type == "tool" for message in state["messages"][ids.index(identity) :])


def verify(folder: Path, settings: Settings) -> dict[str, Any]:
    """What stands in the store after the run: checksums, the newest versions computed again, each turn once.

    Raises:
        SystemExit: a turn is missing or twice; StateError: a version is not what the journal gives.
    """
    memory = DeltaMemChatModel(store=str(folder / "memory.db")).memories
    begin = time.perf_counter()
    problems = [str(problem) for problem in memory.store.verify(AGENT)]
    line = memory.store.history(AGENT)
    chosen = line[:REBUILT] + Random(settings.seed).sample(line, min(REBUILT // 10, len(line)))
    for version in chosen:
        memory.rebuild(AGENT, version.version_id)
    ids = Counter(str(record.entry.message_id) for record in memory.store.journal(AGENT) if record.entry.role == "user")
    wanted = Counter(f"turn-{number}" for number in range(settings.turns))
    if ids != wanted:
        wrong = sorted(name for name in {*ids, *wanted} if ids[name] != wanted[name])
        raise SystemExit(f"{len(wrong)} turns are not in the head's journal exactly once: {', '.join(wrong[:5])}")
    tree = memory.store.tree(AGENT)
    return {
        "problems": problems, "versions": len(tree), "on_the_line_of_the_head": len(line),
        "resets": sum(bool(version.resets) for version in line),
        "pruned": sum(version.pruned for version in tree), "computed_again": len(chosen),
        "turns_in_the_journal_once": sum(ids.values()), "seconds": round(time.perf_counter() - begin, 2),
    }  # fmt: skip


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    settings = read_settings(folder)
    torch.set_num_threads(settings.threads)
    if what == "verify":
        (folder / "verified.json").write_text(json.dumps(verify(folder, settings)), encoding="utf-8")
        return
    with SqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        Worker(folder, settings, saver, parent=int(sys.argv[3])).run()


if __name__ == "__main__":
    main()
