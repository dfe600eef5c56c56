"""The GPU deployment: load, claim, generate, publish, drain.

Three threads, so that none waits for another without need: one generates (the device is never idle while a job waits), one encodes
and stores beside the next generation, one heartbeats. A claim that is gone (cancelled, deleted, expired, given to another worker)
is seen by the heartbeat and stops the generation at its next step; nothing else does.
"""

import asyncio
import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import ray

from serve_app.artifacts import Artifacts
from serve_app.audio import Song, Tags, encode
from serve_app.config import AppArgs, QueueArgs
from serve_app.errors import (
    ArtifactsUnavailable,
    ConfigurationError,
    GenerationError,
    SophiaError,
    Stopped,
    StoreUnavailable,
)
from serve_app.jobs import Job, new_id
from serve_app.schemas import SAMPLE_RATE, MusicRequest
from serve_app.simulated import SimulatedEngine
from serve_app.store import Beat, Store, WorkerRow

logger = logging.getLogger("ray.serve.sophia")
_T = TypeVar("_T")

PROGRESS_S: Final = 0.1
"""Progress is written at most this often."""

LOOK_S: Final = 0.03
"""A claim that is gone is noticed within this time, and one step."""

SONGS_IN_FLIGHT: Final = 2
"""Songs that may wait for the encoder; each takes 230 MB at 600 s."""

_RETRY_S: Final = 1.0
# How the work of a job divides: where each stage begins, as a part of the whole.
_STAGES: Final[dict[str, tuple[float, float]]] = {
    "conditioning": (0.0, 0.02),
    "denoising": (0.02, 0.8),
    "decoding": (0.8, 0.95),
    "encoding": (0.95, 1.0),
}


class Engine(Protocol):
    """What a worker drives: AceStepEngine, or SimulatedEngine in tests of scheduling."""

    def load(self, report: Callable[[str, float | None, str], None]) -> Any:
        """Get ready, telling phase, progress and detail; raises LoadError. What it is, as a dataclass."""

    def generate(
        self, request: MusicRequest, on_step: Callable[[str, int, int], None], stopped: Callable[[], bool]
    ) -> Iterator[Song]:
        """The songs of a request; raises Stopped soon after `stopped()` has become true."""

    def warnings(self, request: MusicRequest) -> tuple[str, ...]:
        """What of the request cannot be honoured."""


@dataclass
class _Claim:
    """A job in hand, from its claim until it is published."""

    job: Job
    gone: threading.Event = field(default_factory=threading.Event)
    progress: Mapping[str, Any] | None = None
    told: Mapping[str, Any] | None = None

    def on_step(self, stage: str, step: int, steps: int) -> None:
        begin, end = _STAGES[stage]
        fraction = begin + (end - begin) * step / max(steps, 1)
        self.progress = {"stage": stage, "step": step, "steps": steps, "fraction": round(fraction, 4)}

    def has_news(self) -> bool:
        return self.progress != self.told

    def beat(self) -> Beat:
        progress = self.progress
        return Beat(self.job.id, self.job.attempt, progress if progress != self.told else None)


