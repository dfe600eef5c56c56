"""Limits a repeated log line to one a minute."""

import time
from typing import Final

EVERY_S: Final = 60.0


class LogThrottle:
    """Decides when a log line about a lasting condition is due. Not thread-safe."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        """`every_s` is the shortest time between two lines, in seconds."""
        self._every_s = every_s
        self._due_at = 0.0

    def due(self) -> bool:
        """Whether to log now: True on the first call, then at most once in `every_s` seconds."""
        if time.monotonic() < self._due_at:
            return False
        self._due_at = time.monotonic() + self._every_s
        return True

    def reset(self) -> None:
        """The condition has ended: the next line about it is due at once."""
        self._due_at = 0.0
