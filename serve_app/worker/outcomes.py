"""Writes to the job store how a claim ended: published, failed or lost."""

import logging
from collections.abc import Callable, Sequence

from serve_app import metrics
from serve_app.errors import GenerationError, SophiaError, Stopped, StoreUnavailable
from serve_app.jobs import Job
from serve_app.store import Store
from serve_app.worker.claims import Claim, StoredSong
from serve_app.worker.failures import DeviceRecord
from serve_app.worker.patience import Patience

logger = logging.getLogger("ray.serve.sophia")


class Outcomes:
    """Ends claims. `publish` and `fail` wait for an unreachable database until the claim is lost. Thread-safe."""

    def __init__(self, store: Store, device: DeviceRecord) -> None:
        self._store = store
        self._device = device
        self._patience = Patience()

    def publish(self, claim: Claim, songs: Sequence[StoredSong]) -> None:
        """Make the job succeed with its stored songs. Raises Stopped, and publishes nothing, when the claim is lost."""
        job = claim.job
        timing = _timing(claim, songs)
        if not self._finish(claim, songs, timing):
            raise Stopped
        logger.info("job %s succeeded in %.2f s", job.id, claim.total_s, extra={"job": job.id})
        self._device.record_success()
        metrics.song_published(job.model, job.owner, timing, sum(song.file.seconds for song in songs))

    def fail(self, claim: Claim, error: Exception) -> None:
        """End the attempt with an error; the store queues the job again where a retry can help."""
        job = claim.job
        failure = error if isinstance(error, SophiaError) else GenerationError(f"{type(error).__name__}: {error}")
        self._charge(claim)
        metrics.job_ended(job.model, "failed", failure.code)
        try:
            self._until_the_store_answers(claim, lambda: self._store.claims.fail(job, failure))
        except Stopped:
            _log_lost(job)

    def abandon(self, claim: Claim) -> None:
        """Charge the device time of a lost claim. The job no longer belongs to this worker."""
        _log_lost(claim.job)
        metrics.job_ended(claim.job.model, "stopped")
        self._charge(claim)

    def _finish(self, claim: Claim, songs: Sequence[StoredSong], timing: dict[str, float]) -> bool:
        """Whether the job is published. Raises Stopped when the claim is lost while the store is unreachable."""
        audio = [song.file for song in songs]

        def finish() -> bool:
            return self._store.claims.publish(claim.job, audio=audio, timing=timing, warnings=claim.warnings)

        try:
            return self._until_the_store_answers(claim, finish)
        except Stopped:
            # The store may have published the job although its answer did not arrive; the claim is lost then, too.
            return finish()

    def _until_the_store_answers(self, claim: Claim, action: Callable[[], bool]) -> bool:
        return self._patience.until_the_store_answers(f"the outcome of job {claim.job.id}", claim.lost, action)

    def _charge(self, claim: Claim) -> None:
        """Add the device time of an attempt without a song to its owner's account. Does not wait for an unreachable store."""
        claim.stop_clock()
        job = claim.job
        metrics.key_device_time(job.model, job.owner, claim.gpu_s)
        try:
            self._store.claims.charge(job, claim.gpu_s)
        except StoreUnavailable as error:
            logger.warning("job %s: %.1f device seconds are missing from its account: %s", job.id, claim.gpu_s, error)


def _timing(claim: Claim, songs: Sequence[StoredSong]) -> dict[str, float]:
    job = claim.job
    return {
        "queued_s": round((job.started_at or job.created_at) - job.created_at, 3),
        "generate_s": round(claim.total_s, 3),
        "encode_s": round(sum(song.encode_s for song in songs), 3),
        "gpu_s": round(claim.gpu_s, 3),
    }


def _log_lost(job: Job) -> None:
    logger.info("job %s no longer belongs to worker %s: stopped", job.id, job.worker, extra={"job": job.id})