class Worker:
    """One engine at work on one model's jobs. Plain threads, no Ray: `MusicWorker` is its Serve deployment."""

    def __init__(
        self, model: str, engine: Engine, store: Store, artifacts: Artifacts, queue: QueueArgs, node: str = "local"
    ):
        self._engine, self._store, self._artifacts, self._queue = engine, store, artifacts, queue
        self._row = WorkerRow(id=new_id(), model=model, node=node, pid=os.getpid(), device="", phase="starting")
        self._row_changed = threading.Event()
        self._claims: dict[str, _Claim] = {}
        self._stopping = threading.Event()
        self._done = threading.Event()
        self._room = threading.BoundedSemaphore(SONGS_IN_FLIGHT)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._work_thread = threading.Thread(target=self._work, name="generate", daemon=True)
        self._beat_thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def id(self) -> str:
        """The worker's id, new at each start."""
        return self._row.id

    @property
    def alive(self) -> bool:
        """Whether it still works or is ready to."""
        return self._work_thread.is_alive() and self._beat_thread.is_alive()

    # --- Life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the model, then take jobs in the background. Returns when it is ready. Raises LoadError, having said why."""
        self._beat_thread.start()
        try:
            facts = self._engine.load(self._report)
        except BaseException as error:
            self._failed(error)
            raise
        self._set(phase="idle", detail="ready", progress=None, device=facts.device, facts=asdict(facts))
        self._work_thread.start()

    def drain(self) -> None:
        """Take no more jobs, end those in hand, publish them, leave. Returns when all that is done."""
        self._stopping.set()
        self._store.changes.notify("queued")
        if self._work_thread.ident is not None:
            self._set(phase="draining", detail="ending the job in hand" if self._claims else "ending")
            self._work_thread.join()
        self._encoder.shutdown(wait=True)
        self._last_word(lambda: self._store.workers.forget(self.id))

    def _failed(self, error: BaseException) -> None:
        logger.exception("worker %s cannot load %s (phase %s)", self.id, self._row.model, self._row.phase)
        code = error.code if isinstance(error, SophiaError) else "load_failed"
        reason = {"code": code, "message": str(error), "phase": self._row.phase}
        self._set(phase="failed", detail=f"failed in phase {self._row.phase}", progress=None, error=reason)
        self._last_word(lambda: self._store.workers.report(self._row))

    def _last_word(self, action: Callable[[], None]) -> None:
        self._done.set()
        self._store.changes.notify("revoked")
        self._beat_thread.join()
        try:
            action()
        except StoreUnavailable as error:
            logger.warning("worker %s leaves without a word: %s", self.id, error)

    # --- Generating -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            seen = self._store.changes.count("queued")
            try:
                job = self._store.jobs.claim(self.id, self._row.model, self._queue.lease_s)
            except StoreUnavailable as error:
                logger.warning("worker %s cannot ask for work: %s", self.id, error)
                self._stopping.wait(_RETRY_S)
                continue
            if job is None:
                self._store.changes.wait("queued", seen, timeout=_RETRY_S)
            else:
                self._run(job)

    def _run(self, job: Job) -> None:
        claim = self._claims[job.id] = _Claim(job)
        self._set(phase="generating", detail=f"job {job.id}, attempt {job.attempt}", job=job.id)
        try:
            self._generate(claim)
        except Stopped:
            logger.info("job %s is no longer worker %s's: stopped", job.id, self.id)
            self._claims.pop(job.id, None)
        except Exception as error:
            logger.exception("job %s failed on worker %s", job.id, self.id)
            self._give_up(claim, error)
        if not self._stopping.is_set():
            self._set(phase="idle", detail="ready", job=None)

    def _generate(self, claim: _Claim) -> None:
        began, blocked = time.monotonic(), 0.0
        warnings = self._engine.warnings(claim.job.request)
        files: list[Future[dict[str, Any]]] = []
        for song in self._engine.generate(claim.job.request, claim.on_step, claim.gone.is_set):
            waiting = time.monotonic()
            while not self._room.acquire(timeout=PROGRESS_S):
                if claim.gone.is_set():
                    raise Stopped
            blocked += time.monotonic() - waiting
            files.append(self._encoder.submit(self._encode, claim, song, len(files)))
        seconds = time.monotonic() - began
        self._encoder.submit(self._publish, claim, files, warnings, seconds, seconds - blocked)

    # --- Publishing, beside the next generation ---------------------------------------------------------------------

    def _encode(self, claim: _Claim, song: Song, index: int) -> dict[str, Any]:
        began, job = time.monotonic(), claim.job
        try:
            claim.on_step("encoding", index, job.request.variations)
            title = job.request.prompt[:80]
            data = encode(song.samples, job.request.format, Tags(title, job.request.prompt, song.seed, job.model))
            seconds = len(song.samples) / SAMPLE_RATE
        finally:
            self._room.release()
        key = f"{job.id}/{job.attempt}/{index}.{job.request.format}"
        self._until_it_works(claim, lambda: self._artifacts.put(key, data))
        return {
            "key": key,
            "format": job.request.format,
            "seconds": seconds,
            "sample_rate": SAMPLE_RATE,
            "channels": 2,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "seed": song.seed,
            "encode_s": time.monotonic() - began,
        }

    def _publish(
        self,
        claim: _Claim,
        files: Sequence[Future[dict[str, Any]]],
        warnings: Sequence[str],
        total_s: float,
        gpu_s: float,
    ) -> None:
        job = claim.job
        try:
            audio = [file.result() for file in files]
            timing = {
                "queued_s": round((job.started_at or job.created_at) - job.created_at, 3),
                "generate_s": round(total_s, 3),
                "encode_s": round(sum(file.pop("encode_s") for file in audio), 3),
                "gpu_s": round(gpu_s, 3),
            }
            published = self._until_it_works(
                claim, lambda: self._store.jobs.finish(job, audio=audio, timing=timing, warnings=warnings)
            )
            logger.info("job %s %s in %.2f s", job.id, "succeeded" if published else "was taken away", total_s)
        except Stopped:
            logger.info("job %s is no longer worker %s's: not published", job.id, self.id)
        except Exception as error:
            logger.exception("job %s could not be published", job.id)
            self._give_up(claim, error)
        finally:
            self._claims.pop(job.id, None)

    def _until_it_works(self, claim: _Claim, action: Callable[[], _T]) -> _T:
        """A finished song outlives an outage of the stores, as long as the job is the worker's own."""
        while True:
            try:
                return action()
            except (StoreUnavailable, ArtifactsUnavailable) as error:
                logger.warning("job %s waits to be published: %s", claim.job.id, error)
                if claim.gone.wait(_RETRY_S):
                    raise Stopped from error

    def _give_up(self, claim: _Claim, error: Exception) -> None:
        ours = error if isinstance(error, SophiaError) else GenerationError(f"{type(error).__name__}: {error}")
        try:
            self._until_it_works(claim, lambda: self._store.jobs.fail(claim.job, ours))
        except Stopped:
            logger.info("job %s is no longer worker %s's", claim.job.id, self.id)
        finally:
            self._claims.pop(claim.job.id, None)

    # --- Heartbeat --------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Keep the leases, tell progress and phase, and see at once when a claim is gone."""
        due = 0.0
        while not self._done.is_set():
            seen = self._store.changes.count("revoked")
            claims = list(self._claims.values())
            try:
                if self._row_changed.is_set() or time.monotonic() >= due:
                    due = time.monotonic() + self._queue.lease_s / 4
                    self._report_row()
                    self._extend(claims)
                else:
                    self._extend([claim for claim in claims if claim.has_news()])
                self._drop(self._store.jobs.lost([claim.beat() for claim in claims]) if claims else set())
            except StoreUnavailable as error:
                logger.warning("worker %s cannot be heard: %s", self.id, error)
                self._done.wait(_RETRY_S)
            # Under way, look again soon for progress to tell; idle, wake for the next sign of life.
            self._store.changes.wait("revoked", seen, PROGRESS_S if claims else max(due - time.monotonic(), PROGRESS_S))
            self._done.wait(LOOK_S)  # on SQLite our own heartbeat is a change, too

    def _extend(self, claims: Sequence[_Claim]) -> None:
        if claims:
            beats = [claim.beat() for claim in claims]
            self._drop(self._store.jobs.heartbeat(beats, self._queue.lease_s))
            for claim, beat in zip(claims, beats, strict=True):
                claim.told = beat.progress or claim.told

    def _drop(self, lost: set[str]) -> None:
        for job in lost:
            if claim := self._claims.get(job):
                claim.gone.set()

    def _report(self, phase: str, progress: float | None, detail: str) -> None:
        if phase != self._row.phase:
            logger.info("worker %s of %s: %s %s", self.id, self._row.model, phase, detail)
        self._set(phase=phase, progress=progress, detail=detail)

    def _set(self, **values: Any) -> None:
        self._row = replace(self._row, **values)
        self._row_changed.set()

    def _report_row(self) -> None:
        self._row_changed.clear()
        try:
            self._store.workers.report(self._row)
        except StoreUnavailable:
            self._row_changed.set()
            raise


