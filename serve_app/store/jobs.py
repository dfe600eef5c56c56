"""The queue: submit, claim, heartbeat, finish, cancel, list, sweep.

At least once, published once: a claim is the triple (job, attempt, worker), with a lease. It is on disk before the worker begins,
or a database that dies would give the same attempt to another worker. Every write of a worker names its claim and moves only what
is still running under it, so a worker that was given up for dead cannot publish. A worker learns that a
job is no longer its own (cancelled, deleted, expired, given to another) in one way only: its heartbeat does not find the claim.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve_app.config import QueueArgs
from serve_app.errors import (
    Conflict,
    DeadlineExceeded,
    DeviceLost,
    IdempotencyConflict,
    NotFound,
    RunLimitExceeded,
    SophiaError,
    WorkerLost,
)
from serve_app.jobs import Job, JobFailure, Status, StoredAudio, new_id, origins
from serve_app.music import MusicRequest
from serve_app.store.costs import played, wasted
from serve_app.store.database import Database, Topic, lock, now
from serve_app.store.shares import OWN_ORDER, Tally, check_limits, in_turn, queued_in, rank_of
from serve_app.store.tables import jobs, pauses, state_is
from serve_app.store.webhooks import add_webhook_delivery, check_pending

_MOST_SHARES_TRIED: Final = 20
"""Owners that a claim looks at whose every job is past its deadline, or just being moved by somebody else."""

_MOST_LOST_DEVICES: Final = 5
"""Attempts of a job after which a device that fails under it counts as any other failure."""

_STORING: Final = sa.func.coalesce(jobs.c.progress["stage"].as_string(), "") == "storing"
"""A song that is made, and that the audio store refuses: `queue.run_limit_s` is for the device, not for that wait."""

_WAITED_S: Final = sa.func.coalesce(jobs.c.progress["waited_s"].as_float(), 0.0)
"""Seconds of an attempt in which its song waited so, once that is over."""


@dataclass(frozen=True, slots=True)
class Beat:
    """One claim that a worker holds, and how far it is."""

    job: str
    attempt: int
    worker: str
    progress: Mapping[str, Any] | None = None


class JobStore:
    """The table of jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- Clients ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        request: MusicRequest,
        *,
        owner: str,
        deadline_s: float,
        max_attempts: int,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        limits: QueueArgs | None = None,
    ) -> tuple[Job, bool]:
        """Put a job into the queue; it is on disk when this returns. The job, and whether it is new.

        `request.model` is filled in. The same `idempotency_key` of the same owner gives the job that it made; raises
        IdempotencyConflict when that one was made with another `fingerprint`, QuotaExceeded or QueueFull beyond the `limits`.
        """
        values = {
            "id": new_id(),
            "owner": owner,
            "model": request.model,
            "state": Status.QUEUED,
            "priority": request.priority,
            "rank": rank_of(owner, request.priority),
            "request": request.model_dump(mode="json"),
            "audio_seconds": request.duration * request.variations,
            "idempotency_key": idempotency_key,
            "fingerprint": fingerprint,
            "created_at": now(),
            "deadline_at": now() + deadline_s,
            "attempt": 0,
            "max_attempts": max_attempts,
            "version": 1,
        }
        try:
            with self._moving("queued") as (connection, tally):
                job = _job(connection.execute(jobs.insert().values(values).returning(jobs)).one())
                tally.submitted(job)
                _count_in(connection, tally, job, limits)
            return job, True
        except IntegrityError:  # the idempotency key is taken
            before = self._same_as_before(owner, str(idempotency_key), fingerprint)
        if before is not None:
            return before, False
        return self.submit(  # that job was deleted between the two statements, so the key is free again
            request,
            owner=owner,
            deadline_s=deadline_s,
            max_attempts=max_attempts,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            limits=limits,
        )

    def _same_as_before(self, owner: str, key: str, fingerprint: str | None) -> Job | None:
        query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        job = _job(row)
        if job.fingerprint != fingerprint:
            raise IdempotencyConflict(
                f"Idempotency-Key {key!r} made job {job.id} from another request; use a new key for a new request"
            )
        return job

    def get(self, job: str, owner: str | None = None) -> Job:
        """One job. Raises NotFound when there is none, or it is another owner's (None: an operator, who sees all)."""
        with self._database.read() as connection:
            return self._get(connection, job, owner)

    def _get(self, connection: sa.Connection, job: str, owner: str | None) -> Job:
        query = sa.select(jobs).where(jobs.c.id == job)
        row = connection.execute(query if owner is None else query.where(jobs.c.owner == owner)).one_or_none()
        if row is None:
            raise NotFound(f"There is no job {job}")
        return _job(row)

    def versions(self, ids: Sequence[str]) -> dict[str, int]:
        """The versions of those of the jobs that exist, by id: enough to see which have changed."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(ids)))
            return {row.id: row.version for row in rows}

    def get_many(self, ids: Sequence[str]) -> dict[str, Job]:
        """Those of the jobs that exist, by id."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.id.in_(ids)))
            return {row.id: _job(row) for row in rows}

    def page(
        self,
        *,
        owner: str | None = None,
        states: Sequence[str] = (),
        model: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Jobs, newest first, older than the job `before`."""
        query = sa.select(jobs).where(*owned(owner)).order_by(jobs.c.id.desc()).limit(limit)
        if model is not None:
            query = query.where(jobs.c.model == model)
        if before is not None:
            query = query.where(jobs.c.id < before)
        wanted = [Status(state) for state in dict.fromkeys(states)]
        # one query a state: each walks its index from the newest on, while several states together would have to be sorted
        queries = [query.where(*_of_state(state, owner)) for state in wanted] or [query]
        with self._database.read() as connection:
            found = [row for each in queries for row in connection.execute(each)]
        found.sort(key=lambda row: row.id, reverse=True)
        return [_job(row) for row in found[:limit]]

    def cancel(self, job: str, owner: str | None = None) -> Job:
        """Cancel a queued or running job; its worker stops at the next step. Raises NotFound, or Conflict when it has ended."""
        with self._moving("ended", "revoked") as (connection, tally):
            rows = self._move(connection, tally, Status.CANCELLED, jobs.c.id == job, *owned(owner), **_ended())
            if rows:
                return rows[0]
            ended = self._get(connection, job, owner)
        raise Conflict(f"Job {job} cannot be cancelled: it has {ended.status} already")

    def retry(self, job: str, max_attempts: int, owner: str | None = None, limits: QueueArgs | None = None) -> Job:
        """Put a failed, cancelled or expired job back into the queue, with its deadline and its attempts anew.

        Raises NotFound, or Conflict when it has not ended, or has succeeded; QuotaExceeded or QueueFull beyond the `limits`.
        """
        with self._moving("queued") as (connection, tally):
            found = self._get(connection, job, owner)
            anew: dict[str, Any] = {
                "created_at": now(),
                "deadline_at": now() + (found.deadline_at - found.created_at),
                "max_attempts": found.attempt + max_attempts,
            }
            blank = dict.fromkeys(("started_at", "finished_at", "error"))
            ended = state_is(Status.FAILED, Status.CANCELLED, Status.EXPIRED)
            rows = self._move(
                connection, tally, Status.QUEUED, jobs.c.id == job, ended, **{**_unclaimed(), **blank, **anew}
            )
            if not rows:
                raise Conflict(f"Job {job} cannot be retried: it is {found.status}")
            _count_in(connection, tally, rows[0], limits)
        return rows[0]

    def delete(self, job: str, owner: str | None = None) -> Job:
        """Forget a job, whatever its state; its worker stops at the next step. The job as it was. Raises NotFound."""
        with self._moving("ended", "revoked") as (connection, tally):
            row = connection.execute(jobs.delete().where(jobs.c.id == job, *owned(owner)).returning(jobs)).one_or_none()
            if row is None:
                raise NotFound(f"There is no job {job}")
            deleted = _job(row)
            if deleted.status is Status.QUEUED:
                tally.left(deleted)
        return deleted

    # --- Workers ----------------------------------------------------------------------------------------------------

    def claim(self, worker: str, model: str, lease_s: float) -> Job | None:
        """Take the next job of a model: of the owner whose turn it is, the first by priority, then age.

        None when there is none, or the model is paused.
        """
        paused = sa.exists().where(pauses.c.model == model)
        waiting = sa.select(jobs.c.id).where(
            jobs.c.model == model, state_is(Status.QUEUED), jobs.c.deadline_at > now(), ~paused
        )
        with self._database.read() as connection:  # an idle worker must not take the write lock for nothing
            if connection.execute(waiting.limit(1)).one_or_none() is None:
                return None
        with self._moving() as (connection, tally):
            lock(connection, f"the turns of {model}")
            for share in in_turn(connection, model, most=_MOST_SHARES_TRIED):
                first = waiting.where(*queued_in(share.key)).order_by(*OWN_ORDER).limit(1)
                claimed = self._move(
                    connection,
                    tally,
                    Status.RUNNING,
                    jobs.c.id == first.with_for_update(skip_locked=True).scalar_subquery(),
                    attempt=jobs.c.attempt + 1,
                    worker=worker,
                    started_at=now(),
                    lease_until=now() + lease_s,
                    progress=None,
                )
                if claimed:
                    return claimed[0]
        return None

    def heartbeat(self, beats: Sequence[Beat], lease_s: float) -> set[str]:
        """Extend the leases of what a worker holds and tell the world how far it is. The jobs that are no longer its own."""
        with self._database.write(durable=False) as connection:
            return {beat.job for beat in beats if not self._beat(connection, beat, lease_s)}

    def lost(self, beats: Sequence[Beat]) -> set[str]:
        """The jobs that are no longer the worker's own; reads only, so that it may be asked at every change."""
        held = sa.or_(*(sa.and_(*_claim(beat.job, beat.attempt, beat.worker)) for beat in beats))
        with self._database.read() as connection:
            mine = set(connection.execute(sa.select(jobs.c.id).where(held)).scalars())
        return {beat.job for beat in beats} - mine

    def _beat(self, connection: sa.Connection, beat: Beat, lease_s: float) -> bool:
        values: dict[str, Any] = {"lease_until": now() + lease_s}
        if beat.progress is not None:
            values |= {"progress": dict(beat.progress), "version": jobs.c.version + 1}
        held = jobs.update().where(*_claim(beat.job, beat.attempt, beat.worker)).values(values)
        return connection.execute(held).rowcount == 1

    def finish(
        self,
        job: Job,
        *,
        audio: Sequence[StoredAudio],
        timing: Mapping[str, float],
        warnings: Sequence[str],
    ) -> bool:
        """Publish a job's files; on disk when this returns. False when the claim is gone, and nothing is published.

        May be called again after StoreUnavailable: a publication whose acknowledgement was lost is recognised.
        """
        with self._moving("ended") as (connection, tally):
            published = self._move(
                connection,
                tally,
                Status.SUCCEEDED,
                *_claim(job.id, job.attempt, job.worker),
                audio=[file.to_json() for file in audio],
                timing=dict(timing),
                warnings=list(warnings),
                gpu_s=jobs.c.gpu_s + timing["gpu_s"],
                **_ended(),
            )
            if published:
                audio_s = job.request.duration * job.request.variations
                songs = job.request.variations
                gpu_s = timing["gpu_s"]
                played(connection, job.owner, job.model, songs=songs, audio_s=audio_s, gpu_s=gpu_s)
                return True
            return self._is_published(connection, job)

    def _is_published(self, connection: sa.Connection, job: Job) -> bool:
        """Whether this very claim has been published before."""
        ours = (jobs.c.id == job.id, jobs.c.attempt == job.attempt, jobs.c.worker == job.worker)
        query = sa.select(jobs.c.id).where(*ours, state_is(Status.SUCCEEDED))
        return connection.execute(query).one_or_none() is not None

    def charge(self, job: Job, gpu_s: float) -> None:
        """Put an attempt that gave no song on the accounts of the job and its owner, whoever holds the job by now."""
        with self._database.write(durable=False) as connection:
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(gpu_s=jobs.c.gpu_s + gpu_s))
            wasted(connection, job.owner, job.model, gpu_s)

    def fail(self, job: Job, error: SophiaError) -> bool:
        """End an attempt with an error: it is tried again where that can help and attempts are left, else it has failed.

        An attempt that a failing device ended is not counted, within reason: a job that ends every device must end, too. After
        two such attempts in a row other jobs come first: they show whether the job or the device is at fault.
        False when the claim is gone, and nothing changes.
        """
        uncounted = isinstance(error, DeviceLost) and job.attempt < _MOST_LOST_DEVICES
        again = uncounted or (error.retryable and job.attempt < job.max_attempts)
        most = jobs.c.max_attempts + int(uncounted)
        repeated = uncounted and job.error is not None and job.error.code == DeviceLost.code
        place = _behind_others(job) if repeated else {}
        reason = _reason(error)
        with self._moving("queued" if again else "ended") as (connection, tally):
            if again:
                moved = self._move(
                    connection,
                    tally,
                    Status.QUEUED,
                    *_claim(job.id, job.attempt, job.worker),
                    **_unclaimed(),
                    error=reason,
                    max_attempts=most,
                    **place,
                )
            else:
                held = _claim(job.id, job.attempt, job.worker)
                moved = self._move(connection, tally, Status.FAILED, *held, error=reason, **_ended())
        return bool(moved)

    # --- Upkeep -----------------------------------------------------------------------------------------------------

    def sweep(self, run_limit_s: float, give_up_leases: bool = True) -> int:
        """Do what time asks for: end jobs past their deadline or run limit, give up lost leases. How many jobs it moved.

        `give_up_leases` is false for a while after the database was away: no worker could be heard then.
        """
        overdue = jobs.c.deadline_at <= now()
        running = state_is(Status.RUNNING)
        too_long = sa.and_(running, sa.not_(_STORING), jobs.c.started_at <= now() - run_limit_s - _WAITED_S)
        lost = sa.and_(running, jobs.c.lease_until <= now(), sa.true() if give_up_leases else sa.false())
        with self._database.read() as connection:  # nearly always nothing: no write lock for that
            due = sa.and_(state_is(*origins(Status.EXPIRED)), sa.or_(overdue, too_long, lost))
            if connection.execute(sa.select(jobs.c.id).where(due).limit(1)).first() is None:
                return 0
        with self._moving("queued", "ended", "revoked") as (connection, tally):
            expired = _reason(DeadlineExceeded())
            too_slow = _reason(RunLimitExceeded())
            moved = self._expire_unstored(connection, tally, overdue)
            moved += self._move(connection, tally, Status.EXPIRED, overdue, error=expired, **_ended())
            moved += self._move(connection, tally, Status.FAILED, too_long, error=too_slow, **_ended())
            moved += self._give_up(connection, tally, lost)
        return len(moved)

    def slept(self, seconds: float) -> None:
        """The machine stood still for so long: that counts for no running job's limit and deadline."""
        later = {"started_at": jobs.c.started_at + seconds, "deadline_at": jobs.c.deadline_at + seconds}
        with self._database.write() as connection:
            connection.execute(jobs.update().where(state_is(Status.RUNNING)).values(later))

    def _expire_unstored(self, connection: sa.Connection, tally: Tally, overdue: Any) -> list[Job]:
        """A song that the audio store refused until the job's deadline tells why."""
        found = connection.execute(
            sa.select(jobs.c.id, jobs.c.progress).where(state_is(Status.RUNNING), _STORING, overdue)
        ).all()
        moved: list[Job] = []
        for job, progress in found:
            why = f"The job's deadline (deadline_s) passed while its song waited to be stored: {progress.get('detail')}"
            error = _reason(DeadlineExceeded(why))
            moved += self._move(connection, tally, Status.EXPIRED, jobs.c.id == job, overdue, error=error, **_ended())
        return moved

    def abandon(self, worker: str) -> int:
        """Give up every claim of a worker that is known to be dead, without waiting for its leases. How many."""
        with self._moving("queued", "ended") as (connection, tally):
            return len(self._give_up(connection, tally, sa.and_(state_is(Status.RUNNING), jobs.c.worker == worker)))

    def _give_up(self, connection: sa.Connection, tally: Tally, which: Any) -> list[Job]:
        left = jobs.c.attempt < jobs.c.max_attempts
        again = self._move(connection, tally, Status.QUEUED, which, left, **_unclaimed())
        lost = _reason(WorkerLost())
        return again + self._move(connection, tally, Status.FAILED, which, error=lost, **_ended())

    # --- Moves ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _moving(self, *topics: Topic) -> Iterator[tuple[sa.Connection, Tally]]:
        """A transaction in which jobs enter, leave and move; the shares follow at its end."""
        with self._database.write(*topics) as connection:
            tally = Tally()
            yield connection, tally
            tally.write(connection)

    def _move(self, connection: sa.Connection, tally: Tally, target: Status, *where: Any, **values: Any) -> list[Job]:
        """The one way in which a state changes: from the legal origins of `target` only."""
        rows = connection.execute(
            jobs.update()
            .where(state_is(*origins(target)), *where)
            .values(state=target, version=jobs.c.version + 1, **values)
            .returning(jobs)
        )
        moved = [_job(row) for row in rows]
        for job in moved:
            _count(tally, job)
        if target.final:
            add_webhook_delivery(connection, moved)
        return moved


