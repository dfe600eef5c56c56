"""Finished songs on their way to the audio store, and what a worker says and does while the store refuses them."""

import logging
import threading
from typing import Any, Final

from serve_app import metrics
from serve_app.artifacts import Artifacts
from serve_app.errors import ArtifactsUnavailable, Stopped
from serve_app.log_throttle import LogThrottle
from serve_app.worker.claims import Claim

logger = logging.getLogger("ray.serve.sophia")

RETRY_S: Final = 1.0


class Storing:
    """Keeps songs until they are stored, and knows whether it makes sense to make more.

    `at_most` songs may wait while the device goes on, as long as the store takes a small file: one that does not fit on a nearly
    full disk stops no others. Safe to use from several threads.
    """

    def __init__(self, worker: str, artifacts: Artifacts, at_most: int) -> None:
        self._worker = worker
        self._artifacts = artifacts
        self._at_most = at_most
        self._waiting: dict[str, ArtifactsUnavailable] = {}
        self._doubt = True  # a worker looks once before its first job
        self._refused: ArtifactsUnavailable | None = None
        self._log = LogThrottle()
        self._told = False
        self._board = metrics.Board()
        self._lock = threading.Lock()

    def put(self, claim: Claim, key: str, data: bytes | memoryview) -> None:
        """Store a song. Returns when it is stored, however long the store refuses it; raises Stopped when the claim is gone."""
        while True:
            try:
                self._artifacts.put(key, data)
            except ArtifactsUnavailable as error:
                self._failed(claim, key, error)
                if claim.gone.wait(RETRY_S):
                    self._ended(claim, key)
                    raise Stopped from error
            else:
                self._ended(claim, key)
                return

    def refusal(self) -> ArtifactsUnavailable | None:
        """Why no job should be claimed now: the store refuses whatever it is given, or too many songs wait. None: claim."""
        with self._lock:
            waiting = list(self._waiting.values())
        if len(waiting) >= self._at_most:
            self._refused = waiting[0]
        elif self._doubt:
            self._refused = self._probe()
        trouble = self._refused or next(iter(waiting), None)
        self._board.tell(metrics.storage(trouble.cause if trouble else None))
        return self._refused

    def account(self) -> dict[str, Any]:
        """What the worker says of itself while it takes no job, as fields of its row."""
        if refused := self._refused:
            error = {"code": refused.code, "message": refused.why, "public": refused.public_why}
            return {"detail": f"stopped claiming: {self._words() or refused.message}", "error": error}
        return {"detail": self._words() or "ready", "error": None}

    def _words(self) -> str:
        with self._lock:
            waiting = list(self._waiting.values())
        songs = "a song" if len(waiting) == 1 else f"{len(waiting)} songs"
        return f"waits to store {songs}: {waiting[0].why}" if waiting else ""

    def _probe(self) -> ArtifactsUnavailable | None:
        try:
            self._artifacts.probe()
        except ArtifactsUnavailable as error:
            self._tell(error)
            return error
        self._doubt = False
        return None

    def _failed(self, claim: Claim, key: str, error: ArtifactsUnavailable) -> None:
        with self._lock:
            self._waiting[key] = error
            self._doubt = True
        claim.waits(error.public_why)
        self._tell(error)

    def _ended(self, claim: Claim, key: str) -> None:
        with self._lock:
            waited = self._waiting.pop(key, None) is not None
            over = self._told and not self._waiting
        if waited:
            claim.goes_on()
        if waited and over:
            self._told = False
            logger.info("worker %s: no song waits for the audio store any more", self._worker)

    def _tell(self, error: ArtifactsUnavailable) -> None:
        if self._log.due():
            self._told = True
            logger.error(
                "worker %s cannot store songs, %s of them wait: %s", self._worker, len(self._waiting), error.message
            )
