"""What time asks of the queue, done by every API process: deadlines, lost leases."""

import logging
import threading
from typing import Final

from serve_app.errors import StoreUnavailable
from serve_app.store import Store

logger = logging.getLogger("ray.serve.sophia")

EVERY_S: Final = 1.0


class Upkeep:
    """A thread that brings the schema up to date, then sweeps the queue once a second."""

    def __init__(self, store: Store):
        self._store = store
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
                if moved := self._store.jobs.sweep():
                    logger.info("swept %s jobs: lost leases or deadlines", moved)
            except StoreUnavailable as error:
                logger.warning("upkeep waits: %s", error)
            self._ended.wait(EVERY_S)