def _behind_others(job: Job) -> dict[str, Any]:
    """Behind its owner's jobs of the same priority; and without the turn back that it cost, so behind other owners, too."""
    return {"priority": job.priority - 1, "started_at": None}


def _count_in(connection: sa.Connection, tally: Tally, job: Job, limits: QueueArgs | None) -> None:
    """Write a submission into its share at once, and see that it is within the limits."""
    if limits is not None:
        lock(connection, f"the quota of {job.owner}")
        tally.write(connection)
        check_limits(connection, job.owner, limits)
        if job.request.webhook_url:
            check_pending(connection, job.owner, limits.max_owner_webhooks)


def _count(tally: Tally, moved: Job) -> None:
    """Tell the shares of a move. A queued job has no worker and one that ran keeps it, so a job that ended tells where it was."""
    if moved.status is Status.RUNNING:
        tally.claimed(moved)
    elif moved.status is Status.QUEUED and moved.started_at is None:
        tally.submitted(moved)
    elif moved.status is Status.QUEUED:
        tally.returned(moved)
    elif moved.worker is None:
        tally.left(moved)


def fingerprint(body: bytes) -> str:
    """What tells two requests with one Idempotency-Key apart."""
    return hashlib.sha256(body).hexdigest()


def owned(owner: str | None) -> tuple[Any, ...]:
    """The condition that a job is an owner's; none for an operator, who sees all."""
    return () if owner is None else (jobs.c.owner == owner,)


