"""Whether songs can be stored: tried at the start and every half minute, so that it is known before the first song is made."""

import logging
import threading
from typing import Final

from serve_app import metrics
from serve_app.artifacts import Artifacts
from serve_app.errors import ArtifactsUnavailable
from serve_app.log_throttle import LogThrottle
from serve_app.supervision import PeriodicThread, Supervisor

logger = logging.getLogger("ray.serve.sophia")

EVERY_S: Final = 30.0
FAILING_EVERY_S: Final = 5.0
_PATIENCE_S: Final = 1.0
"""What the first caller waits for the first try."""


class StorageWatch:
    """A thread in every API process: each may lack rights, credentials or a mount that another has."""

    def __init__(self, artifacts: Artifacts, supervisor: Supervisor) -> None:
        self._artifacts = artifacts
        self._failure: ArtifactsUnavailable | None = None
        self._log = LogThrottle()
        self._gauges = metrics.Gauges()
        self._tried = threading.Event()
        self._thread = PeriodicThread(supervisor, "storage", self._step, retry_s=FAILING_EVERY_S)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the try under way."""
        self._thread.close()

    def failure(self) -> ArtifactsUnavailable | None:
        """Why nothing can be stored; None when all is well. Until the first try has ended, that is the reason."""
        if not self._tried.wait(_PATIENCE_S):
            return ArtifactsUnavailable(why="it has not answered since this process started")
        return self._failure

    def _step(self) -> float:
        self._try()
        return FAILING_EVERY_S if self._failure else EVERY_S

    def _try(self) -> None:
        failed_before = self._failure
        try:
            self._artifacts.probe()
        except ArtifactsUnavailable as error:
            self._failure = error
            if self._log.due():
                logger.error("no song can be stored: %s", error)
        else:
            self._failure = None
            if failed_before is not None:
                self._log.reset()
                logger.info("the audio store works again")
        self._tried.set()
        self._gauges.set(metrics.storage(self._failure.cause if self._failure else None))
