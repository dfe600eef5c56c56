"""The heartbeat: renews leases, publishes the worker's row and its jobs' progress, and detects lost claims."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from serve_app import metrics
from serve_app.errors import SophiaError, StoreUnavailable
from serve_app.jobs import WorkerPhase
from serve_app.store import Beat, Store, WorkerRow
from serve_app.supervision import PeriodicThread
from serve_app.worker.claims import Claim
from serve_app.worker.device_time import DeviceTime, use_of
from serve_app.worker.plan_claims import PlanClaim

logger = logging.getLogger("ray.serve.sophia")

PROGRESS_S: Final = 0.1
"""Least seconds between two writes of progress."""

BEATS_PER_LEASE: Final = 4

_MIN_STEP_S: Final = 0.03
"""Pause after every step. On SQLite the heartbeat's own write wakes it, so without a pause it would run all the time."""

_RETRY_S: Final = 1.0

_Held = Claim | PlanClaim


class _Ledger(Protocol):
    """The part of the store that knows whether claims are held."""

    def heartbeat(self, beats: Sequence[Beat], lease_s: float) -> set[str]: ...

    def lost(self, beats: Sequence[Beat]) -> set[str]: ...


class Heartbeat:
    """A thread that reports for a worker.

    A full beat, four times in a lease and after each change of the row, writes the row, renews every lease and adds up the
    device time. Between two full beats the thread publishes new progress and checks the claims when one was revoked.
    """

    def __init__(self, store: Store, row: WorkerRow, lease_s: float, price_per_hour: float = 0.0) -> None:
        self._store = store
        self._lease_s = lease_s
        self._price = price_per_hour
        self._row = row
        self._row_lock = threading.Lock()
        self._row_changed = threading.Event()
        self._device_time = DeviceTime(row.model, price_per_hour)
        self._phase_began = time.monotonic()
        self._claims: dict[tuple[str, int], _Held] = {}
        self._revoked = store.notifications.waiter("revoked")
        self._revocations_checked = -1
        self._full_beat_at = 0.0
        self._thread = PeriodicThread(
            store.supervisor, "heartbeat", self._step, _MIN_STEP_S, retry_s=_RETRY_S, max_retry_s=_RETRY_S
        )

    @property
    def row(self) -> WorkerRow:
        """The worker's row as of its last change."""
        return self._row

    @property
    def holds_jobs(self) -> bool:
        """Whether the worker holds a job or a plan that is not published yet."""
        return bool(self._claims)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.alive

    def start(self) -> None:
        """Write the worker's row, so that its death can be detected from now on, and start the thread."""
        while not self._try_to_write(self._write_row):
            time.sleep(_RETRY_S)
        self._thread.start()

    def close(self, last_write: Callable[[], None]) -> None:
        """Stop the thread, write the device time and call `last_write`. Neither is repeated if the store is unreachable."""
        self._thread.stopping.set()
        self._revoked.wake()
        self._thread.join()
        self._try_to_write(self._write_device_time)
        self._try_to_write(last_write)

    def add(self, claim: _Held) -> None:
        """Renew the claim's lease from now on."""
        self._claims[claim.key] = claim

    def remove(self, claim: _Held) -> None:
        """Let the claim's lease run out."""
        self._claims.pop(claim.key, None)

    def update(self, **fields: Any) -> None:
        """Change fields of the worker's row. A call that changes nothing is free."""
        with self._row_lock:
            row = replace(self._row, **fields)
            if row == self._row:
                return
            if row.phase is not self._row.phase:
                self._end_phase(self._row.phase, row.phase)
            self._row = row
            self._device_time.switch(use_of(row))
        self._row_changed.set()
        self._revoked.wake()

    def report(self, phase: str, progress: float | None, detail: str) -> None:
        """Report a phase of the start, its progress (0 to 1, None: unknown) and what it does."""
        if phase != self._row.phase:
            logger.info("worker %s of %s: %s: %s", self._row.id, self._row.model, phase, detail)
        self.update(phase=WorkerPhase(phase), progress=progress, detail=detail)

    def _end_phase(self, phase: WorkerPhase, next_phase: WorkerPhase) -> None:
        now = time.monotonic()
        if phase.is_starting and next_phase is not WorkerPhase.FAILED:
            metrics.phase_ended(self._row.model, phase, now - self._phase_began)
        self._phase_began = now

    # --- The thread -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        revocations = self._revoked.count()
        claims = list(self._claims.values())
        try:
            self._beat(claims, has_revocations=revocations != self._revocations_checked)
        except Exception:
            self._full_beat_at = 0.0  # the next step makes up for this one
            raise
        self._revocations_checked = revocations
        until_full_beat_s = max(self._full_beat_at - time.monotonic(), PROGRESS_S)
        self._revoked.wait(revocations, PROGRESS_S if claims else until_full_beat_s)

    def _beat(self, claims: Sequence[_Held], has_revocations: bool) -> None:
        full = self._row_changed.is_set() or time.monotonic() >= self._full_beat_at
        if full:
            self._full_beat_at = time.monotonic() + self._lease_s / BEATS_PER_LEASE
            self._row_changed.clear()
            self._write_row()
        self._renew(claims if full else [claim for claim in claims if claim.has_new_progress])
        if has_revocations:
            self._check(claims)
        if full:
            self._write_device_time()

    def _write_row(self) -> None:
        """Write the row. A worker without an error of its own shows the problems of this process's threads."""
        row = self._row
        problems = self._store.supervisor.problems()
        if problems and not row.error:
            row = replace(row, error={"code": SophiaError.code, "message": "; ".join(problems)})
        self._store.workers.report(row)

    def _renew(self, claims: Sequence[_Held]) -> None:
        """Renew the leases of the claims and publish their progress."""
        for ledger, held in self._by_ledger(claims):
            beats = [claim.beat() for claim in held]
            _mark_lost(held, ledger.heartbeat(beats, self._lease_s))
            for claim, beat in zip(held, beats, strict=True):
                claim.published_progress = beat.progress or claim.published_progress

    def _check(self, claims: Sequence[_Held]) -> None:
        """Detect lost claims without a write."""
        for ledger, held in self._by_ledger(claims):
            _mark_lost(held, ledger.lost([claim.beat() for claim in held]))

    def _by_ledger(self, claims: Sequence[_Held]) -> Iterator[tuple[_Ledger, list[_Held]]]:
        """The claims on jobs and those on plans, each with their part of the store."""
        plans: list[_Held] = [claim for claim in claims if isinstance(claim, PlanClaim)]
        jobs = [claim for claim in claims if not isinstance(claim, PlanClaim)]
        ledgers: list[tuple[_Ledger, list[_Held]]] = [(self._store.claims, list(jobs)), (self._store.plans, plans)]
        return ((ledger, held) for ledger, held in ledgers if held)

    def _write_device_time(self) -> None:
        seconds = self._device_time.take()
        try:
            self._store.costs.add_device_time(self._row, seconds, self._price)
        except StoreUnavailable:
            self._device_time.give_back(seconds)
            raise

    def _try_to_write(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except StoreUnavailable as error:
            logger.warning("worker %s cannot reach the job database: %s", self._row.id, error)
            return False
        return True


def _mark_lost(claims: Sequence[_Held], lost: set[str]) -> None:
    """Only the claims that were asked about are lost: the worker may hold the next attempt of the same job by now."""
    for claim in claims:
        if claim.key[0] in lost:
            claim.lost.set()