class MusicWorker:
    """The Serve deployment of a worker: loaded when its constructor returns, drained before Serve lets its process go."""

    def __init__(self, model: str, args: AppArgs, host: str):
        """`host` is `this_host()` of the process that built the application."""
        if args.database_url is None and host != this_host():
            raise ConfigurationError(
                f"This worker's node cannot see the SQLite database of {host.split('/')[0]}. "
                "Set SOPHIA_DATABASE_URL to a PostgreSQL address to use more than one node."
            )
        self._store = Store(args.resolved_database_url)
        self._store.migrate()
        engine = _engine(model, args)
        artifacts = Artifacts(args.resolved_artifacts_url)
        self._worker = Worker(model, engine, self._store, artifacts, args.queue, node=ray.util.get_node_ip_address())
        self._worker.start()

    def check_health(self) -> None:
        """Serve asks this now and then; a worker whose threads have died is replaced."""
        if not self._worker.alive:
            raise RuntimeError("the worker's threads have ended; the log says why")

    async def __del__(self) -> None:
        await asyncio.to_thread(self._worker.drain)
        self._store.close()


def _engine(model: str, args: AppArgs) -> Engine:
    settings = args.models[model]
    if settings.source == "simulated":
        return SimulatedEngine(model, settings)
    from serve_app.engine import AceStepEngine  # torch: only here, and only now

    return AceStepEngine(model, settings, args.data_dir / "weights")


def this_host() -> str:
    """What tells one machine (or container) from another: a file here is a file there only where this is the same."""
    return f"{socket.gethostname()}/{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
