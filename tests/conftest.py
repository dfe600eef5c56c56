"""Fixtures that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app import weights
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.store import Store
from tests.support.databases import copied_database, empty_database, migrated_template, postgresql
from tests.support.leaks import Leaks
from tests.support.migrated import migrate


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


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> Iterator[str]:
    """The name of a PostgreSQL database with Sophia's tables."""
    with migrated_template(postgresql_server) as name:
        yield name


@pytest.fixture
def migrated_postgresql_url(postgresql_server: str, postgresql_template: str) -> Iterator[str]:
    """A PostgreSQL database with Sophia's tables and without rows."""
    with copied_database(postgresql_server, postgresql_template) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store with its tables made, on each kind of database."""
    if request.param == "sqlite":
        store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
        migrate(store)
    else:
        store = Store(request.getfixturevalue("migrated_postgresql_url"))
    yield store
    store.close()


@pytest.fixture
def store_url(store: Store) -> str:
    """The address of the database of the fixture `store`, for another store of it."""
    return store.database.url.render_as_string(hide_password=False)
