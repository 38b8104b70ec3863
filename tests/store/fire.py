"""Finds the benchmarks: the tests run the same experiments, smaller."""

import sys
from importlib import import_module
from pathlib import Path

import warm

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import_module("store_fire_kill")  # asks for a server of processes with less in it than other tests need
warm.preload()
