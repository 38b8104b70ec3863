# Each target does all the set-up that it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
CODE := $(wildcard deltamem_agents tests examples benchmarks)

# Test processes; 0: all tests in one. Two on two cores take six minutes.
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit wheel clean

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

install: .venv/.installed ## the library and what its tests need, in .venv

# PyTorch first: a build for the CPU that pip finds then stays, and is not replaced by the much larger one for CUDA.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

demo: install ## a tour of the library, on this machine
	$(BIN)/deltamem demo

test: lint types unit ## all checks: ruff, mypy, pytest

lint: install ## ruff
	$(BIN)/ruff check $(CODE)

types: install ## mypy
	$(BIN)/mypy

# The tests' tensors are tiny: more threads only wait for each other.
unit: export OMP_NUM_THREADS := 1
unit: install ## pytest
	$(BIN)/python -m pytest -n $(WORKERS)

wheel: install ## dist/deltamem_agents-*.whl, with the adapters in it
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## delete .venv, dist and caches
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
