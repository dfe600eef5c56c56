"""Wakes threads as soon as the database changes, without polling the tables.

SQLite: `PRAGMA data_version` on a separate connection changes when another connection commits. It takes no lock and a few
microseconds (sqlite.org/pragma.html#pragma_data_version). PostgreSQL: LISTEN, and a NOTIFY in every transaction that names a topic.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final, cast, get_args

from serve_app.store.database import Database, Topic
from serve_app.store.postgresql import Connection
from serve_app.supervision import PeriodicThread, Supervisor

POLL_S: Final = 0.01
"""Seconds between two reads of SQLite's `data_version`."""

RECONNECT_S: Final = 1.0

POOLED_S: Final = 1.0
"""Seconds between two wake-ups behind a pooler, which does not deliver PostgreSQL's notifications."""

CHECK_S: Final = 10.0
"""Seconds between two checks that PostgreSQL still holds the listening connection."""


class Notifications:
    """Counts the announcements of each topic by any process, and lets threads wait for the next one.

    One background thread watches the database; it starts with the first `count` or `wait`. SQLite does not say what changed,
    so there every commit counts as an announcement of every topic. A thread must expect wake-ups without a change: after each
    (re)connection every topic counts as announced, since an earlier announcement may have been missed.
    """

    def __init__(self, database: Database, supervisor: Supervisor) -> None:
        self._database = database
        self._condition = threading.Condition()
        self._counts: dict[Topic, int] = dict.fromkeys(get_args(Topic), 0)
        watch = self._watch_sqlite if database.is_sqlite else self._watch_postgresql
        self._thread = PeriodicThread(supervisor, "changes", lambda: self._watch(watch), retry_s=RECONNECT_S)
        self._closed = self._thread.stopping

    def count(self, topic: Topic) -> int:
        """How often the topic has been announced. Read it *before* the database, then pass it to `wait`: no change is missed."""
        self._start()
        return self._counts[topic]

    def wait(self, topic: Topic, seen: int, timeout: float) -> bool:
        """Block until the topic's count exceeds `seen`, or for `timeout` seconds. False after a timeout."""
        return self._wait_for(lambda: self._counts[topic] > seen, timeout)

    def waiter(self, topic: Topic) -> "Waiter":
        """A wait for a topic that other threads of this process can end."""
        return Waiter(self, topic)

    def close(self) -> None:
        """Stop watching. Every wait returns."""
        self._closed.set()
        self._announce()
        self._thread.join()

    def _start(self) -> None:
        with self._condition:
            if not self._thread.started:
                self._thread.start()

    def _wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        self._start()
        with self._condition:
            return self._condition.wait_for(lambda: condition() or self._closed.is_set(), timeout)

    def _wake_all(self) -> None:
        """Make every waiting thread test its condition again."""
        with self._condition:
            self._condition.notify_all()

    def _announce(self, *topics: Topic) -> None:
        """Count an announcement of the topics, or of every topic when none is named."""
        with self._condition:
            for topic in topics or self._counts:
                self._counts[topic] += 1
            self._condition.notify_all()

    def _watch(self, watch: Callable[[], None]) -> None:
        try:
            with self._database.translated_errors():
                watch()
        finally:
            self._announce()  # changes until the next connection are missed

    def _connected(self) -> None:
        self._thread.record_success()
        self._announce()  # changes before the connection were missed

    def _watch_sqlite(self) -> None:
        connection = sqlite3.connect(str(self._database.url.database), isolation_level=None)
        try:
            seen = None
            self._connected()
            while not self._closed.wait(POLL_S):
                version = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self._announce()
        finally:
            connection.close()

    def _watch_postgresql(self) -> None:
        with self._database.listen() as connection:
            if not self._database.is_pooled:
                self._listen(connection)
        self._connected()
        while not self._closed.wait(POOLED_S):
            self._announce()

    def _listen(self, connection: Connection) -> None:
        self._connected()
        checked_at = time.monotonic()
        while not self._closed.is_set():
            for notice in connection.notifies(timeout=0.2, stop_after=1):
                self._announce(cast(Topic, notice.payload))
            if time.monotonic() > checked_at + CHECK_S:  # a listener sends nothing, so TCP does not detect a dead peer
                connection.check(self._database.limits.silent_s)
                checked_at = time.monotonic()


class Waiter:
    """One thread's wait for a topic, which other threads of the same process can end with `wake`.

    A wake-up is local: it reaches no other waiter and no other process, and does not count as an announcement.
    """

    def __init__(self, notifications: Notifications, topic: Topic) -> None:
        self._notifications = notifications
        self._topic = topic
        self._woken = threading.Event()

    def count(self) -> int:
        """As `Notifications.count`."""
        return self._notifications.count(self._topic)

    def wait(self, seen: int, timeout: float) -> bool:
        """Block until the topic's count exceeds `seen`, `wake` is called, or for `timeout` seconds. False after a timeout.

        A wake-up that came before the wait ends it at once.
        """
        counts = self._notifications._counts
        ended = self._notifications._wait_for(lambda: counts[self._topic] > seen or self._woken.is_set(), timeout)
        self._woken.clear()
        return ended

    def wake(self) -> None:
        """End the current wait, or the next one when none is under way."""
        self._woken.set()
        self._notifications._wake_all()
