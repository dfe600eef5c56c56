"""What workers do with jobs: claim, heartbeat, publish, fail.

Every job runs at least once and is published once. A claim is the triple (job, attempt, worker), with a lease. It is on disk before
the worker begins; otherwise a database that crashes could give the same attempt to a second worker. Every write of a worker names
its claim and changes only a job that still runs under it, so a worker whose lease expired cannot publish.

A worker learns in one way only that it has lost a claim, whether the job was cancelled, deleted, expired or given to another
worker: its heartbeat no longer finds the claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from serve_app.errors import DeviceLost, SophiaError
from serve_app.jobs import Job, Status, StoredAudio
from serve_app.store.clock import now
from serve_app.store.costs import add_songs, add_wasted_time
from serve_app.store.database import Database
from serve_app.store.moves import ENDED, UNCLAIMED, failure, moving
from serve_app.store.shares import OWN_ORDER, claimable_in_turn, queued_in
from serve_app.store.statements import lock
from serve_app.store.tables import jobs, pauses, state_is

_MAX_SHARES: Final = 20
"""How many shares a claim tries. A share has nothing to give while all its jobs are past their deadline or locked."""

MAX_LOST_DEVICES: Final = 5
"""From this attempt of a job on, a lost device counts as any other failure."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The heartbeat of one claim. `progress` is what clients see; None leaves it unchanged."""

    job: str
    attempt: int
    worker: str
    progress: Mapping[str, Any] | None = None


