"""What clients do with jobs: submit, read, list, cancel, retry, delete."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve_app.config import QueueArgs
from serve_app.errors import Conflict, IdempotencyConflict, NotFound
from serve_app.jobs import Job, Status, new_id
from serve_app.music import MusicRequest
from serve_app.music.plan_fields import GivenPlan
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.inputs import hold
from serve_app.store.moves import ENDED, UNCLAIMED, Moves, job_of, moving, owned_by
from serve_app.store.plan_rows import NewPlan, add_plan_of_job, plan_again
from serve_app.store.recordings import jobs_with_needed_songs
from serve_app.store.shares import check_limits, rank_of
from serve_app.store.statements import lock
from serve_app.store.tables import jobs, state_is
from serve_app.store.webhooks import check_pending


class OnceKey(NamedTuple):
    """How a repetition of a submission is recognised."""

    key: str | None
    """The Idempotency-Key: of the submissions with one key, only the first makes a job. None for a waiting call without one."""
    fingerprint: str
    """`fingerprint` of the request. All submissions with one key must have the same; see waiting_calls.py for those without."""


class Admission(NamedTuple):
    """What the API process says about a submission."""

    limits: QueueArgs | None = None
    """The limits on what is queued; None for no limits."""
    input_ttl_s: float = 0
    """The inputs that the request names are kept for another so many seconds at least."""
    family: str = ""
    """The foreign API by which the request came; empty for the native one."""
    plan: NewPlan | None = None
    """What a planner has to plan before a worker may claim the job, or has planned already. None: the job needs no plan."""


_ANY: Final = Admission()


class JobStore:
    """The table of jobs, as clients see it. An `owner` of None means an operator, who has access to every job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(
        self,
        request: MusicRequest,
        *,
        owner: str,
        deadline_s: float,
        max_attempts: int,
        once: OnceKey | None = None,
        admission: Admission = _ANY,
        warnings: Sequence[str] = (),
    ) -> tuple[Job, bool]:
        """Put a job into the queue. Returns it once it is on disk, and whether it is new.

        `request.model` must be set. A second submission with the same owner and key in `once` returns the first job. Raises
        IdempotencyConflict when that job has another fingerprint, QuotaExceeded or QueueFull when the limits are exceeded, and
        NotFound when a recording that the request names is gone. `warnings` are about what the client sent; the worker adds more.
        """
        job = new_id()
        if admission.plan is not None and admission.plan.result is not None:
            # The job has the plan, so its request need not repeat it.
            request = request.model_copy(update={"plan": GivenPlan(job=f"job:{job}")})
        values = {
            "id": job,
            "owner": owner,
            "model": request.model,
            "state": Status.QUEUED,
            "priority": request.priority,
            "rank": rank_of(owner, request.priority),
            # Without defaults, so that a process that does not know a newer field can read a job that does not use it.
            "request": request.model_dump(mode="json", exclude_defaults=True),
            "audio_seconds": request.duration * request.played_songs,
            "idempotency_key": once.key if once else None,
            "fingerprint": once.fingerprint if once else None,
            "created_at": now(),
            "deadline_at": now() + deadline_s,
            "attempt": 0,
            "max_attempts": max_attempts,
            "warnings": list(warnings) or None,
            "family": admission.family or None,
            "version": 1,
            "unplanned": True if admission.plan is not None and admission.plan.result is None else None,
        }
        while True:
            try:
                return self._insert(values, admission), True
            except IntegrityError:
                if once is None or once.key is None:
                    raise
            if (earlier := self._submitted_before(owner, once)) is not None:
                return earlier, False
            # The earlier job was deleted between the two statements, so its key is free again.

    def _insert(self, values: Mapping[str, Any], admission: Admission) -> Job:
        with moving(self._database, "queued") as moves:
            job = moves.insert(values)
            if admission.plan is not None:
                add_plan_of_job(moves.connection, job, admission.plan)
            _hold_recordings(moves.connection, job, admission.input_ttl_s)
            _check_limits(moves, job, admission.limits)
        return job

    def _submitted_before(self, owner: str, once: OnceKey) -> Job | None:
        """The job that an idempotency key made; None when it was deleted. Raises IdempotencyConflict."""
        job = self.of_key(owner, once.key) if once.key else None
        if job is not None and job.fingerprint != once.fingerprint:
            raise IdempotencyConflict(
                f"Idempotency-Key {once.key!r} was sent before with a different request, which made job {job.id}. "
                "Use a new key for each new request"
            )
        return job

    def get(self, job: str, owner: str | None = None) -> Job:
        """One job. Raises NotFound when it does not exist or belongs to another owner."""
        with self._database.read() as connection:
            return _get(connection, job, owner)

    def of_key(self, owner: str, idempotency_key: str) -> Job | None:
        """The job that an owner's idempotency key has made; None if there is none."""
        query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == idempotency_key)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else job_of(row)

    def get_many(self, ids: Sequence[str]) -> dict[str, Job]:
        """The jobs with these ids, by id. Ids of no job are left out."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.id.in_(ids)))
            return {row.id: job_of(row) for row in rows}

    def versions(self, ids: Sequence[str]) -> dict[str, int]:
        """The versions of the jobs with these ids, by id. Cheaper than `get_many` for finding out which jobs changed."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(ids)))
            return {row.id: row.version for row in rows}

    def page(
        self,
        *,
        owner: str | None = None,
        states: Sequence[str] = (),
        model: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Up to `limit` jobs, newest first. `before`: only jobs older than this one. No `states`: jobs in any state."""
        query = sa.select(jobs).where(*owned_by(owner)).order_by(jobs.c.id.desc()).limit(limit)
        if model is not None:
            query = query.where(jobs.c.model == model)
        if before is not None:
            query = query.where(jobs.c.id < before)
        with self._database.read() as connection:
            rows = [row for part in _by_state(query, states, owner) for row in connection.execute(part)]
        rows.sort(key=lambda row: row.id, reverse=True)
        return [job_of(row) for row in rows[:limit]]

    def cancel(self, job: str, owner: str | None = None) -> Job:
        """Cancel a queued or running job; its worker stops at the next step.

        Raises NotFound, or Conflict when the job has ended.
        """
        with moving(self._database, "ended", "revoked") as moves:
            cancelled = moves.to(Status.CANCELLED, jobs.c.id == job, *owned_by(owner), **ENDED)
            if cancelled:
                return cancelled[0]
            ended = _get(moves.connection, job, owner)
        raise Conflict(f"Job {job} cannot be cancelled: it has already ended ({ended.status})")

    def retry(self, job: str, max_attempts: int, owner: str | None = None, limits: QueueArgs | None = None) -> Job:
        """Put a failed, cancelled or expired job back into the queue, with `max_attempts` more attempts and a new deadline.

        The new deadline is as far away as the first one was at submission. Raises NotFound, Conflict when the job is in another
        state or an input that it names is gone, and QuotaExceeded or QueueFull when `limits` are exceeded.
        """
        with moving(self._database, "queued") as moves:
            found = _get(moves.connection, job, owner)
            retried = moves.to(
                Status.QUEUED,
                jobs.c.id == job,
                state_is(Status.FAILED, Status.CANCELLED, Status.EXPIRED),
                **UNCLAIMED,
                created_at=now(),
                deadline_at=now() + (found.deadline_at - found.created_at),
                max_attempts=found.attempt + max_attempts,
                started_at=None,
                finished_at=None,
                error=None,
                abandoned_at=None,
            )
            if not retried:
                raise Conflict(
                    f"Job {job} cannot be retried: it is {found.status}. Only failed, cancelled and expired jobs can be"
                )
            _hold_again(moves.connection, retried[0])
            if retried[0].unplanned:
                plan_again(moves.connection, retried[0])
            _check_limits(moves, retried[0], limits)
        return retried[0]

    def delete(self, job: str, owner: str | None = None) -> Job:
        """Delete a job in any state; its worker stops at the next step. The job before its deletion.

        Raises NotFound, and Conflict when a queued or running job has one of its songs as its source or reference.
        """
        with moving(self._database, "ended", "revoked") as moves:
            # Waits for a submission that holds the job's songs, so that the next statement sees the new job.
            found = _get(moves.connection, job, owner, lock=True)
            needed = sa.tuple_(jobs.c.owner, jobs.c.id).in_(jobs_with_needed_songs(found.owner))
            deleted = moves.delete(jobs.c.id == job, *([~needed] if found.audio else []))
            if not deleted:
                raise Conflict(
                    f"Job {job} cannot be deleted: a queued or running job makes a song from its songs. Wait for that job, or "
                    "cancel it"
                )
        return deleted[0]


def fingerprint(request: MusicRequest) -> str:
    """A digest of a request, by which two requests with one Idempotency-Key are compared.

    Defaults are left out: a version that adds a field must not take a request for another one that an earlier version got.
    """
    return hashlib.sha256(request.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def _get(connection: sa.Connection, job: str, owner: str | None, *, lock: bool = False) -> Job:
    query = sa.select(jobs).where(jobs.c.id == job, *owned_by(owner))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise _not_found(job)
    return job_of(row)


def _hold_recordings(connection: sa.Connection, job: Job, input_ttl_s: float) -> None:
    """Keep the recordings that a job names, in the transaction that queues it. Raises NotFound when one is gone."""
    hold(connection, job.owner, job.request.inputs, input_ttl_s)
    for source in sorted(job.request.source_jobs):  # in a fixed order, which prevents deadlocks
        query = sa.select(jobs.c.id).where(
            jobs.c.id == source, jobs.c.owner == job.owner, jobs.c.audio_gone_at.is_(None)
        )
        if connection.execute(query.with_for_update(read=True)).one_or_none() is None:
            raise NotFound(f"The songs of job {source} have been deleted")


def _hold_again(connection: sa.Connection, job: Job) -> None:
    """Raise Conflict when a recording that a retried job names is gone."""
    try:
        _hold_recordings(connection, job, 0)
    except NotFound as error:
        raise Conflict(f"Job {job.id} cannot be retried: {error.message}") from error


def _not_found(job: str) -> NotFound:
    return NotFound(f"There is no job {job}")


def _check_limits(moves: Moves, job: Job, limits: QueueArgs | None) -> None:
    """Raise QuotaExceeded or QueueFull when the transaction, which has queued `job`, exceeds the limits."""
    if limits is None:
        return
    lock(moves.connection, f"the quota of {job.owner}")
    moves.update_shares()
    check_limits(moves.connection, job.owner, limits)
    if job.request.webhook_url:
        check_pending(moves.connection, job.owner, limits.max_owner_webhooks)


def _by_state(query: sa.Select[Any], states: Sequence[str], owner: str | None) -> list[sa.Select[Any]]:
    """One query a state: each reads its index from the newest job on, while several states at once would need a sort."""
    wanted = [Status(state) for state in dict.fromkeys(states)]
    return [query.where(*_in_state(state, owner)) for state in wanted] or [query]


def _in_state(state: Status, owner: str | None) -> tuple[Any, ...]:
    """The condition that a job is in a state, phrased as the partial index that holds such jobs in the order of their ids."""
    if not state.final:
        return state_is(state), jobs.c.finished_at.is_(None)
    return (state_is(state), jobs.c.finished_at.is_not(None)) if owner is None else (state_is(state),)
