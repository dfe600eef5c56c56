"""Threads that wait for the database can be woken by their own process, without an announcement to anybody else."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.store import Store
from tests.support.helpers import eventually
from tests.support.migrated import migrate


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Store]:
    """A store that has already announced its connection."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    migrate(store)
    store.notifications.count("ended")
    eventually(lambda: store.notifications.count("ended") > 1)
    yield store
    store.close()


def test_a_wake_up_ends_the_wait_under_way(quiet: Store) -> None:
    """A thread that waits for a topic returns when another thread of its process wakes it."""
    waiter = quiet.notifications.waiter("queued")
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(waiter.wait(waiter.count(), 60)))
    thread.start()

    waiter.wake()

    thread.join(30)
    assert ended == [True]


def test_a_wake_up_before_the_wait_is_kept(quiet: Store) -> None:
    """A wake-up ends the next wait at once, and that wait only."""
    waiter = quiet.notifications.waiter("queued")
    seen = waiter.count()

    waiter.wake()

    assert waiter.wait(seen, 60)
    assert not waiter.wait(seen, 0.01)


def test_a_wake_up_is_no_announcement(quiet: Store) -> None:
    """A wake-up reaches no other waiter of the topic and does not change the topic's count."""
    waiter = quiet.notifications.waiter("queued")
    other = quiet.notifications.waiter("queued")
    seen = other.count()

    waiter.wake()

    assert not other.wait(seen, 0.05)
    assert quiet.notifications.count("queued") == seen


def test_closing_ends_every_wait(quiet: Store) -> None:
    """A thread that waits for a topic returns when its store is closed."""
    waiter = quiet.notifications.waiter("revoked")
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(waiter.wait(waiter.count(), 60)))
    thread.start()

    quiet.notifications.close()

    thread.join(30)
    assert ended == [True]
