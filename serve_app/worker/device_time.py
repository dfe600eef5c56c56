"""What a worker's device time goes into, for metrics and for the accounts in the store."""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping

from serve_app import metrics
from serve_app.jobs import WorkerPhase
from serve_app.store import WorkerRow


class DeviceTime:
    """A stopwatch that several threads may turn over. The device is held from the first moment on."""

    def __init__(self, model: str, price_per_hour: float) -> None:
        self._model = model
        self._price = price_per_hour
        self._lock = threading.Lock()
        self._use: metrics.Use = "loading"
        self._since = time.monotonic()
        self._untold: defaultdict[str, float] = defaultdict(float)

    def goes_into(self, use: metrics.Use) -> None:
        """From now on, until the next call."""
        with self._lock:
            self._count()
            self._use = use

    def take(self) -> dict[str, float]:
        """The seconds by use that were not taken yet."""
        with self._lock:
            self._count()
            taken = dict(self._untold)
            self._untold = defaultdict(float)
        return taken

    def give_back(self, seconds: Mapping[str, float]) -> None:
        """What was taken and could not be told: the next `take` has it again."""
        with self._lock:
            for use, amount in seconds.items():
                self._untold[use] += amount

    def _count(self) -> None:
        began = self._since
        self._since = time.monotonic()
        self._untold[self._use] += self._since - began
        metrics.device_time(self._model, self._use, self._since - began, self._price)


def use_of(row: WorkerRow) -> metrics.Use:
    """What the device of such a worker is for at this moment. Failing to load, and waiting to try again, is loading."""
    if row.phase.is_starting or row.phase is WorkerPhase.FAILED:
        return "loading"
    return "generating" if row.job else "idle"
