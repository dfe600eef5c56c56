"""Learning of a change at once, without polling cost.

SQLite: `PRAGMA data_version` on a connection of its own changes when another connection commits; it takes no lock and a few
microseconds (sqlite.org/pragma.html#pragma_data_version). PostgreSQL: LISTEN, woken by the NOTIFY of every write.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final, cast, get_args

from serve_app.store.database import Database, Topic
from serve_app.store.postgresql import Connection
from serve_app.supervision import Supervisor, WorkThread

POLL_S: Final = 0.01
RECONNECT_S: Final = 1.0

POOLED_S: Final = 1.0
"""How often waiters look by themselves where PostgreSQL's notifications do not arrive."""

CHECK_S: Final = 10.0
"""PostgreSQL is asked so often whether it still holds the connection that listens."""


class Notifications:
    """A counter for each topic that grows when something happened, and a way to wait for it. One thread watches.

    SQLite does not say what has changed, so there every change counts for every topic.
    """

    def __init__(self, database: Database, supervisor: Supervisor) -> None:
        self._database = database
        self._condition = threading.Condition()
        self._counts: dict[Topic, int] = dict.fromkeys(get_args(Topic), 0)
        watch = self._watch_sqlite if database.is_sqlite else self._watch_postgresql
        self._thread = WorkThread(supervisor, "changes", lambda: self._watch(watch), RECONNECT_S)
        self._closed = self._thread.ended

    def count(self, topic: Topic) -> int:
        """Read it *before* looking at the database, then wait with it: no change between the two is missed."""
        self._start()
        return self._counts[topic]

    def wait(self, topic: Topic, seen: int, timeout: float) -> bool:
        """Block until the topic's counter has passed `seen` or `timeout` seconds are over; whether it has passed."""
        self._start()
        with self._condition:
            return self._condition.wait_for(lambda: self._counts[topic] > seen or self._closed.is_set(), timeout)

    def notify(self, *topics: Topic) -> None:
        """Wake the waiters of this process; of every topic when none is named."""
        with self._condition:
            for topic in topics or self._counts:
                self._counts[topic] += 1
            self._condition.notify_all()

    def close(self) -> None:
        """Stop watching; waiters return."""
        self._closed.set()
        self.notify()
        self._thread.join()

    def _start(self) -> None:
        with self._condition:
            if not self._thread.started:
                self._thread.start()

    def _watch(self, watch: Callable[[], None]) -> None:
        try:
            with self._database.unavailable_as_ours():
                watch()
        finally:
            self.notify()  # what happens until the next look is not seen

    def _sees(self) -> None:
        self._thread.went_well()
        self.notify()  # what was committed before was not seen

    def _watch_sqlite(self) -> None:
        connection = sqlite3.connect(str(self._database.url.database), isolation_level=None)
        try:
            seen = None
            self._sees()
            while not self._closed.wait(POLL_S):
                version = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self.notify()
        finally:
            connection.close()

    def _watch_postgresql(self) -> None:
        with self._database.listen() as connection:
            if not self._database.is_pooled:
                self._hear(connection)
        self._sees()
        while not self._closed.wait(POOLED_S):  # nothing is heard through a pooler
            self.notify()

    def _hear(self, connection: Connection) -> None:
        silent_s = self._database.limits.silent_s
        self._sees()
        checked_at = time.monotonic()
        while not self._closed.is_set():
            for notice in connection.notifies(timeout=0.2, stop_after=1):
                self.notify(cast(Topic, notice.payload))
            if time.monotonic() > checked_at + CHECK_S:  # a listener sends nothing, and so never learns of a dead peer
                connection.check(silent_s)
                checked_at = time.monotonic()
