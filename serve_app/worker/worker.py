"""The GPU deployment: load, claim, generate, publish, drain.

One thread generates (the device is never idle while a job waits), one heartbeats, others have the songs encoded, by processes of
their own, and store them beside the next generation. A claim that is gone (cancelled, deleted, expired, given to another worker) is
seen by the heartbeat and stops the generation at its next step; nothing else does.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Final, TypeVar

from serve_app import metrics
from serve_app.artifacts import Artifacts
from serve_app.audio import Encoders, SharedSamples, Song, Tags, default_processes
from serve_app.config import EncodingArgs, QueueArgs
from serve_app.engine.protocol import Engine
from serve_app.errors import (
    DeviceLost,
    GenerationError,
    LoadError,
    SophiaError,
    Stopped,
    StoreUnavailable,
)
from serve_app.jobs import Job, StoredAudio, WorkerPhase, artifact_folder, new_id
from serve_app.log_throttle import LogThrottle
from serve_app.music import SAMPLE_RATE, SELF_TEST
from serve_app.processes import Process
from serve_app.store import Store, WorkerRow
from serve_app.supervision import WorkThread
from serve_app.worker.claims import Claim
from serve_app.worker.failures import DeviceRecord, judge
from serve_app.worker.heartbeat import PROGRESS_S, Heartbeat
from serve_app.worker.room import SONGS, Room
from serve_app.worker.storing import Storing

logger = logging.getLogger("ray.serve.sophia")
_T = TypeVar("_T")

SONGS_WAITING: Final = 1
"""Songs that may wait for the audio store; with so many, no job is claimed. Each keeps a thread that encodes."""

_RETRY_S: Final = 1.0


class Worker:
    """One engine at work on one model's jobs. Plain threads, no Ray: `MusicWorker` is its Serve deployment."""

    def __init__(
        self,
        model: str,
        engine: Engine,
        store: Store,
        artifacts: Artifacts,
        queue: QueueArgs,
        node: str = "local",
        price_per_hour: float = 0.0,
        cluster: str = "",
        encoding: EncodingArgs | None = None,
        encoders: Encoders | None = None,
        deployment: str = "",
    ) -> None:
        """`encoders`, where they are given, outlive the worker; else it has its own. `deployment`: which build it belongs to."""
        encoding = encoding or EncodingArgs()
        self._engine = engine
        self._store = store
        self._queue = queue
        process = Process.this()
        row = WorkerRow(
            id=new_id(), model=model, node=node, cluster=cluster, process=process, device="", phase=WorkerPhase.STARTING
        )
        self._heart = Heartbeat(store, row, queue.lease_s, price_per_hour)
        self._storing = Storing(row.id, artifacts, SONGS_WAITING)
        self._device = DeviceRecord(store, model, deployment)
        self._outage = LogThrottle()
        self._thread = WorkThread(store.supervisor, "generate", self._step, _RETRY_S)
        self._stopping = self._thread.ended
        self._queued = store.notifications.waiter("queued")
        self._room = Room(encoding.audio_in_hand_s)
        self._encoders = encoders or Encoders(encoding.processes or default_processes())
        self._own_encoders = encoders is None
        # Twice as many threads as processes: while some store, the others keep the processes busy.
        self._encoding = ThreadPoolExecutor(2 * self._encoders.size, thread_name_prefix="encode")
        self._publishing = ThreadPoolExecutor(SONGS, thread_name_prefix="publish")
        self.failed_in = ""
        """The phase in which the last load failed."""

    @property
    def id(self) -> str:
        """The worker's id, new at each start."""
        return self._heart.row.id

    @property
    def model(self) -> str:
        """The model whose jobs it takes."""
        return self._heart.row.model

    @property
    def alive(self) -> bool:
        """Whether it still works or is ready to."""
        return self._thread.alive and self._heart.alive

    # --- Life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Announce, load, work. Raises LoadError, having said why, and is then done with."""
        self.announce()
        try:
            self.load()
        except LoadError:
            self._heart.close(lambda: self._store.workers.report(self._heart.row))
            raise

    def announce(self) -> None:
        """Let the store know of this worker."""
        self._heart.start()

    def load(self) -> None:
        """Load the model, then take jobs in the background. Raises LoadError, having said why; may be called again then."""
        try:
            facts = self._engine.load(self._heart.report)
        except Exception as error:
            raise self._failed(error) from error
        self._heart.say(
            phase=WorkerPhase.IDLE, detail="ready", progress=None, device=facts.device, facts=asdict(facts), error=None
        )
        logger.info("worker %s of %s is ready on %s", self.id, self.model, facts.device)
        self._encoders.warm_up()
        self._thread.start()

    def _failed(self, error: Exception) -> LoadError:
        self.failed_in = self._heart.row.phase
        logger.exception("worker %s cannot load %s (phase %s)", self.id, self.model, self.failed_in)
        ours = error if isinstance(error, LoadError) else LoadError(f"{type(error).__name__}: {error}")
        reason = {"code": ours.code, "message": ours.message, "phase": self.failed_in}
        self._heart.say(
            phase=WorkerPhase.FAILED, detail=f"failed in phase {self.failed_in}", progress=None, error=reason
        )
        return ours

    def waits(self, why: str) -> None:
        """Say why it does not load now."""
        if self._heart.row.detail.partition(":")[2] != why.partition(":")[2]:
            logger.warning("worker %s of %s: %s", self.id, self.model, why)
        self._heart.say(phase=WorkerPhase.FAILED, detail=why, progress=None)

    def drain(self) -> None:
        """Take no more jobs, end those in hand, publish them, leave. Returns when all that is done."""
        self._stopping.set()
        self._queued.wake()
        if self._thread.started:
            self._heart.say(
                phase=WorkerPhase.DRAINING, detail="ending the job in hand" if self._heart.claims else "ending"
            )
            self._thread.join()
        self._encoding.shutdown(wait=True)
        self._publishing.shutdown(wait=True)
        if self._own_encoders:
            self._encoders.close()
        self._heart.close(lambda: self._store.workers.forget(self.id))

    # --- Generating -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        seen = self._queued.count()
        if not self._may_claim():
            self._stopping.wait(_RETRY_S)
            return
        job = self._store.claims.take(self.id, self.model, self._queue.lease_s)
        if job is None:
            self._queued.wait(seen, timeout=_RETRY_S)
        else:
            self._run(job)

    def _may_claim(self) -> bool:
        """Whether a song could be stored; what stands in the way is said to everybody."""
        refusal = self._storing.refusal()
        said = self._storing.account()
        if (self._heart.row.detail, self._heart.row.error) != (said["detail"], said["error"]):
            self._heart.say(**said)
        return refusal is None

    def _run(self, job: Job) -> None:
        claim = Claim(job)
        self._heart.claims[claim.key] = claim
        metrics.job_started(self.model, (job.started_at or job.created_at) - job.created_at)
        self._heart.say(phase=WorkerPhase.GENERATING, detail=f"attempt {job.attempt}", job=job.id)
        try:
            self._generate(claim)
        except Stopped:
            logger.info("job %s is no longer worker %s's: stopped", job.id, self.id, extra={"job": job.id})
            metrics.job_ended(self.model, "stopped")
            self._charge(job, claim.gpu_s)
            self._heart.claims.pop(claim.key, None)
        except Exception as error:
            logger.exception("job %s failed on worker %s", job.id, self.id, extra={"job": job.id})
            judged = judge(error, self._play_self_test)
            if isinstance(judged, DeviceLost):  # no later job could run here: Serve will see that the thread has ended
                self._stopping.set()
                self._heart.say(
                    phase=WorkerPhase.FAILED,
                    detail=f"takes no more jobs: {judged.message}",
                    error={"code": judged.code, "message": judged.message},
                    job=None,
                )
                self._device.lost(job.id, judged.message)
            self._charge(job, claim.gpu_s)
            self._give_up(claim, judged)
        if not self._stopping.is_set():
            self._heart.say(phase=WorkerPhase.IDLE, job=None, **self._storing.account())

    def _play_self_test(self) -> None:
        for song in self._engine.generate(SELF_TEST, lambda stage, step, steps: None, lambda: False):
            del song

    def _generate(self, claim: Claim) -> None:
        warnings = self._engine.warnings(claim.job.request)
        files: list[Future[tuple[StoredAudio, float]]] = []
        for song in self._engine.generate(claim.job.request, claim.on_step, claim.gone.is_set):
            waiting = time.monotonic()
            seconds = len(song.samples) / SAMPLE_RATE
            try:
                while not self._room.take(seconds, timeout=PROGRESS_S):
                    if claim.gone.is_set():
                        raise Stopped
            finally:
                claim.blocked_s += time.monotonic() - waiting
            # In a list from which the encoding thread takes it: 230 MB at 600 s that nobody must hold while the file is stored.
            files.append(self._encoding.submit(self._store_song, claim, [song], len(files)))
            del song
        self._publishing.submit(self._publish, claim, files, warnings, claim.total_s, claim.gpu_s)

    # --- Publishing, beside the next generation ---------------------------------------------------------------------

    def _store_song(self, claim: Claim, songs: list[Song], index: int) -> tuple[StoredAudio, float]:
        seconds = len(songs[0].samples) / SAMPLE_RATE
        try:
            return self._stored(claim, songs, index, seconds)
        finally:
            self._room.give_back(seconds)

    def _stored(self, claim: Claim, songs: list[Song], index: int, seconds: float) -> tuple[StoredAudio, float]:
        began = time.monotonic()
        job = claim.job
        seed = songs[0].seed
        claim.on_step("encoding", index, job.request.variations)
        data = self._encode(job, songs.pop())
        key = f"{job.id}/{artifact_folder(job.attempt, job.worker)}/{index}.{job.request.format}"
        self._storing.put(claim, key, data)
        stored = StoredAudio(
            key=key,
            format=job.request.format,
            seconds=seconds,
            sample_rate=SAMPLE_RATE,
            channels=2,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            seed=seed,
        )
        return stored, time.monotonic() - began

    def _encode(self, job: Job, song: Song) -> memoryview:
        asked = job.request
        tags = Tags(
            title=asked.title or asked.prompt[:80],
            prompt=asked.prompt,
            seed=song.seed,
            model=job.model,
            bpm=asked.bpm,
            key=asked.keyscale,
            lyrics=asked.lyrics,
        )
        shared = SharedSamples(song.samples)
        del song  # from here on its samples are in shared memory only
        with shared:
            return self._encoders.encode(shared, job.request.format, tags)

    def _publish(
        self,
        claim: Claim,
        files: Sequence[Future[tuple[StoredAudio, float]]],
        warnings: Sequence[str],
        total_s: float,
        gpu_s: float,
    ) -> None:
        job = claim.job
        try:
            stored = [file.result() for file in files]
            audio = [file for file, _ in stored]
            timing = {
                "queued_s": round((job.started_at or job.created_at) - job.created_at, 3),
                "generate_s": round(total_s, 3),
                "encode_s": round(sum(encode_s for _, encode_s in stored), 3),
                "gpu_s": round(gpu_s, 3),
            }
            published = self._finish(claim, audio, timing, warnings)
            outcome = "succeeded" if published else "was taken away"
            logger.info("job %s %s in %.2f s", job.id, outcome, total_s, extra={"job": job.id})
            if published:
                self._device.worked()
                metrics.song_published(self.model, job.owner, timing, sum(file.seconds for file in audio))
            else:
                self._charge(job, gpu_s)
        except Stopped:
            logger.info("job %s is no longer worker %s's: not published", job.id, self.id)
            self._charge(job, gpu_s)
        except Exception as error:
            logger.exception("job %s could not be published", job.id, extra={"job": job.id})
            self._charge(job, gpu_s)
            self._give_up(claim, error)
        finally:
            self._heart.claims.pop(claim.key, None)

    def _finish(
        self, claim: Claim, audio: Sequence[StoredAudio], timing: dict[str, float], warnings: Sequence[str]
    ) -> bool:
        """Publish; whether the song is published. Raises Stopped when the claim was taken away meanwhile."""

        def finish() -> bool:
            return self._store.claims.publish(claim.job, audio=audio, timing=timing, warnings=warnings)

        try:
            return self._until_it_works(claim, finish)
        except Stopped:  # a claim is gone as well when the store published it and its answer was lost: ask
            if finish():
                return True
            raise

    def _until_it_works(self, claim: Claim, action: Callable[[], _T]) -> _T:
        """A finished song outlives an outage of the job database, as long as the job is the worker's own."""
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                if self._outage.due():
                    logger.warning("job %s waits to be published: %s", claim.job.id, error)
                if claim.gone.wait(_RETRY_S):
                    raise Stopped from error

    def _charge(self, job: Job, gpu_s: float) -> None:
        """Account for an attempt that gave no song. Not worth waiting for a store that is away."""
        metrics.key_device_time(self.model, job.owner, gpu_s)
        try:
            self._store.claims.charge(job, gpu_s)
        except StoreUnavailable as error:
            logger.warning("job %s: %.1f device seconds are not on its account: %s", job.id, gpu_s, error)

    def _give_up(self, claim: Claim, error: Exception) -> None:
        ours = error if isinstance(error, SophiaError) else GenerationError(f"{type(error).__name__}: {error}")
        metrics.job_ended(self.model, "failed", ours.code)
        try:
            self._until_it_works(claim, lambda: self._store.claims.fail(claim.job, ours))
        except Stopped:
            logger.info("job %s is no longer worker %s's", claim.job.id, self.id)
        finally:
            self._heart.claims.pop(claim.key, None)
