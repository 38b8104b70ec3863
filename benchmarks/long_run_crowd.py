"""Many agents at once in one process: each is told two facts of its own and asked for one.

    python benchmarks/long_run_crowd.py FOLDER

All are told of the same thing, each another value, and of a thing of its own. No value is told to two of them, and none
is of a kind with few values, so that a wrong answer cannot be another agent's by chance.
"""

import asyncio
import json
import re
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from long_run_script import Settings, read_settings

from deltamem_agents import DeltaMemChatModel, create_deltamem_agent
from deltamem_agents.training.world.facts import KINDS, Fact
from deltamem_agents.training.world.session import new_facts

OPEN = {"port", "owner", "repository", "log_bucket", "email", "lead", "sponsor", "contact", "contract", "assignee"}
SHARED = next(kind for kind in KINDS if kind.key == "port")
MAX_TOKENS = 24


@dataclass(frozen=True)
class Member:
    """An agent of the crowd, what it is told, and which of it it is asked for."""

    name: str
    facts: tuple[Fact, Fact]
    asked: Fact
    texts: tuple[str, str, str]


def members(settings: Settings) -> list[Member]:
    rng = Random(f"crowd {settings.seed}")
    used: set[str] = set()
    crowd = []
    for i in range(settings.agents):
        facts = (_unused(rng, used, True), _unused(rng, used, False))
        asked = facts[i % 2]
        texts = (facts[0].state(rng), facts[1].state(rng), asked.ask(rng))
        crowd.append(Member(f"agent {i}", facts, asked, texts))
    return crowd


def _unused(rng: Random, used: set[str], shared: bool) -> Fact:
    while True:
        fact = Fact(SHARED, "atlas", SHARED.value(rng)) if shared else next(new_facts(rng, 1))
        own_kind = shared or (fact.kind.key in OPEN and fact.kind is not SHARED)
        if own_kind and fact.value not in used:
            used.add(fact.value)
            return fact


def holds(answer: str, value: str) -> bool:
    """Whether an answer names a value, as whole words."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer) is not None


async def crowd(folder: Path, settings: Settings) -> dict[str, Any]:
    """All turns of all agents; each agent takes its own in order, all agents go at the same time."""
    model = DeltaMemChatModel(store=str(folder / "crowd.db"), max_tokens=MAX_TOKENS)
    model.engine.answer(None, [[{"role": "user", "content": "Hello!"}]])  # loaded, before the clock starts
    everyone = members(settings)
    async with AsyncSqliteSaver.from_conn_string(str(folder / "crowd_checkpoints.db")) as saver:
        agent = create_deltamem_agent(model, checkpointer=saver)

        async def live(member: Member) -> str:
            config: RunnableConfig = {"configurable": {"agent_id": member.name, "thread_id": member.name}}
            for text in member.texts:
                state = await agent.ainvoke({"messages": [("user", text)]}, config, durability="sync")
            return str(state["messages"][-1].text).strip()

        wall, cpu = time.perf_counter(), time.process_time()
        answers = await asyncio.gather(*(live(member) for member in everyone))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    told = {fact.value: member.name for member in everyone for fact in member.facts}
    crossings = [
        {"agent": member.name, "answer": answer, "of": told[value]}
        for member, answer in zip(everyone, answers, strict=True)
        for value in told
        if told[value] != member.name and holds(answer, value)
    ]
    right = [answer == member.asked.value for member, answer in zip(everyone, answers, strict=True)]
    turns = 3 * len(everyone)
    return {
        "agents": len(everyone), "turns": turns, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2),
        "turns_per_s": round(turns / wall, 2), "exact_match": round(sum(right) / len(right), 4),
        "crossings": crossings, "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "wrong": [
            {"agent": m.name, "question": m.texts[2], "value": m.asked.value, "answer": answer}
            for m, answer, ok in zip(everyone, answers, right, strict=True) if not ok
        ][:20],
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    settings = read_settings(folder)
    torch.set_num_threads(settings.threads)
    for name in ("crowd.db", "crowd_checkpoints.db"):  # of a run that was interrupted
        for path in folder.glob(f"{name}*"):
            path.unlink()
    found = asyncio.run(crowd(folder, settings))
    (folder / "crowd.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
