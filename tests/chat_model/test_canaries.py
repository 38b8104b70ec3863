"""Agents that are answered in one batch never hear of each other: each is told numbers that nobody else was told."""

import random
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from deltamem_agents.chat_model import DeltaMemChatModel

NAMES = ("atlas", "beacon", "comet", "delta")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("agents", "questions"), [(8, 64), pytest.param(64, 1000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_canaries_never_cross(tmp_path: Path, agents: int, questions: int) -> None:
    model = DeltaMemChatModel(device="cpu", store=str(tmp_path / "memory.db"), remember=False)
    random_numbers = random.Random(7)
    numbers = iter(random_numbers.sample(range(1_000, 10_000), agents * len(NAMES)))
    told = {f"agent-{i}": {name: str(next(numbers)) for name in NAMES} for i in range(agents)}
    whose = {number: agent for agent, ports in told.items() for number in ports.values()}
    for agent, ports in told.items():
        model.remember([HumanMessage(f"The port of {name} is {port}.") for name, port in ports.items()], agent)
    asked = [(random_numbers.choice(list(told)), random_numbers.choice(NAMES)) for _ in range(questions)]
    replies = model.batch(
        [f"What is the port of {name}?" for _, name in asked],
        [{"configurable": {"agent_id": agent}} for agent, _ in asked],
        max_tokens=12,
    )
    crossed = [
        (agent, name, reply.text)
        for (agent, name), reply in zip(asked, replies, strict=True)
        if any(whose.get(word.strip("."), agent) != agent for word in reply.text.split())
    ]
    assert crossed == []
    right = [told[agent][name] == reply.text for (agent, name), reply in zip(asked, replies, strict=True)]
    assert sum(right) >= 0.8 * questions  # so silence does not pass
