"""Measures how a worker's device time is used, for metrics and for the accounts in the store."""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping

from serve_app import metrics
from serve_app.jobs import WorkerPhase
from serve_app.store import WorkerRow


class DeviceTime:
    """A stopwatch that counts seconds by use, from its construction on. Thread-safe."""

    def __init__(self, model: str, price_per_hour: float) -> None:
        self._model = model
        self._price = price_per_hour
        self._lock = threading.Lock()
        self._use: metrics.Use = "loading"
        self._since = time.monotonic()
        self._untaken: defaultdict[str, float] = defaultdict(float)

    def switch(self, use: metrics.Use) -> None:
        """Count the seconds from now on as `use`."""
        with self._lock:
            self._count()
            self._use = use

    def take(self) -> dict[str, float]:
        """Seconds by use since the last call."""
        with self._lock:
            self._count()
            taken = dict(self._untaken)
            self._untaken = defaultdict(float)
        return taken

    def give_back(self, seconds: Mapping[str, float]) -> None:
        """Add seconds that were taken and could not be written; the next `take` returns them again."""
        with self._lock:
            for use, amount in seconds.items():
                self._untaken[use] += amount

    def _count(self) -> None:
        began = self._since
        self._since = time.monotonic()
        self._untaken[self._use] += self._since - began
        metrics.device_time(self._model, self._use, self._since - began, self._price)


def use_of(row: WorkerRow) -> metrics.Use:
    """How a worker with this row uses its device. A failed load, and the pause before the next one, count as loading."""
    if row.phase.is_starting or row.phase is WorkerPhase.FAILED:
        return "loading"
    return "generating" if row.job or row.phase is WorkerPhase.GENERATING else "idle"
