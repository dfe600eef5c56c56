"""The heartbeat: keeps leases, tells phase and progress, and sees at once when a claim is gone."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from serve_app import metrics
from serve_app.errors import SophiaError, StoreUnavailable
from serve_app.jobs import WorkerPhase
from serve_app.store import Store, WorkerRow
from serve_app.supervision import WorkThread
from serve_app.worker.claims import Claim
from serve_app.worker.device_time import DeviceTime, use_of

logger = logging.getLogger("ray.serve.sophia")

PROGRESS_S: Final = 0.1
"""Progress is written at most this often."""

LOOK_S: Final = 0.03
"""A claim that is gone is noticed within this time."""

_RETRY_S: Final = 1.0


class Heartbeat:
    """A thread that speaks for a worker. `row` is what the worker says of itself, `claims` the jobs in its hands."""

    def __init__(self, store: Store, row: WorkerRow, lease_s: float, price_per_hour: float = 0.0) -> None:
        self._store = store
        self._lease_s = lease_s
        self._price = price_per_hour
        self.row = row
        self._device = DeviceTime(row.model, price_per_hour)
        self._phase_at = time.monotonic()
        self._looked_at = -1
        self.claims: dict[tuple[str, int], Claim] = {}
        self._row_changed = threading.Event()
        self._revoked = store.notifications.waiter("revoked")
        self._due = 0.0
        self._thread = WorkThread(store.supervisor, "heartbeat", self._step, _RETRY_S, longest_pause_s=_RETRY_S)
        self._done = self._thread.ended

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.alive

    def start(self) -> None:
        """Make the worker known before it does anything else, so that its death can be noticed; then keep beating."""
        while not self._spoke(lambda: self._store.workers.report(self.row)):
            time.sleep(_RETRY_S)
        self._thread.start()

    def close(self, last_word: Callable[[], None]) -> None:
        """Stop, and say a last word to the store if it listens."""
        self._done.set()
        self._revoked.wake()
        self._thread.join()
        self._spoke(self._tell_device_time)
        self._spoke(last_word)

    def say(self, **values: Any) -> None:
        """Change what the worker says of itself."""
        if (phase := values.get("phase", self.row.phase)) != self.row.phase:
            self._phase_ends(self.row.phase, phase)
        self.row = replace(self.row, **values)
        self._device.goes_into(use_of(self.row))
        self._row_changed.set()
        self._revoked.wake()  # the thread may be in a long sleep

    def report(self, phase: str, progress: float | None, detail: str) -> None:
        """Tell a start-up phase, its progress (0 to 1) and words."""
        if phase != self.row.phase:
            logger.info("worker %s of %s: %s: %s", self.row.id, self.row.model, phase, detail)
        self.say(phase=WorkerPhase(phase), progress=progress, detail=detail)

    def _phase_ends(self, phase: WorkerPhase, following: WorkerPhase) -> None:
        if phase.is_starting and following is not WorkerPhase.FAILED:
            metrics.phase_ended(self.row.model, phase, time.monotonic() - self._phase_at)
        self._phase_at = time.monotonic()

    def _tell_device_time(self) -> None:
        seconds = self._device.take()
        try:
            self._store.costs.add_device_time(self.row, seconds, self._price)
        except StoreUnavailable:
            self._device.give_back(seconds)
            raise

    def _step(self) -> None:
        seen = self._revoked.count()
        claims = list(self.claims.values())
        full = self._row_changed.is_set() or time.monotonic() >= self._due
        self._due = time.monotonic() + self._lease_s / 4 if full else self._due
        try:
            self._beat(full, seen, claims)
        except Exception:
            self._due = 0.0
            raise
        self._looked_at = seen
        # Under way, look again soon for progress to tell; idle, wake for the next sign of life.
        idle_s = max(self._due - time.monotonic(), PROGRESS_S)
        self._revoked.wait(seen, PROGRESS_S if claims else idle_s)
        self._done.wait(LOOK_S)  # on SQLite our own heartbeat is a change, too

    def _beat(self, full: bool, seen: int, claims: Sequence[Claim]) -> None:
        if full:
            self._row_changed.clear()
            self._store.workers.report(self._row_with_problems())
        told = claims if full else [claim for claim in claims if claim.has_news]
        if told:
            beats = [claim.beat() for claim in told]
            _drop(told, self._store.claims.heartbeat(beats, self._lease_s))
            for claim, beat in zip(told, beats, strict=True):
                claim.told = beat.progress or claim.told
        if claims and seen != self._looked_at:  # some claim was taken away since the last look
            _drop(claims, self._store.claims.lost([claim.beat() for claim in claims]))
        if full:
            self._tell_device_time()

    def _row_with_problems(self) -> WorkerRow:
        """The row, with what is wrong with this process's threads where it tells no error of its own."""
        wrong = self._store.supervisor.problems()
        if self.row.error or not wrong:
            return self.row
        return replace(self.row, error={"code": SophiaError.code, "message": "; ".join(wrong)})

    def _spoke(self, say: Callable[[], None]) -> bool:
        try:
            say()
        except StoreUnavailable as error:
            logger.warning("worker %s cannot be heard: %s", self.row.id, error)
            return False
        return True


def _drop(asked: Sequence[Claim], lost: set[str]) -> None:
    """Of the claims that were asked about: the worker may hold the next attempt of the same job by now."""
    for claim in asked:
        if claim.job.id in lost:
            claim.gone.set()
