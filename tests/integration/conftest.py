"""Fixtures of the integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.store import Store
from tests.support.webhooks import Receiver, running_receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 204."""
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """A store on SQLite, for tests in which the kind of database does not matter."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    store.migrate()
    yield store
    store.close()
