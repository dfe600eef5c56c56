"""Planning: claims the plans of one model, lets a planner make several of them together, and publishes them.

It runs in a worker, beside the rendering of other songs. Each of its threads repeats `plan_one`; the planner decodes what all of
them ask for in one loop. The worker's heartbeat marks a claim as lost when its job has ended or another worker has the plan, and
only then does the planner stop at its next token.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from serve_app import metrics
from serve_app.config import QueueArgs
from serve_app.engine.planner.orders import carried_out
from serve_app.engine.planner.protocol import Planner
from serve_app.errors import DeviceLost, PlanningFailed, SophiaError, Stopped, StoreUnavailable
from serve_app.music.plan import Plan
from serve_app.store import PlanTask, Store
from serve_app.store.notifications import Waiter
from serve_app.supervision import PeriodicThread
from serve_app.worker.failures import is_device_error
from serve_app.worker.heartbeat import Heartbeat
from serve_app.worker.patience import Patience
from serve_app.worker.plan_claims import PlanClaim, SharedDeviceTime

logger = logging.getLogger("ray.serve.sophia")

_RETRY_S: Final = 1.0


class PlanningHost(Protocol):
    """The worker in whose process plans are made."""

    def show_activity(self) -> None:
        """Show in the worker's row what it does now. Called after a plan was begun or ended."""

    def codes_of(self, owner: str, source: str, stopped: Callable[[], bool]) -> tuple[int, ...]:
        """The audio codes of an owner's recording. Raises Stopped when `stopped()` has become true before it is heard.

        Raises InvalidRequest if it cannot be heard here, and what reading a job's recordings raises.
        """

    def end_with_device(self, job: str, loss: DeviceLost) -> None:
        """End the worker, whose device has failed while it planned for `job`."""


