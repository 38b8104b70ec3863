"""Seeds and threads for the whole run: tests are small, and threads of one test would only wait for another's."""

import random

import numpy
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# The same examples in every run, here and in continuous integration; --hypothesis-profile default draws others.
settings.register_profile("same", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
