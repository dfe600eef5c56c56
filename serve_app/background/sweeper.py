"""Sweeps the queue in every API process: deadlines, run limits, lost leases, jobs of dead processes. Also exports its metrics."""

import logging
import threading
import time
from typing import Final

from serve_app import metrics
from serve_app.config import AppArgs
from serve_app.errors import StoreUnavailable
from serve_app.jobs import new_id
from serve_app.plurals import counted
from serve_app.store import Store, WorkerRow
from serve_app.supervision import PeriodicThread

logger = logging.getLogger("ray.serve.sophia")

EVERY_S: Final = 1.0
_FIRST_MIGRATION_S: Final = 10.0
"""Seconds for which `start` waits for the tables."""

_AFTER_SUSPENSION_S: Final = 3.0
"""Seconds without a sweep after a suspension. Meanwhile one process extends the limits of the running jobs."""

RECOUNT_EVERY_S: Final = 60.0
"""Seconds between two checks of the shares, which an older version in a rollout, or an operator's SQL, can make wrong."""

METRICS_EVERY_S: Final = 5.0
"""Seconds between two updates of the metrics. Ray exports them every 10 s."""


class Sweeper:
    """A thread that migrates the database, then sweeps the queue once a second."""

    def __init__(self, store: Store, args: AppArgs, deployment: str) -> None:
        self._store = store
        self._args = args
        self._deployment = deployment
        self._queue = args.queue
        self._leave_grace_s = args.api.leave_grace_s
        self._leases_expire_from = time.monotonic() + self._queue.lease_s  # no heartbeat is missed before
        self._next_sweep_at = 0.0
        self._metrics_at = 0.0
        self._suspended_s = 0.0
        self._id = new_id()
        self._recounted_at = -RECOUNT_EVERY_S
        self._last_step_at = _suspend_aware_clock()
        self._gauges = metrics.Gauges()
        self._migrated = False
        self._migration_tried = threading.Event()
        self._thread = PeriodicThread(
            store.supervisor, "sweeper", self._step, EVERY_S, retry_s=EVERY_S, max_retry_s=EVERY_S
        )

    def start(self) -> None:
        """Start the thread, and wait at most _FIRST_MIGRATION_S for the tables, which the first request needs.

        Without a database the API starts all the same, and answers pings, and 503 to other requests.
        """
        self._thread.start()
        self._migration_tried.wait(_FIRST_MIGRATION_S)

    def close(self) -> None:
        """Stop after the current sweep."""
        self._thread.close()

    def _step(self) -> None:
        self._detect_suspension()
        try:
            self._migrate()
            self._sweep()
            self._recount()
            self._export_metrics()
        except StoreUnavailable:
            # No worker could send a heartbeat meanwhile. Wait for one lease before any lease expires.
            self._leases_expire_from = time.monotonic() + self._queue.lease_s
            raise

    def _migrate(self) -> None:
        if self._migrated:
            return
        try:
            self._store.migrate()
            self._migrated = True
        finally:
            self._migration_tried.set()

    def _detect_suspension(self) -> None:
        """After a suspension of this machine, wait for one lease before any lease expires.

        The machine has received no heartbeat meanwhile, and its own workers have sent none.
        """
        suspended_s = _suspend_aware_clock() - self._last_step_at - EVERY_S
        self._last_step_at = _suspend_aware_clock()
        if suspended_s > self._queue.lease_s / 3:  # a worker sends four heartbeats in a lease
            logger.warning(
                "this process was suspended for %.0f s; no lease expires for %s s", suspended_s, self._queue.lease_s
            )
            self._suspended_s += suspended_s
            self._leases_expire_from = time.monotonic() + self._queue.lease_s
            self._next_sweep_at = time.monotonic() + _AFTER_SUSPENSION_S

    def _extend_limits(self) -> None:
        """Extend the limits of running jobs by the suspension. A lease makes one of this machine's API processes do it for all."""
        if self._suspended_s and self._store.leases.take("pause", self._id, self._queue.lease_s):
            self._store.time_limits.extend(self._suspended_s)
            self._store.plans.extend(self._suspended_s)
        self._suspended_s = 0.0

    def _sweep(self) -> None:
        self._store.collect_dead_processes()
        self._extend_limits()
        if time.monotonic() < self._next_sweep_at:
            return
        expire_leases = time.monotonic() >= self._leases_expire_from
        if moved := self._store.time_limits.enforce(self._queue.run_limit_s, expire_leases=expire_leases):
            logger.info("swept %s: lost leases, deadlines or run limits", counted(moved, "job"))
        if changed := self._store.plans.enforce(self._queue.run_limit_s, expire_leases=expire_leases):
            logger.info("swept %s: lost leases, deadlines or run limits", counted(changed, "plan"))
        if left := self._store.waiting_calls.cancel_left(self._leave_grace_s):
            logger.info("cancelled %s whose waiting callers have left", counted(left, "job"))

    def _recount(self) -> None:
        if time.monotonic() < self._recounted_at + RECOUNT_EVERY_S:
            return
        self._recounted_at = time.monotonic()
        if self._store.backlog.recount():
            logger.warning(
                "the shares of the queue were wrong and have been recounted; an older version may still be running"
            )

    def _export_metrics(self) -> None:
        if time.monotonic() < self._metrics_at + METRICS_EVERY_S:
            return
        self._metrics_at = time.monotonic()
        self._store.database.check_for_newer_schema()
        names = self._args.models
        pauses = self._store.pauses.all()
        self._gauges.set(
            {
                **metrics.paused({name: name in pauses for name in names}),
                **metrics.queue(self._store.backlog.counts(), self._store.backlog.oldest_wait_s()),
                **metrics.fleet(self._workers(), self._wanted(), self._open_breakers()),
            }
        )

    def _workers(self) -> list[metrics.Seen]:
        return [_snapshot(row) for row in self._store.workers.seen(self._queue.lease_s)]

    def _wanted(self) -> dict[str, int]:
        """By model, the number of workers that all clusters' decisions ask for."""
        decisions = self._store.decisions.in_force(self._args.cluster_name or "")
        return {name: sum(one.target for one in made) for name, made in decisions.items() if name in self._args.stages}

    def _open_breakers(self) -> dict[str, bool]:
        """By model, whether its breaker is open."""
        breaker = self._store.load_attempts.breaker
        return {name: breaker(name, self._deployment, self._args.breaker).is_open for name in self._args.stages}


def _suspend_aware_clock() -> float:
    """Seconds on a clock that, unlike time.monotonic(), also runs while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _snapshot(row: WorkerRow) -> metrics.Seen:
    phase_s = row.seen_at - row.phase_since + row.age_s
    return metrics.Seen(row.model, row.phase, phase_s, row.error["code"] if row.error else "")
