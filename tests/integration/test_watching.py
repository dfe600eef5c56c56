"""Waiting for changes that another process makes in the job store."""

import threading
import time

import sqlalchemy as sa

from serve_app.store import Store
from tests.support.helpers import eventually
from tests.support.queue import submit


def test_a_change_by_another_process_wakes_a_waiter(store: Store, store_url: str) -> None:
    """A process that waits for work is woken by a submission through another connection."""
    other = Store(store_url)
    try:
        store.notifications.wait(
            "queued", store.notifications.count("queued"), 1
        )  # the first sight of the database is a change
        woken = threading.Event()
        seen = store.notifications.count("queued")

        def wait() -> None:
            if store.notifications.wait("queued", seen, 20):
                woken.set()

        waiter = threading.Thread(target=wait)
        began = time.monotonic()
        waiter.start()
        submit(other)
        waiter.join()
        assert woken.is_set()
        assert time.monotonic() - began < 10
    finally:
        other.close()


def test_watching_survives_a_database_that_comes_back(migrated_postgresql_url: str) -> None:
    """A watcher whose connection was cut is woken by changes again, and counts the gap as one change."""
    store = Store(migrated_postgresql_url)
    try:
        seen = store.notifications.count("ended")
        assert store.notifications.wait("ended", seen, 20)
        seen = store.notifications.count("ended")
        with store.database.write() as connection:
            connection.execute(
                sa.text(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where query like 'LISTEN%' and datname = current_database()"
                )
            )
        assert store.notifications.wait("ended", seen, 20)
        seen = store.notifications.count("queued")
        submit(store)
        eventually(lambda: store.notifications.count("queued") > seen)
    finally:
        store.close()