class ClaimStore:
    """The table of jobs, as workers see it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, worker: str, model: str, lease_s: float) -> Job | None:
        """Claim the next job of a model: that of the owner whose turn it is, by priority, then by age.

        None when no job waits, all that wait are not planned yet, or the model is paused.
        """
        paused = sa.exists().where(pauses.c.model == model)
        waiting = sa.select(jobs.c.id).where(
            jobs.c.model == model,
            state_is(Status.QUEUED),
            jobs.c.unplanned.is_(None),
            jobs.c.deadline_at > now(),
            ~paused,
        )
        with self._database.read() as connection:  # an idle worker must not take the write lock for nothing
            # The order makes the database read the index of claimable jobs, and not that of all waiting ones.
            if connection.execute(waiting.order_by(jobs.c.rank).limit(1)).one_or_none() is None:
                return None
        claim: dict[str, Any] = {
            "attempt": jobs.c.attempt + 1,
            "worker": worker,
            "started_at": now(),
            "lease_until": now() + lease_s,
            "progress": None,
        }
        with moving(self._database) as moves:
            lock(moves.connection, f"the turns of {model}")
            for share in claimable_in_turn(moves.connection, model, most=_MAX_SHARES):
                first = waiting.where(*queued_in(share.key)).order_by(*OWN_ORDER).limit(1)
                unlocked = first.with_for_update(skip_locked=True).scalar_subquery()
                claimed = moves.to(Status.RUNNING, jobs.c.id == unlocked, **claim)
                if claimed:
                    return claimed[0]
        return None

    def heartbeat(self, beats: Sequence[Beat], lease_s: float) -> set[str]:
        """Extend the leases of claims to `lease_s` from now, and write their progress. The jobs whose claims are lost."""
        with self._database.write(durable=False) as connection:
            return {beat.job for beat in beats if not _extend(connection, beat, lease_s)}

    def lost(self, beats: Sequence[Beat]) -> set[str]:
        """The jobs whose claims are lost. Only reads, so it is cheap enough to call after every announcement."""
        held = sa.or_(*(sa.and_(*_held(beat.job, beat.attempt, beat.worker)) for beat in beats))
        with self._database.read() as connection:
            found = set(connection.execute(sa.select(jobs.c.id).where(held)).scalars())
        return {beat.job for beat in beats} - found

    def publish(
        self,
        job: Job,
        *,
        audio: Sequence[StoredAudio],
        timing: Mapping[str, float],
        warnings: Sequence[str],
    ) -> bool:
        """Publish the files of a claimed job. They are on disk when this returns. False when the claim is lost.

        May be called again after StoreUnavailable: it recognises its own publication when only the answer was lost.
        """
        gpu_s = timing["gpu_s"]
        with moving(self._database, "ended") as moves:
            published = moves.to(
                Status.SUCCEEDED,
                *_held_by(job),
                audio=[file.to_json() for file in audio],
                timing=dict(timing),
                warnings=list(warnings),
                gpu_s=jobs.c.gpu_s + gpu_s,
                **ENDED,
            )
            if not published:
                return _is_published(moves.connection, job)
            songs = job.request.songs
            add_songs(moves.connection, job.owner, job.model, songs=songs, audio_s=job.audio_seconds, gpu_s=gpu_s)
        return True

    def fail(self, job: Job, error: SophiaError) -> bool:
        """End the attempt of a claimed job with an error. False when the claim is lost.

        The job goes back into the queue when the error is retryable and attempts are left. A lost device does not count as an
        attempt, up to MAX_LOST_DEVICES times: a job that breaks every device must end, too.
        """
        uncounted = isinstance(error, DeviceLost) and job.attempt < MAX_LOST_DEVICES
        if uncounted or (error.retryable and job.attempt < job.max_attempts):
            return self._requeue(job, error, uncounted)
        with moving(self._database, "ended") as moves:
            return bool(moves.fail(error, *_held_by(job)))

    def _requeue(self, job: Job, error: SophiaError, uncounted: bool) -> bool:
        values = {**UNCLAIMED, "error": failure(error)}
        if uncounted:
            values["max_attempts"] = jobs.c.max_attempts + 1
        if uncounted and job.error is not None and job.error.code == DeviceLost.code:
            values |= _behind_others(job)
        with moving(self._database, "queued") as moves:
            return bool(moves.to(Status.QUEUED, *_held_by(job), **values))

    def charge(self, job: Job, gpu_s: float) -> None:
        """Charge an attempt that gave no song to the job and its owner, even when the claim is lost."""
        with self._database.write(durable=False) as connection:
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(gpu_s=jobs.c.gpu_s + gpu_s))
            add_wasted_time(connection, job.owner, job.model, gpu_s)

    def release(self, worker: str) -> int:
        """Release every claim of a dead worker without waiting for its leases. How many."""
        with moving(self._database, "queued", "ended") as moves:
            return len(moves.release(jobs.c.worker == worker))


def _extend(connection: sa.Connection, beat: Beat, lease_s: float) -> bool:
    values: dict[str, Any] = {"lease_until": now() + lease_s}
    if beat.progress is not None:
        values |= {"progress": dict(beat.progress), "version": jobs.c.version + 1}
    extended = jobs.update().where(*_held(beat.job, beat.attempt, beat.worker)).values(values)
    return connection.execute(extended).rowcount == 1


def _is_published(connection: sa.Connection, job: Job) -> bool:
    """Whether this very claim has already been published."""
    claim = (jobs.c.id == job.id, jobs.c.attempt == job.attempt, jobs.c.worker == job.worker)
    query = sa.select(jobs.c.id).where(*claim, state_is(Status.SUCCEEDED))
    return connection.execute(query).one_or_none() is not None


def _behind_others(job: Job) -> dict[str, Any]:
    """The columns of a job that lost two devices in a row: other jobs run first, to show whether job or device is at fault.

    The lower priority puts it behind its owner's jobs. Without `started_at` its owner's turn is not refunded, which puts it behind
    other owners' jobs.
    """
    return {"priority": job.priority - 1, "started_at": None}


def _held(job: str, attempt: int, worker: str | None) -> tuple[Any, ...]:
    """The condition that a claim is not lost."""
    return (jobs.c.id == job, jobs.c.attempt == attempt, jobs.c.worker == worker, state_is(Status.RUNNING))


def _held_by(job: Job) -> tuple[Any, ...]:
    return _held(job.id, job.attempt, job.worker)
