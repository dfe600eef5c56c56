"""Probes the audio store at the start and every 30 s, so that a failure is known before the first song is generated."""

import logging
import threading
from typing import Final

from serve_app import metrics
from serve_app.artifacts import ArtifactStore
from serve_app.errors import ArtifactsUnavailable
from serve_app.log_throttle import LogThrottle
from serve_app.supervision import PeriodicThread, Supervisor

logger = logging.getLogger("ray.serve.sophia")

EVERY_S: Final = 30.0
FAILING_EVERY_S: Final = 5.0
_FIRST_PROBE_S: Final = 1.0
"""Seconds for which a caller waits for the first probe."""


class StorageWatch:
    """A thread in every API process, since each may lack permissions, credentials or a mount that another has."""

    def __init__(self, artifacts: ArtifactStore, supervisor: Supervisor) -> None:
        self._artifacts = artifacts
        self._failure: ArtifactsUnavailable | None = None
        self._log_throttle = LogThrottle()
        self._gauges = metrics.Gauges()
        self._probed = threading.Event()
        self._thread = PeriodicThread(supervisor, "storage", self._step, retry_s=FAILING_EVERY_S)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the current probe."""
        self._thread.close()

    def failure(self) -> ArtifactsUnavailable | None:
        """Why no song can be stored, or None. A store that has not answered the first probe yet counts as unavailable."""
        if not self._probed.wait(_FIRST_PROBE_S):
            return ArtifactsUnavailable(why="it has not answered since this process started")
        return self._failure

    def _step(self) -> float:
        self._probe()
        return FAILING_EVERY_S if self._failure else EVERY_S

    def _probe(self) -> None:
        failed_before = self._failure
        try:
            self._artifacts.probe()
        except ArtifactsUnavailable as error:
            self._failure = error
            if self._log_throttle.due():
                logger.error("no song can be stored: %s", error)
        else:
            self._failure = None
            if failed_before is not None:
                self._log_throttle.reset()
                logger.info("the audio store works again")
        self._probed.set()
        self._gauges.set(metrics.storage(self._failure.cause if self._failure else None))
