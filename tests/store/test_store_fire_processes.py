"""Processes that are killed, and many at once, on one file."""

import fire  # noqa: F401
import pytest
from store_fire_crowd import one_agent, own_agents
from store_fire_kill import kill


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_writer_leaves_what_it_was_told(tmp_path, seed):
    figures = kill(tmp_path, times=8, longest=0.15, seed=seed)
    assert figures["acknowledged_writes"] <= figures["versions_there"]


def test_many_write_to_one_agent(tmp_path):
    figures = one_agent(tmp_path / "memory.db", processes=8, writes=15)
    assert (figures["writes"], figures["errors"]) == (120, 0)


def test_many_write_to_agents_of_their_own(tmp_path):
    figures = own_agents(tmp_path / "memory.db", processes=8, agents=5, writes=2)
    assert (figures["writes"], figures["errors"], figures["agents"]) == (80, 0, 40)
