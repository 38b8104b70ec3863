"""The benchmark's commands: each is there, and one of them from end to end."""

import json
import subprocess
import sys
from importlib import import_module
from inspect import signature

import pytest
from fire import BENCHMARKS
from store_fire import COMMANDS, percentile, spread

RUN = [sys.executable, str(BENCHMARKS / "store_fire.py")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_options_with_defaults(name):
    function = getattr(import_module(COMMANDS[name]), name)
    options = [p for p in signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert options and all(type(option.default) in (int, float) for option in options)
    assert function.__doc__


def test_the_commands_need_the_store_alone():
    modules = ", ".join(sorted({"store_fire", *COMMANDS.values()}))
    check = f"import sys; import {modules}; assert not {{'torch', 'langchain_core', 'alembic'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=BENCHMARKS)


def test_a_command_writes_down_what_it_found(tmp_path):
    options = ["erase", "--rounds", "6", "--folder", str(tmp_path / "new"), "--results", str(tmp_path)]
    subprocess.run([*RUN, *options], check=True, capture_output=True)
    told = (tmp_path / "erase.json").read_text()
    result = json.loads(told)
    assert result["options"] == {"rounds": 6, "seed": 0}
    assert result["command"] == "python benchmarks/store_fire.py erase --rounds 6"
    assert set(result["figures"]) == {"delete", "forget", "collect", "encrypt"}
    assert {"cpu", "cores", "load_before"} <= set(result["machine"]) and "sqlite" in result["versions"]
    assert str(tmp_path) not in told and not list((tmp_path / "new").iterdir())


def test_percentiles():
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0 == percentile([1.0, 2.0], 99)
    assert [percentile(range(1, 101), p) for p in (50, 99, 100)] == [50, 99, 100]
    assert spread([0.001, 0.002, 0.004]) == {"p50_ms": 2.0, "p99_ms": 4.0, "max_ms": 4.0}
