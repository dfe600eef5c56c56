"""How far fetching or checking is, in words and as a fraction."""

import threading
import time
from collections.abc import Callable

Report = Callable[[str, float | None, str], None]
"""Called with a phase's name, its fraction done (0 to 1, None when unknown) and words."""


class Progress:
    """Adds up bytes from several threads and reports them at most twice a second."""

    def __init__(self, report: Report, phase: str, verb: str, done: int, total: int) -> None:
        """`verb` begins the words of a report, such as "downloading"; `done` of `total` bytes are behind us already."""
        self.done = done
        self.total = total
        self._report = report
        self._phase = phase
        self._verb = verb
        self._lock = threading.Lock()
        self._last = 0.0
        self.add(0)

    def add(self, count: int) -> None:
        """Count `count` more bytes."""
        with self._lock:
            self.done += count
            if time.monotonic() - self._last > 0.5 or self.done == self.total:
                self._last = time.monotonic()
                fraction = self.done / max(self.total, 1)
                words = f"{self._verb} {fraction:.0%} of {shown_size(self.total)}"
                self._report(self._phase, fraction, words)


def shown_size(count: int) -> str:
    """`count` bytes for people, in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
