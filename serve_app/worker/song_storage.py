"""Stores finished songs, and stops the worker from claiming while the audio store refuses them."""

import logging
import threading
from typing import Any, Final

from serve_app import metrics
from serve_app.artifacts import ArtifactStore
from serve_app.errors import ArtifactsUnavailable, Stopped
from serve_app.log_throttle import LogThrottle
from serve_app.plurals import counted
from serve_app.worker.claims import Claim

logger = logging.getLogger("ray.serve.sophia")

RETRY_S: Final = 1.0


class SongStorage:
    """Writes songs to the audio store, retries those that it refuses, and decides whether the worker may claim another job.

    The worker claims no job while `max_waiting` songs wait, or while the store refuses a small file. Fewer waiting songs
    do not stop it: one that is too large for a nearly full disk does not stop smaller ones. Thread-safe.
    """

    def __init__(self, worker: str, artifacts: ArtifactStore, max_waiting: int) -> None:
        self._worker = worker
        self._artifacts = artifacts
        self._max_waiting = max_waiting
        self._waiting: dict[str, ArtifactsUnavailable] = {}
        """Why each waiting song was refused last, by its key."""
        self._probe_needed = True  # before the first job, too
        self._refusal: ArtifactsUnavailable | None = None
        self._log_throttle = LogThrottle()
        self._outage_logged = False
        self._gauges = metrics.Gauges()
        self._lock = threading.Lock()

    def put(self, claim: Claim, key: str, data: bytes | memoryview) -> None:
        """Store a song, and retry until the audio store takes it. Raises Stopped when the claim is lost meanwhile."""
        try:
            while (refusal := self._try_to_put(key, data)) is not None:
                self._add_waiting(claim, key, refusal)
                if claim.lost.wait(RETRY_S):
                    raise Stopped from refusal
        finally:
            self._remove_waiting(claim, key)

    def check(self) -> ArtifactsUnavailable | None:
        """Why the worker must not claim a job now; None when it may.

        It must not while `max_waiting` songs wait, or while the store refuses a probe after it has refused a song.
        """
        with self._lock:
            waiting = list(self._waiting.values())
        if len(waiting) >= self._max_waiting:
            self._refusal = waiting[0]
        elif self._probe_needed:
            self._refusal = self._probe()
        trouble = self._refusal or next(iter(waiting), None)
        self._gauges.set(metrics.storage(trouble.cause if trouble else None))
        return self._refusal

    def row_fields(self) -> dict[str, Any]:
        """`detail` and `error` of the worker's row, as the last `check` left them."""
        if refusal := self._refusal:
            error = {"code": refusal.code, "message": refusal.why, "public": refusal.public_why}
            return {"detail": f"stopped claiming: {self._waiting_summary() or refusal.message}", "error": error}
        return {"detail": self._waiting_summary() or "ready", "error": None}

    def _waiting_summary(self) -> str:
        with self._lock:
            waiting = list(self._waiting.values())
        return f"waits to store {counted(len(waiting), 'song')}: {waiting[0].why}" if waiting else ""

    def _try_to_put(self, key: str, data: bytes | memoryview) -> ArtifactsUnavailable | None:
        try:
            self._artifacts.put(key, data)
        except ArtifactsUnavailable as error:
            return error
        return None

    def _probe(self) -> ArtifactsUnavailable | None:
        try:
            self._artifacts.probe()
        except ArtifactsUnavailable as error:
            self._log_refusal(error)
            return error
        self._probe_needed = False
        return None

    def _add_waiting(self, claim: Claim, key: str, refusal: ArtifactsUnavailable) -> None:
        with self._lock:
            self._waiting[key] = refusal
            self._probe_needed = True
        claim.begin_waiting(refusal.public_why)
        self._log_refusal(refusal)

    def _remove_waiting(self, claim: Claim, key: str) -> None:
        with self._lock:
            waited = self._waiting.pop(key, None) is not None
            is_last = not self._waiting
        if not waited:
            return
        claim.end_waiting()
        if is_last and self._outage_logged:
            self._outage_logged = False
            logger.info("worker %s: every song is stored again", self._worker)

    def _log_refusal(self, error: ArtifactsUnavailable) -> None:
        if self._log_throttle.due():
            self._outage_logged = True
            logger.error(
                "worker %s cannot store songs; %s waiting: %s",
                self._worker,
                counted(len(self._waiting), "song"),
                error.message,
            )
