"""The limit on finished audio that a worker holds in memory."""

import threading
from typing import Final

MAX_SONGS: Final = 8
"""The most variations that one request may ask for, so the device need not wait for the encoder between those of one job."""


class UnstoredSongs:
    """Limits the finished songs that are not stored yet, by number and by seconds of audio. One song is always allowed."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._songs = 0
        self._seconds = 0.0
        self._changed = threading.Condition()

    def reserve(self, seconds: float, timeout: float) -> bool:
        """Count one more song. False, and nothing is counted, when the limit leaves no room for it within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._fits(seconds), timeout):
                return False
            self._songs += 1
            self._seconds += seconds
            return True

    def release(self, seconds: float) -> None:
        """Count one song less: it is stored, or has failed."""
        with self._changed:
            self._songs -= 1
            self._seconds -= seconds
            self._changed.notify_all()

    def _fits(self, seconds: float) -> bool:
        if not self._songs:
            return True
        return self._songs < MAX_SONGS and self._seconds + seconds <= self._max_seconds
