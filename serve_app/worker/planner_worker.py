"""A worker that only plans: the planner of one model, in a process and on a device of its own."""

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict

from serve_app.config import QueueArgs, planner_stage
from serve_app.engine.planner.protocol import Planner
from serve_app.errors import DeviceLost, InvalidRequest, LoadError
from serve_app.jobs import WorkerPhase
from serve_app.plurals import counted
from serve_app.store import Store
from serve_app.worker.failures import DeviceRecord
from serve_app.worker.heartbeat import Heartbeat
from serve_app.worker.load_report import LoadReport
from serve_app.worker.plan_claims import SharedDeviceTime
from serve_app.worker.planning import Planning
from serve_app.worker.worker import WorkerOptions, first_row

logger = logging.getLogger("ray.serve.sophia")


class PlannerWorker:
    """One planner at work on one model's plans. Its row, loads, costs and scale have the name `planner_stage(model)`."""

    def __init__(
        self, model: str, planner: Planner, store: Store, queue: QueueArgs, *, jobs_at_once: int, options: WorkerOptions
    ) -> None:
        self._planner = planner
        self._store = store
        self._jobs_at_once = jobs_at_once
        row = first_row(planner_stage(model), options)
        self._heartbeat = Heartbeat(store, row, queue.lease_s, options.price_per_hour)
        self._load_report = LoadReport(self._heartbeat)
        self._device = DeviceRecord(store, row.model, options.deployment)
        self._planning = Planning(
            model, planner, store, queue, heartbeat=self._heartbeat, host=self, device_time=SharedDeviceTime()
        )
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._is_loaded = False

    @property
    def id(self) -> str:
        """The worker's id, new at each start."""
        return self._heartbeat.row.id

    @property
    def alive(self) -> bool:
        """Whether every thread that should run does."""
        return self._planning.alive and self._heartbeat.alive

    @property
    def failed_phase(self) -> str:
        """The phase in which the last load failed."""
        return self._load_report.failed_phase

    def announce(self) -> None:
        """Write the worker's row to the store and start the heartbeat."""
        self._heartbeat.start()

    def load(self) -> None:
        """Load the planner, then claim plans in the background. After a LoadError, which the row shows, it may be called again."""
        try:
            facts = self._planner.load(self._heartbeat.report)
        except Exception as error:
            raise self._load_report.show_failure(error) from error
        shown = {"planner": asdict(facts) | {"placement": "own"}}
        self._heartbeat.update(
            phase=WorkerPhase.IDLE, detail="ready", progress=None, device=facts.device, facts=shown, error=None
        )
        logger.info("planner %s of %s is ready on %s", self.id, self._heartbeat.row.model, facts.device)
        with self._lock:
            if not self._stopping.is_set():  # else Serve ended the replica during the load
                self._is_loaded = True
                self._planning.start(self._jobs_at_once)

    def start(self) -> None:
        """Announce the worker, load the planner and begin to claim. After a LoadError the worker is closed."""
        self.announce()
        try:
            self.load()
        except LoadError:
            self._heartbeat.close(lambda: self._store.workers.report(self._heartbeat.row))
            raise

    def show_pause(self, reason: str) -> None:
        """Show in the worker's row why it does not load now."""
        self._load_report.show_pause(reason)

    def drain(self) -> None:
        """Claim no more plans, publish those in the making, and leave. Returns when that is done."""
        self._stop_claiming()
        if self._is_loaded:
            self._heartbeat.update(phase=WorkerPhase.DRAINING, detail="finishing the plans in hand")
            self._planning.close()
        self._heartbeat.close(lambda: self._store.workers.forget(self.id))

    def show_activity(self) -> None:
        """Write to the worker's row how many jobs it plans. A worker that stops keeps its phase, detail and error."""
        with self._lock:
            if self._stopping.is_set():
                return
            plans = self._planning.plans
            phase = WorkerPhase.GENERATING if plans else WorkerPhase.IDLE
            self._heartbeat.update(phase=phase, detail=f"planning {counted(plans, 'job')}" if plans else "ready")

    def codes_of(self, owner: str, source: str, stopped: Callable[[], bool]) -> tuple[int, ...]:  # noqa: ARG002
        """Raises InvalidRequest: this process has no model that could hear a recording."""
        raise InvalidRequest(
            f"source: {source} cannot be heard, because {self._heartbeat.row.model} runs without the model (planner.placement). "
            "Send audio_codes, or a song whose codes were kept."
        )

    def end_with_device(self, job: str, loss: DeviceLost) -> None:
        """Claim no more plans on a device that has failed during `job`. Serve replaces the worker, since its threads have ended."""
        self._stop_claiming()
        self._heartbeat.update(
            phase=WorkerPhase.FAILED,
            detail=f"claims no more plans: {loss.message}",
            error={"code": loss.code, "message": loss.message},
        )
        self._device.record_loss(job, loss.message)

    def _stop_claiming(self) -> None:
        with self._lock:
            self._stopping.set()
            self._planning.stop_claiming()
