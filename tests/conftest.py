"""Fixtures that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app import weights
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.store import Store
from tests.support.databases import empty_database, postgresql
from tests.support.leaks import Leaks


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """After pytest's own plugins, whose hook it goes before."""
    Leaks().install()


RANDOM = ModelArgs(source="random", device="cpu")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which checkpoints are unpacked and built once a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def checkpoint(cache: Path) -> Path:
    """The random checkpoint: the official layout with all parts. Copy it before changing it."""
    return weights.resolve("test", RANDOM, cache, lambda phase, fraction, detail: None)


@pytest.fixture(scope="session")
def engine(checkpoint: Path, cache: Path) -> AceStepEngine:
    """An engine with the random checkpoint, loaded once a session."""
    loaded = AceStepEngine("test", RANDOM, cache)
    loaded.load(lambda phase, fraction, detail: None)
    return loaded


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server, started once a session."""
    with postgresql() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """An empty PostgreSQL database."""
    with empty_database(postgresql_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store with its tables made, on each kind of database."""
    store = Store(database_url)
    store.migrate()
    yield store
    store.close()
