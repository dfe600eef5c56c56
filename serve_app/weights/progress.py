"""Reports the progress of fetching or checking files."""

import threading
import time
from collections.abc import Callable

Report = Callable[[str, float | None, str], None]
"""Called with a phase, the finished fraction of it (0 to 1, None if unknown) and a description."""


class Progress:
    """Adds up bytes from several threads and reports them at most twice a second."""

    def __init__(self, report: Report, phase: str, verb: str, done: int, total: int) -> None:
        """`verb` starts the description, such as "downloading". `done` of `total` bytes are already finished."""
        self.done = done
        self.total = total
        self._report = report
        self._phase = phase
        self._verb = verb
        self._lock = threading.Lock()
        self._last = 0.0
        self.add(0)

    def add(self, count: int) -> None:
        """Adds `count` finished bytes, negative if they must be fetched again."""
        with self._lock:
            self.done += count
            if time.monotonic() - self._last > 0.5 or self.done == self.total:
                self._last = time.monotonic()
                fraction = self.done / max(self.total, 1)
                description = f"{self._verb} {fraction:.0%} of {shown_size(self.total)}"
                self._report(self._phase, fraction, description)


def shown_size(count: int) -> str:
    """Returns `count` bytes as text, in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
