"""What time asks of the queue, done by every API process: deadlines, run limits, lost leases, the work of the dead; and metrics."""

import logging
import threading
import time
from typing import Final

from serve_app import metrics
from serve_app.config import AppArgs
from serve_app.errors import StoreUnavailable
from serve_app.jobs import new_id
from serve_app.store import Store, WorkerRow
from serve_app.supervision import PeriodicThread

logger = logging.getLogger("ray.serve.sophia")

EVERY_S: Final = 1.0
_PATIENCE_S: Final = 10.0
_REST_S: Final = 3.0
"""After a pause nothing is swept for so long: meanwhile one process puts the limits of running jobs off by it."""

RECOUNT_EVERY_S: Final = 60.0
"""The shares are compared with the queue so often: an earlier version in a rollout, or a hand in the database, may write it."""

TELL_EVERY_S: Final = 5.0
"""Metrics are told so often; Ray exports them every 10 s."""


class Sweeper:
    """A thread that brings the schema up to date, then sweeps the queue once a second."""

    def __init__(self, store: Store, args: AppArgs, deployment: str) -> None:
        self._store = store
        self._args = args
        self._deployment = deployment
        self._queue = args.queue
        self._deaf_until = time.monotonic() + self._queue.lease_s  # this process has heard nobody yet
        self._rests_until = 0.0
        self._told_at = 0.0
        self._asleep_s = 0.0
        self._id = new_id()
        self._recounted_at = -RECOUNT_EVERY_S
        self._awake_at = _awake_clock()
        self._gauges = metrics.Gauges()
        self._migrated = False
        self._tried = threading.Event()
        self._thread = PeriodicThread(
            store.supervisor, "sweeper", self._step, EVERY_S, retry_s=EVERY_S, max_retry_s=EVERY_S
        )

    def start(self) -> None:
        """Begin, and wait a little for the tables, which the first request needs.

        A database that is away holds nobody up: the API answers pings meanwhile, and 503 to the rest.
        """
        self._thread.start()
        self._tried.wait(_PATIENCE_S)

    def close(self) -> None:
        """End after the sweep under way."""
        self._thread.close()

    def _step(self) -> None:
        self._notice_a_pause()
        try:
            self._migrate()
            self._sweep()
            self._recount()
            self._tell()
        except StoreUnavailable:
            # While the database was away no worker could be heard: give them a lease's time to speak up again.
            self._deaf_until = time.monotonic() + self._queue.lease_s
            raise

    def _migrate(self) -> None:
        if self._migrated:
            return
        try:
            self._store.migrate()
            self._migrated = True
        finally:
            self._tried.set()

    def _notice_a_pause(self) -> None:
        """A machine that slept has heard no worker, and its workers slept, too: give them a lease's time to speak up again."""
        asleep_s = _awake_clock() - self._awake_at - EVERY_S
        self._awake_at = _awake_clock()
        if asleep_s > self._queue.lease_s / 3:  # workers speak up four times in a lease
            logger.warning(
                "this process stood still for %.0f s; no lease is given up for %s s", asleep_s, self._queue.lease_s
            )
            self._asleep_s += asleep_s
            self._deaf_until = time.monotonic() + self._queue.lease_s
            self._rests_until = time.monotonic() + _REST_S

    def _allow_for_the_pause(self) -> None:
        """Put running jobs' limits off by it. Several API processes of a machine sleep at once: one of them does so for all."""
        if self._asleep_s and self._store.leases.take("pause", self._id, self._queue.lease_s):
            self._store.time_limits.extend(self._asleep_s)
        self._asleep_s = 0.0

    def _sweep(self) -> None:
        self._store.collect_dead_processes()
        self._allow_for_the_pause()
        if time.monotonic() < self._rests_until:
            return
        heard = time.monotonic() >= self._deaf_until
        if moved := self._store.time_limits.enforce(self._queue.run_limit_s, expire_leases=heard):
            logger.info("swept %s jobs: lost leases, deadlines or run limits", moved)

    def _recount(self) -> None:
        if time.monotonic() < self._recounted_at + RECOUNT_EVERY_S:
            return
        self._recounted_at = time.monotonic()
        if self._store.backlog.recount():
            logger.warning("the shares of the queue were wrong and are counted anew; an earlier version may still run")

    def _tell(self) -> None:
        if time.monotonic() < self._told_at + TELL_EVERY_S:
            return
        self._told_at = time.monotonic()
        self._store.database.check_for_newer_schema()
        models = self._args.models
        seen = [_seen(row) for row in self._store.workers.seen(self._queue.lease_s)]
        open_breakers = {
            name: self._store.load_attempts.breaker(name, self._deployment, self._args.breaker).is_open
            for name in models
        }
        decisions = self._store.decisions.in_force(self._args.cluster_name or "")
        wanted = {name: sum(one.target for one in ours) for name, ours in decisions.items() if name in models}
        pauses = self._store.pauses.all()
        self._gauges.set(
            {
                **metrics.paused({name: name in pauses for name in models}),
                **metrics.queue(self._store.backlog.counts(), self._store.backlog.oldest_wait_s()),
                **metrics.fleet(seen, wanted, open_breakers),
            }
        )


def _awake_clock() -> float:
    """Seconds that pass also while the machine is suspended, unlike those of time.monotonic()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _seen(row: WorkerRow) -> metrics.Seen:
    phase_s = row.seen_at - row.phase_since + row.age_s
    return metrics.Seen(row.model, row.phase, phase_s, row.error["code"] if row.error else "")
