"""How much finished audio a worker may hold."""

import threading
from typing import Final

SONGS: Final = 8
"""As many as one request may ask for: the device need not wait for the encoder between the variations of one job."""


class Room:
    """Bounds the songs that are finished and not stored yet, by their number and their seconds. One song always has room."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._songs_in_hand = 0
        self._seconds_in_hand = 0.0
        self._changed = threading.Condition()

    def take(self, seconds: float, timeout: float) -> bool:
        """Take room for a song; False when there was none within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._fits(seconds), timeout):
                return False
            self._songs_in_hand += 1
            self._seconds_in_hand += seconds
            return True

    def give_back(self, seconds: float) -> None:
        """The song is stored, or given up."""
        with self._changed:
            self._songs_in_hand -= 1
            self._seconds_in_hand -= seconds
            self._changed.notify_all()

    def _fits(self, seconds: float) -> bool:
        if not self._songs_in_hand:
            return True
        return self._songs_in_hand < SONGS and self._seconds_in_hand + seconds <= self._seconds
