"""The queue: submit, claim, heartbeat, finish, cancel, list, sweep.

At least once, published once: a claim carries an attempt number and a lease. Every write of a worker names (job, attempt) and
moves only what is still running under that attempt, so a worker that was given up for dead cannot publish. A worker learns that a
job is no longer its own (cancelled, deleted, expired, given to another) in one way only: its heartbeat does not find the claim.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve_app.errors import Conflict, DeadlineExceeded, IdempotencyConflict, NotFound, SophiaError, WorkerLost
from serve_app.jobs import Job, Status, new_id, origins
from serve_app.schemas import MusicRequest
from serve_app.store.database import Database, now
from serve_app.store.tables import jobs

_MEASURED_JOBS = 20  # how many finished jobs an estimate looks back on


@dataclass(frozen=True, slots=True)
class Beat:
    """One claim that a worker holds, and how far it is."""

    job: str
    attempt: int
    progress: Mapping[str, Any] | None = None


class JobStore:
    """The table of jobs."""

    def __init__(self, database: Database):
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
    ) -> tuple[Job, bool]:
        """Put a job into the queue; it is on disk when this returns. The job, and whether it is new.

        `request.model` is filled in. The same `idempotency_key` of the same owner gives the job that it made; raises
        IdempotencyConflict when that one was made with another `fingerprint`.
        """
        values = {
            "id": new_id(),
            "owner": owner,
            "model": request.model,
            "state": Status.QUEUED,
            "priority": request.priority,
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
            with self._database.write("queued") as connection:
                return _job(connection.execute(jobs.insert().values(values).returning(jobs)).one()), True
        except IntegrityError:  # the idempotency key is taken
            return self._same_as_before(owner, str(idempotency_key), fingerprint), False

    def _same_as_before(self, owner: str, key: str, fingerprint: str | None) -> Job:
        query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
        with self._database.read() as connection:
            job = _job(connection.execute(query).one())
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
        query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if model is not None:
            query = query.where(jobs.c.model == model)
        if before is not None:
            query = query.where(jobs.c.id < before)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def cancel(self, job: str, owner: str | None = None) -> Job:
        """Cancel a queued or running job; its worker stops at the next step. Raises NotFound, or Conflict when it has ended."""
        with self._database.write("ended", "revoked") as connection:
            rows = self._move(connection, Status.CANCELLED, jobs.c.id == job, *_owned(owner), **_ended())
            if rows:
                return rows[0]
            ended = self._get(connection, job, owner)
        raise Conflict(f"Job {job} cannot be cancelled: it has {ended.status} already")

    def delete(self, job: str, owner: str | None = None) -> Job:
        """Forget a job, whatever its state; its worker stops at the next step. The job as it was. Raises NotFound."""
        with self._database.write("ended", "revoked") as connection:
            deleted = connection.execute(
                jobs.delete().where(jobs.c.id == job, *_owned(owner)).returning(jobs)
            ).one_or_none()
        if deleted is None:
            raise NotFound(f"There is no job {job}")
        return _job(deleted)

    # --- Workers ----------------------------------------------------------------------------------------------------

    def claim(self, worker: str, model: str, lease_s: float) -> Job | None:
        """Take the next job of a model: by priority, then age. None when there is none."""
        waiting = sa.select(jobs.c.id).where(
            jobs.c.model == model, jobs.c.state == Status.QUEUED, jobs.c.deadline_at > now()
        )
        with self._database.read() as connection:  # an idle worker must not take the write lock for nothing
            if connection.execute(waiting.limit(1)).one_or_none() is None:
                return None
        first = waiting.order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id).limit(1)
        with self._database.write(durable=False) as connection:
            claimed = self._move(
                connection,
                Status.RUNNING,
                jobs.c.id == first.with_for_update(skip_locked=True).scalar_subquery(),
                attempt=jobs.c.attempt + 1,
                worker=worker,
                started_at=now(),
                lease_until=now() + lease_s,
                progress=None,
            )
        return claimed[0] if claimed else None

    def heartbeat(self, beats: Sequence[Beat], lease_s: float) -> set[str]:
        """Extend the leases of what a worker holds and tell the world how far it is. The jobs that are no longer its own."""
        with self._database.write(durable=False) as connection:
            return {beat.job for beat in beats if not self._beat(connection, beat, lease_s)}

    def lost(self, beats: Sequence[Beat]) -> set[str]:
        """The jobs that are no longer the worker's own; reads only, so that it may be asked at every change."""
        held = sa.or_(*(sa.and_(*_claim(beat.job, beat.attempt)) for beat in beats))
        with self._database.read() as connection:
            mine = set(connection.execute(sa.select(jobs.c.id).where(held)).scalars())
        return {beat.job for beat in beats} - mine

    def _beat(self, connection: sa.Connection, beat: Beat, lease_s: float) -> bool:
        values: dict[str, Any] = {"lease_until": now() + lease_s}
        if beat.progress is not None:
            values |= {"progress": dict(beat.progress), "version": jobs.c.version + 1}
        held = jobs.update().where(*_claim(beat.job, beat.attempt)).values(values)
        return connection.execute(held).rowcount == 1

    def finish(
        self,
        job: Job,
        *,
        audio: Sequence[Mapping[str, Any]],
        timing: Mapping[str, float],
        warnings: Sequence[str],
    ) -> bool:
        """Publish a job's files; on disk when this returns. False when the claim is gone, and nothing is published."""
        with self._database.write("ended") as connection:
            return bool(
                self._move(
                    connection,
                    Status.SUCCEEDED,
                    *_claim(job.id, job.attempt),
                    audio=[dict(file) for file in audio],
                    timing=dict(timing),
                    warnings=list(warnings),
                    **_ended(),
                )
            )

    def fail(self, job: Job, error: SophiaError) -> bool:
        """End an attempt with an error: it is tried again where that can help and attempts are left, else it has failed.

        False when the claim is gone, and nothing changes.
        """
        again = error.retryable and job.attempt < job.max_attempts
        reason = {"code": error.code, "message": error.message}
        with self._database.write("queued" if again else "ended") as connection:
            if again:
                moved = self._move(
                    connection, Status.QUEUED, *_claim(job.id, job.attempt), **_unclaimed(), error=reason
                )
            else:
                moved = self._move(connection, Status.FAILED, *_claim(job.id, job.attempt), error=reason, **_ended())
        return bool(moved)

    # --- Upkeep -----------------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Do what time asks for: end jobs past their deadline, give up lost leases. How many jobs it moved."""
        overdue = jobs.c.deadline_at <= now()
        lost = sa.and_(jobs.c.state == Status.RUNNING, jobs.c.lease_until <= now())
        with self._database.read() as connection:  # nearly always nothing: no write lock for that
            due = sa.select(jobs.c.id).where(jobs.c.state.in_(origins(Status.EXPIRED)), overdue)
            if connection.execute(sa.union_all(due, sa.select(jobs.c.id).where(lost)).limit(1)).first() is None:
                return 0
        with self._database.write("queued", "ended", "revoked") as connection:
            moved = self._move(connection, Status.EXPIRED, overdue, error=_reason(DeadlineExceeded()), **_ended())
            moved += self._move(connection, Status.QUEUED, lost, jobs.c.attempt < jobs.c.max_attempts, **_unclaimed())
            moved += self._move(connection, Status.FAILED, lost, error=_reason(WorkerLost()), **_ended())
        return len(moved)

    # --- What is waiting, and how long --------------------------------------------------------------------------------

    def counts(self, owner: str | None = None) -> dict[str, int]:
        """Jobs by state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state).where(*_owned(owner))
        with self._database.read() as connection:
            found: dict[str, int] = dict(connection.execute(query).all())
        return {state.value: found.get(state, 0) for state in Status}

    def oldest_wait_s(self) -> float | None:
        """How long the longest-waiting queued job has waited, in seconds."""
        query = sa.select(now() - sa.func.min(jobs.c.created_at)).where(jobs.c.state == Status.QUEUED)
        with self._database.read() as connection:
            waited: float | None = connection.execute(query).scalar()
        return waited

    def ahead(self, job: Job) -> tuple[int, float]:
        """What starts before a queued job: how many queued jobs, and seconds of audio in all queued and running ones."""
        earlier = sa.or_(
            jobs.c.priority > job.priority,
            sa.and_(
                jobs.c.priority == job.priority,
                sa.or_(
                    jobs.c.created_at < job.created_at,
                    sa.and_(jobs.c.created_at == job.created_at, jobs.c.id < job.id),
                ),
            ),
        )
        before = sa.or_(jobs.c.state == Status.RUNNING, sa.and_(jobs.c.state == Status.QUEUED, earlier))
        queued = sa.func.count().filter(jobs.c.state == Status.QUEUED)
        query = sa.select(queued, sa.func.coalesce(sa.func.sum(jobs.c.audio_seconds), 0.0)).where(
            jobs.c.model == job.model, jobs.c.state.in_((Status.QUEUED, Status.RUNNING)), before
        )
        with self._database.read() as connection:
            count, seconds = connection.execute(query).one()
        return count, seconds

    def speed(self, model: str) -> float | None:
        """Seconds of work for a second of audio, over the last finished jobs; None before the first."""
        last = (
            sa.select(jobs.c.audio_seconds, jobs.c.timing)
            .where(jobs.c.model == model, jobs.c.state == Status.SUCCEEDED)
            .order_by(jobs.c.finished_at.desc())
            .limit(_MEASURED_JOBS)
        )
        with self._database.read() as connection:
            rows = connection.execute(last).all()
        seconds = sum(row.audio_seconds for row in rows)
        return sum(row.timing["gpu_s"] for row in rows) / seconds if seconds else None

    def _move(self, connection: sa.Connection, target: Status, *where: Any, **values: Any) -> list[Job]:
        """The one way in which a state changes: from the legal origins of `target` only."""
        moved = connection.execute(
            jobs.update()
            .where(jobs.c.state.in_(origins(target)), *where)
            .values(state=target, version=jobs.c.version + 1, **values)
            .returning(jobs)
        )
        return [_job(row) for row in moved]


def fingerprint(body: bytes) -> str:
    """What tells two requests with one Idempotency-Key apart."""
    return hashlib.sha256(body).hexdigest()


def _owned(owner: str | None) -> tuple[Any, ...]:
    return () if owner is None else (jobs.c.owner == owner,)


def _claim(job: str, attempt: int) -> tuple[Any, ...]:
    return (jobs.c.id == job, jobs.c.attempt == attempt, jobs.c.state == Status.RUNNING)


def _ended() -> dict[str, Any]:
    return {"finished_at": now(), "lease_until": None, "progress": None}


def _unclaimed() -> dict[str, Any]:
    return {"lease_until": None, "worker": None, "progress": None}


def _reason(error: SophiaError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


def _job(row: Any) -> Job:
    return Job(
        id=row.id,
        owner=row.owner,
        model=row.model,
        status=Status(row.state),
        priority=row.priority,
        request=MusicRequest.model_validate(row.request),
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
        audio=tuple(row.audio or ()),
        timing=row.timing,
        error=row.error,
        idempotency_key=row.idempotency_key,
        fingerprint=row.fingerprint,
    )
