"""The worker: claims jobs of one model, generates their songs and hands them to the publisher.

Each slot is a thread that repeats `run_one`. An engine has one slot, or more when it can run several jobs at once. Encoding,
storing and publishing happen in other threads, so the device is not idle while jobs wait. If the model's planner runs in this
process, further threads plan the next songs meanwhile (planning.py). The heartbeat marks a claim as lost when
the job was cancelled, deleted, expired or given to another worker. Only then does the generation stop at its next step.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

from serve_app import metrics
from serve_app.artifacts import ArtifactStore
from serve_app.audio import Encoders, default_processes
from serve_app.config import EncodingArgs, InputArgs, QueueArgs
from serve_app.engine.protocol import Engine, EngineFacts
from serve_app.errors import DeviceLost, DeviceMemory, LoadError, NotFound, Stopped
from serve_app.jobs import Job, WorkerPhase, new_id
from serve_app.music import SELF_TEST
from serve_app.music.plan import Plan
from serve_app.plurals import counted
from serve_app.processes import Process
from serve_app.store import Store, WorkerRow
from serve_app.store.notifications import Waiter
from serve_app.supervision import PeriodicThread
from serve_app.worker.claims import Claim
from serve_app.worker.failures import DeviceRecord, diagnose
from serve_app.worker.heartbeat import Heartbeat
from serve_app.worker.load_report import LoadReport
from serve_app.worker.outcomes import Outcomes
from serve_app.worker.patience import Patience
from serve_app.worker.plan_claims import SharedDeviceTime
from serve_app.worker.planner_in_worker import PlannerInWorker
from serve_app.worker.planning import Planning
from serve_app.worker.publisher import Publisher
from serve_app.worker.song_inputs import SongInputReader
from serve_app.worker.song_storage import SongStorage
from serve_app.worker.unstored_songs import UnstoredSongs

logger = logging.getLogger("ray.serve.sophia")

MAX_WAITING_SONGS: Final = 1
"""While this many songs wait for the audio store, no job is claimed. Each of them holds a thread of the publisher."""

_RETRY_S: Final = 1.0
_TURN_S: Final = 0.2
"""Seconds between two looks at whether a recording still waits for the engine."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Facts and settings of a worker, apart from its engine, its stores and the queue's limits."""

    node: str = "local"
    """Address of the node that runs it."""
    cluster: str = ""
    deployment: str = ""
    """Id of the build that it belongs to."""
    price_per_hour: float = 0.0
    """Price of its device."""
    encoding: EncodingArgs = field(default_factory=EncodingArgs)
    inputs: InputArgs = field(default_factory=InputArgs)
    planner: PlannerInWorker | None = None
    """The planner to load beside the model; None if the model has none."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A thread that generates one job at a time, and the waiter that wakes it when a job is queued."""

    thread: PeriodicThread
    queued: Waiter


