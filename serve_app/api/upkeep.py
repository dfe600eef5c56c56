"""What time asks of the queue, done by every API process: deadlines, run limits, lost leases, the work of the dead."""

import logging
import threading
import time
from typing import Final

from serve_app.config import QueueArgs
from serve_app.errors import StoreUnavailable
from serve_app.store import Store

logger = logging.getLogger("ray.serve.sophia")

EVERY_S: Final = 1.0


class Upkeep:
    """A thread that brings the schema up to date, then sweeps the queue once a second."""

    def __init__(self, store: Store, queue: QueueArgs):
        self._store, self._queue = store, queue
        self._deaf_until = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin. A database that is away is waited for: the API answers pings meanwhile, and 503 to the rest."""
        self._thread.start()

    def close(self) -> None:
        """End after the sweep under way."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        migrated = False
        while not self._ended.is_set():
            try:
                if not migrated:
                    self._store.migrate()
                    migrated = True
                self._sweep()
            except StoreUnavailable as error:
                logger.warning("upkeep waits: %s", error)
                # While the database was away no worker could be heard: give them a lease's time to speak up again.
                self._deaf_until = time.monotonic() + self._queue.lease_s
            self._ended.wait(EVERY_S)

    def _sweep(self) -> None:
        self._store.bury()
        heard = time.monotonic() >= self._deaf_until
        if moved := self._store.jobs.sweep(self._queue.run_limit_s, give_up_leases=heard):
            logger.info("swept %s jobs: lost leases, deadlines or run limits", moved)
