"""A PostgreSQL server for the tests that ask for one, and an empty database for each of them."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from postgres_cluster import PACKAGE, Cluster, Missing, server_user


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    """A running server. Without one to start, tests are skipped; where CI is set, they fail."""
    try:
        if find_spec("psycopg") is None:
            raise Missing(f'no psycopg: pip install "psycopg[binary]" (and the {PACKAGE} for the server)')
        server_user()
        cluster = Cluster()
    except Missing as missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(missing))
    cluster.start()
    yield cluster
    cluster.remove()


@pytest.fixture
def postgres_url(postgres_cluster: Cluster) -> Iterator[str]:
    """The URL of an empty database."""
    if not postgres_cluster.running:  # a test before this one broke off
        postgres_cluster.start()
    url = postgres_cluster.url()
    yield url
    if not postgres_cluster.running:
        postgres_cluster.start()
    postgres_cluster.drop(url)
