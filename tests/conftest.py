"""Seeds and threads for the whole run: tests are small, and threads of one test would only wait for another's."""

import random
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch

torch.set_num_threads(1)

if find_spec("hypothesis"):  # machines for the gpu tests may be without
    from hypothesis import settings

    # The same examples in every run, here and in continuous integration; --hypothesis-profile default draws others.
    settings.register_profile("same", derandomize=True, deadline=None, database=None, print_blob=True)
    settings.load_profile("same")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m gpu`` imports only the modules that have such tests: these need PyTorch, transformers and pytest alone."""
    if config.option.markexpr != "gpu" or collection_path.suffix != ".py":
        return None
    return None if "mark.gpu" in collection_path.read_text() else True


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
