"""Waits for an unreachable job database instead of giving up the work in hand."""

import logging
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from serve_app.errors import Stopped, StoreUnavailable
from serve_app.log_throttle import LogThrottle

logger = logging.getLogger("ray.serve.sophia")
_T = TypeVar("_T")

RETRY_S: Final = 1.0


class Patience:
    """Repeats what the job database did not answer. Thread-safe."""

    def __init__(self) -> None:
        self._log_throttle = LogThrottle()

    def until_the_store_answers(self, what: str, lost: threading.Event, action: Callable[[], _T]) -> _T:
        """The result of `action`, repeated while the store is unreachable. Raises Stopped when `lost` is set meanwhile.

        `what` is for the log: "the outcome of job ...".
        """
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                if self._log_throttle.due():
                    logger.warning("%s waits for the job database: %s", what, error)
                if lost.wait(RETRY_S):
                    raise Stopped from error
