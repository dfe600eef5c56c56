"""What lasts is told once a minute, not once a try."""

import time
from typing import Final

EVERY_S: Final = 60.0


class LogThrottle:
    """Says when a log line about something that lasts is due."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._due_at = 0.0

    def due(self) -> bool:
        """True at first, and then once in `every_s` seconds."""
        if time.monotonic() < self._due_at:
            return False
        self._due_at = time.monotonic() + self._every_s
        return True

    def reset(self) -> None:
        """It is over: when it comes again, that is told at once."""
        self._due_at = 0.0