def _of_state(state: Status, owner: str | None) -> tuple[Any, ...]:
    """The condition that a job is in a state, in the words of the index that has such jobs in the order of their ids."""
    if not state.final:
        return state_is(state), jobs.c.finished_at.is_(None)
    return (state_is(state), jobs.c.finished_at.is_not(None)) if owner is None else (state_is(state),)


def _claim(job: str, attempt: int, worker: str | None) -> tuple[Any, ...]:
    return (jobs.c.id == job, jobs.c.attempt == attempt, jobs.c.worker == worker, state_is(Status.RUNNING))


def _ended() -> dict[str, Any]:
    return {"finished_at": now(), "lease_until": None, "progress": None}


def _unclaimed() -> dict[str, Any]:
    return {"lease_until": None, "worker": None, "progress": None}


def _reason(error: SophiaError) -> dict[str, str]:
    return JobFailure.from_error(error).to_json()


def _job(row: Any) -> Job:
    return Job(
        id=row.id,
        owner=row.owner,
        model=row.model,
        status=Status(row.state),
        priority=row.priority,
        rank=row.rank,
        request=MusicRequest.model_validate(row.request),
        audio_seconds=row.audio_seconds,
        created_at=row.created_at,
        deadline_at=row.deadline_at,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        version=row.version,
        started_at=row.started_at,
        finished_at=row.finished_at,
        worker=row.worker,
        progress=row.progress,
        warnings=tuple(row.warnings or ()),
        audio=tuple(StoredAudio.from_json(file) for file in row.audio or ()),
        timing=row.timing,
        error=JobFailure.from_json(row.error) if row.error else None,
        idempotency_key=row.idempotency_key,
        fingerprint=row.fingerprint,
        audio_gone_at=row.audio_gone_at,
        gpu_s=row.gpu_s,
    )