class Worker:
    """One engine at work on one model's jobs. It uses plain threads and no Ray; `MusicWorker` is its Serve deployment."""

    def __init__(
        self,
        model: str,
        engine: Engine,
        store: Store,
        artifacts: ArtifactStore,
        queue: QueueArgs,
        *,
        options: WorkerOptions | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        """The worker closes its `encoders`, unless they are given here: those may serve other workers, too."""
        options = options or WorkerOptions()
        self._engine = engine
        self._store = store
        self._queue = queue
        row = first_row(model, options)
        self._heartbeat = Heartbeat(store, row, queue.lease_s, options.price_per_hour)
        self._storage = SongStorage(row.id, artifacts, MAX_WAITING_SONGS)
        self._inputs = SongInputReader(store, artifacts, options.inputs)
        self._device = DeviceRecord(store, model, options.deployment)
        self._encoders = encoders or Encoders(options.encoding.processes or default_processes())
        self._owns_encoders = encoders is None
        self._publisher = Publisher(
            self._storage,
            self._encoders,
            UnstoredSongs(options.encoding.audio_in_hand_s),
            Outcomes(store, self._device),
            self._heartbeat.remove,
            keep_latents=options.encoding.keep_latents,
        )
        self._device_time = SharedDeviceTime()
        self._planner = options.planner
        self._planning = self._new_planning()
        self._load_report = LoadReport(self._heartbeat)
        self._patience = Patience()
        self._slots: list[_Slot] = []
        self._stopping = threading.Event()
        self._claiming = threading.Lock()
        self._engine_turns = threading.BoundedSemaphore(engine.slots)
        """Whoever uses the engine holds one: a song that is generated, or a recording that is turned into audio codes."""
        self._generating: dict[tuple[str, int], Job] = {}
        self._lock = threading.Lock()

    @property
    def id(self) -> str:
        """The worker's id, new at each start."""
        return self._heartbeat.row.id

    @property
    def model(self) -> str:
        """The model whose jobs it takes."""
        return self._heartbeat.row.model

    @property
    def alive(self) -> bool:
        """Whether every thread that should run does."""
        plans = self._planning is None or self._planning.alive
        return bool(self._slots) and all(slot.thread.alive for slot in self._slots) and plans and self._heartbeat.alive

    @property
    def failed_phase(self) -> str:
        """The phase in which the last load failed."""
        return self._load_report.failed_phase

    # --- Start and end ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Announce the worker, load the model and begin to claim. After a LoadError the worker is closed."""
        self.announce()
        try:
            self.load()
        except LoadError:
            self._heartbeat.close(lambda: self._store.workers.report(self._heartbeat.row))
            raise

    def announce(self) -> None:
        """Write the worker's row to the store and start the heartbeat."""
        self._heartbeat.start()

    def load(self) -> None:
        """Load the model, then claim jobs in the background. After a LoadError, which the row shows, it may be called again."""
        try:
            facts = self._engine.load(self._heartbeat.report)
            of_planner = self._load_planner()
        except Exception as error:
            raise self._load_report.show_failure(error) from error
        self._heartbeat.update(
            phase=WorkerPhase.IDLE,
            detail="ready",
            progress=None,
            device=facts.device,
            facts=asdict(facts) | of_planner,
            error=None,
        )
        self._publisher.checkpoint = _checkpoint(facts)
        logger.info("worker %s of %s is ready on %s", self.id, self.model, facts.device)
        self._encoders.warm_up()
        self._start_slots()

    def show_pause(self, reason: str) -> None:
        """Show in the worker's row why it does not load now."""
        self._load_report.show_pause(reason)

    def join(self) -> None:
        """Block until the worker claims no more jobs."""
        for slot in self._slots:
            slot.thread.join()
        if self._planning is not None:
            self._planning.close()

    def drain(self) -> None:
        """Claim no more jobs, finish and publish those in hand, and leave. Returns when that is done."""
        self._stop_claiming()
        if self._slots:
            detail = "finishing the job in hand" if self._heartbeat.holds_jobs else "ending"
            self._heartbeat.update(phase=WorkerPhase.DRAINING, detail=detail)
            self.join()
        self._publisher.close()
        if self._owns_encoders:
            self._encoders.close()
        self._heartbeat.close(lambda: self._store.workers.forget(self.id))

    def _start_slots(self) -> None:
        with self._lock:
            if self._stopping.is_set():  # Serve ended the replica during the load
                return
            self._slots = [self._new_slot(number) for number in range(self._engine.slots)]
            for slot in self._slots:
                slot.thread.start()
            if self._planning is not None and self._planner is not None:
                self._planning.start(self._planner.jobs_at_once)

    def _new_planning(self) -> Planning | None:
        if self._planner is None:
            return None
        return Planning(
            self.model,
            self._planner.planner,
            self._store,
            self._queue,
            heartbeat=self._heartbeat,
            host=self,
            device_time=self._device_time,
        )

    def _load_planner(self) -> dict[str, Any]:
        """Load the planner beside the model, if there is one and it fits. What the row's facts say about it."""
        if self._planner is None:
            return {}
        try:
            facts = self._planner.planner.load(self._heartbeat.report)
        except DeviceMemory as error:
            if not self._planner.is_optional:
                raise
            logger.warning("worker %s of %s does not plan: %s", self.id, self.model, error.message)
            self._planning = None
            return {"planner": {"placement": "own", "reason": error.message}}
        return {"planner": asdict(facts) | {"placement": "worker"}}

    def _new_slot(self, number: int) -> _Slot:
        name = "generate" if number == 0 else f"generate {number + 1}"
        queued = self._store.notifications.waiter("queued")
        run_one = partial(self.run_one, queued)
        return _Slot(PeriodicThread(self._store.supervisor, name, run_one, retry_s=_RETRY_S), queued)

    def _stop_claiming(self) -> None:
        with self._lock:
            self._stopping.set()
            for slot in self._slots:
                slot.thread.stopping.set()
                slot.queued.wake()
            if self._planning is not None:
                self._planning.stop_claiming()

    # --- A job ------------------------------------------------------------------------------------------------------

    def run_one(self, queued: Waiter) -> None:
        """Claim one job and run it. When there is none, return after a wait for the next one, at most a second."""
        # 1. Claim a job. The heartbeat renews its lease from now on.
        claim = self._claim(queued)
        if claim is None:
            return
        try:
            # 2. Generate its songs. The publisher encodes and stores each one meanwhile.
            with self._device_time.beside_song(claim):
                self._generate(claim)
        except Stopped:
            self._publisher.abandon(claim)
        except Exception as error:
            self._fail(claim, error)
        else:
            # 3. Publish the job in the background. This slot is free for the next one.
            self._publisher.publish(claim)
        finally:
            # 4. Free the slot, and show what the worker does now.
            del self._generating[claim.key]
            self.show_activity()

    def _claim(self, queued: Waiter) -> Claim | None:
        """The next job; None after a wait when there is none, and when no song could be stored. One slot claims at a time."""
        with self._claiming:
            seen = queued.count()
            refusal = self._storage.check()
            self.show_activity()
            job = None if refusal else self._store.claims.take(self.id, self.model, self._queue.lease_s)
        if refusal:
            self._stopping.wait(_RETRY_S)
        elif job is None:
            queued.wait(seen, timeout=_RETRY_S)
        return self._begin(job) if job else None

    def _begin(self, job: Job) -> Claim:
        claim = Claim(job)
        self._heartbeat.add(claim)
        self._generating[claim.key] = job
        metrics.job_started(self.model, (job.started_at or job.created_at) - job.created_at)
        self.show_activity()
        return claim

    def _generate(self, claim: Claim) -> None:
        """Generate the songs of a job and hand each to the publisher. Raises Stopped when the claim is lost."""
        claim.plan = self._plan_of(claim)
        request = claim.request
        claim.warnings = (*claim.job.warnings, *self._engine.warnings(request))
        inputs = self._inputs.read(claim.job, claim.on_step, self._publisher.checkpoint, claim.lost.is_set)
        if claim.plan is not None:
            inputs = replace(inputs, codes=claim.plan.codes)
        with self._engine_turns:
            for song in self._engine.generate(request, claim.on_step, claim.lost.is_set, inputs):
                self._publisher.add(claim, song)
                del song  # up to 230 MB, which the publisher frees once they are encoded

    def codes_of(self, owner: str, source: str, stopped: Callable[[], bool]) -> tuple[int, ...]:
        """The audio codes of an owner's recording, as soon as the engine is free. See `PlanningHost`."""
        samples = self._inputs.recording(owner, source)
        while not self._engine_turns.acquire(timeout=_TURN_S):
            if stopped():
                raise Stopped
        try:
            return self._engine.codes_of(samples)
        finally:
            self._engine_turns.release()

    def _plan_of(self, claim: Claim) -> Plan | None:
        """The plan of a claimed job; None if it has none. Raises Stopped when the claim is lost while the store is unreachable."""

        def read() -> Plan | None:
            try:
                result = self._store.plans.of_job(claim.job.id).result
            except NotFound:
                return None
            return Plan.from_json(result) if result is not None else None

        return self._patience.until_the_store_answers(f"job {claim.job.id}", claim.lost, read)

    def _fail(self, claim: Claim, error: Exception) -> None:
        """End a job with an error; end the worker, too, when its device has failed."""
        job = claim.job
        logger.exception("job %s failed on worker %s", job.id, self.id, extra={"job": job.id})
        cause = diagnose(error, self._self_test)
        if isinstance(cause, DeviceLost):
            self.end_with_device(job.id, cause)
        self._publisher.fail(claim, cause)

    def _self_test(self) -> None:
        with self._engine_turns:
            for song in self._engine.generate(SELF_TEST, lambda stage, step, steps: None, lambda: False):
                del song

    def end_with_device(self, job: str, loss: DeviceLost) -> None:
        """Claim no more jobs on a device that has failed during `job`. Serve replaces the worker, since its threads have ended."""
        self._stop_claiming()
        self._heartbeat.update(
            phase=WorkerPhase.FAILED,
            detail=f"claims no more jobs: {loss.message}",
            error={"code": loss.code, "message": loss.message},
            job=None,
        )
        self._device.record_loss(job, loss.message)

    def show_activity(self) -> None:
        """Write to the worker's row what its slots do. A worker that stops keeps its phase, detail and error."""
        with self._lock:
            jobs = list(self._generating.values())
            plans = self._planning.plans if self._planning is not None else 0
            fields: dict[str, Any] = {"job": jobs[0].id if jobs else None}
            if not self._stopping.is_set():
                fields["phase"] = WorkerPhase.GENERATING if jobs or plans else WorkerPhase.IDLE
                fields |= self._storage.row_fields()
                if jobs or plans:
                    fields["detail"] = _activity(jobs, plans)
            self._heartbeat.update(**fields)


def _activity(jobs: list[Job], plans: int) -> str:
    """What a worker does that generates `jobs` and makes so many plans."""
    parts = []
    if jobs:
        parts.append(f"attempt {jobs[0].attempt}" if len(jobs) == 1 else f"{len(jobs)} jobs")
    if plans:
        parts.append(f"planning {counted(plans, 'job')}")
    return "; ".join(parts)


def _checkpoint(facts: EngineFacts) -> str:
    """Identifies a loaded model. Latents of another one may belong to another autoencoder."""
    return f"{facts.source}@{facts.revision or ''} {facts.weights_bytes}"


def first_row(model: str, options: WorkerOptions) -> WorkerRow:
    """The row of a worker that has just started."""
    return WorkerRow(
        id=new_id(),
        model=model,
        node=options.node,
        cluster=options.cluster,
        process=Process.this(),
        device="",
        phase=WorkerPhase.STARTING,
    )