class Planning:
    """The threads of one process that plan songs of one model."""

    def __init__(
        self,
        model: str,
        planner: Planner,
        store: Store,
        queue: QueueArgs,
        *,
        heartbeat: Heartbeat,
        host: PlanningHost,
        device_time: SharedDeviceTime,
    ) -> None:
        """It makes the plans of `model`. Their part of `device_time` goes to the account that the heartbeat's row names."""
        self._model = model
        self._planner = planner
        self._store = store
        self._queue = queue
        self._heartbeat = heartbeat
        self._host = host
        self._device_time = device_time
        self._claiming = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[PeriodicThread] = []
        self._waiters: list[Waiter] = []
        self._patience = Patience()

    @property
    def plans(self) -> int:
        """How many plans are in the making."""
        return self._device_time.plans

    @property
    def alive(self) -> bool:
        """Whether every thread that should run does."""
        return bool(self._threads) and all(thread.alive for thread in self._threads)

    def start(self, jobs_at_once: int) -> None:
        """Claim plans from now on, so many at once. The planner must be loaded."""
        for number in range(jobs_at_once):
            queued = self._store.notifications.waiter("queued")
            self._waiters.append(queued)
            plan_one = partial(self.plan_one, queued)
            self._threads.append(
                PeriodicThread(self._store.supervisor, f"plan {number + 1}", plan_one, retry_s=_RETRY_S)
            )
        for thread in self._threads:
            thread.start()

    def stop_claiming(self) -> None:
        """Claim no more plans. Those in the making go on."""
        self._stopping.set()
        for thread, queued in zip(self._threads, self._waiters, strict=True):
            thread.stopping.set()
            queued.wake()

    def close(self) -> None:
        """Return when the plans in the making are published, then close the planner. Call `stop_claiming` first."""
        for thread in self._threads:
            thread.join()
        self._planner.close()

    def plan_one(self, queued: Waiter) -> None:
        """Claim one plan and make it. When there is none, return after a wait for the next one, at most a second."""
        claim = self._claim(queued)
        if claim is None:
            return
        try:
            plan = carried_out(
                self._planner, claim.task.kind, self._with_codes(claim), claim.on_token, claim.lost.is_set
            )
        except Stopped:
            self._charge(claim)
            _log_lost(claim.task)
        except Exception as error:
            self._fail(claim, error)
        else:
            self._publish(claim, plan)
        finally:
            self._heartbeat.remove(claim)
            self._host.show_activity()

    def _claim(self, queued: Waiter) -> PlanClaim | None:
        """The next plan; None after a wait when there is none. One thread claims at a time."""
        with self._claiming:
            seen = queued.count()
            task = None
            if not self._stopping.is_set():
                task = self._store.plans.take(self._heartbeat.row.id, self._model, self._queue.lease_s)
        if task is None:
            queued.wait(seen, timeout=_RETRY_S)
            return None
        claim = PlanClaim(task)
        self._heartbeat.add(claim)
        self._device_time.begin(claim.key)
        self._host.show_activity()
        return claim

    def _with_codes(self, claim: PlanClaim) -> Mapping[str, Any]:
        """The order of a claim, with the audio codes of the recording that it may name."""
        order = claim.task.request
        source = order.get("source")
        if not source:
            return order
        return {**order, "codes": list(self._host.codes_of(claim.task.owner, source, claim.lost.is_set))}

    def _publish(self, claim: PlanClaim, plan: Plan) -> None:
        task = claim.task
        gpu_s = self._end(claim)
        audio_s = None
        if task.job is not None and plan.duration is not None:
            audio_s = plan.duration * task.request["wishes"]["songs"]

        def publish() -> bool:
            account = self._heartbeat.row.model
            return self._store.plans.publish(task, plan.to_json(), gpu_s=gpu_s, audio_s=audio_s, account=account)

        if self._until_the_store_answers(claim, publish):
            logger.info("plan %s of job %s is made in %.2f device seconds", task.id, task.job, gpu_s)
        else:
            _log_lost(task)

    def _fail(self, claim: PlanClaim, error: Exception) -> None:
        """End a plan with an error; end the worker, too, when its device has failed."""
        task = claim.task
        logger.exception("plan %s of job %s failed on worker %s", task.id, task.job, task.worker)
        cause = _cause(error)
        if isinstance(cause, DeviceLost):
            self._host.end_with_device(task.job or task.id, cause)
        self._charge(claim)
        self._until_the_store_answers(claim, lambda: self._store.plans.fail(task, cause))

    def _charge(self, claim: PlanClaim) -> None:
        """Charge the device time of an attempt without a plan. Does not wait for an unreachable store."""
        gpu_s = self._end(claim)
        try:
            self._store.plans.charge(claim.task, gpu_s, self._heartbeat.row.model)
        except StoreUnavailable as error:
            logger.warning("plan %s: %.1f device seconds are missing from its account: %s", claim.task.id, gpu_s, error)

    def _end(self, claim: PlanClaim) -> float:
        """The device seconds of a plan that is no longer in the making."""
        gpu_s = self._device_time.end(claim.key)
        metrics.key_device_time(self._heartbeat.row.model, claim.task.owner, gpu_s)
        return gpu_s

    def _until_the_store_answers(self, claim: PlanClaim, action: Callable[[], bool]) -> bool:
        """The result of `action`, repeated while the store is unreachable. False when the claim is lost meanwhile."""
        try:
            return self._patience.until_the_store_answers(f"the outcome of plan {claim.task.id}", claim.lost, action)
        except Stopped:
            return False


def _cause(error: Exception) -> SophiaError:
    summary = f"{type(error).__name__}: {error}"
    if isinstance(error, SophiaError):
        return error
    if is_device_error(error):
        return DeviceLost(f"The device failed: {summary}")
    return PlanningFailed(f"The planner failed: {summary}")


def _log_lost(task: PlanTask) -> None:
    logger.info("plan %s of job %s no longer belongs to worker %s: stopped", task.id, task.job, task.worker)
