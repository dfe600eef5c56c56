"""Transactions in which jobs enter the queue, change their state or are deleted.

All of them go through `Moves`, which keeps two things true: a job's state changes only as `MOVES` in jobs.py allows, and the
queue's shares (shares.py) count what is queued.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from serve_app.errors import SophiaError, WorkerLost
from serve_app.jobs import Job, JobFailure, Status, StoredAudio, origins
from serve_app.music import MusicRequest
from serve_app.store.clock import now
from serve_app.store.database import Database, Topic
from serve_app.store.plan_rows import end_plans_of_jobs
from serve_app.store.shares import Tally
from serve_app.store.tables import jobs, state_is
from serve_app.store.webhooks import EndedJob, add_webhook_delivery

ENDED: Final[Mapping[str, Any]] = {"finished_at": now(), "lease_until": None, "progress": None}
"""The columns that every move to a final state sets."""

UNCLAIMED: Final[Mapping[str, Any]] = {"lease_until": None, "worker": None, "progress": None}
"""The columns that every move back to `queued` sets."""


@contextmanager
def moving(database: Database, *topics: Topic) -> Iterator["Moves"]:
    """A write transaction that moves jobs. It updates the shares before it commits and announces `topics` when it commits."""
    with database.write(*topics) as connection:
        moves = Moves(connection)
        yield moves
        moves.update_shares()


class Moves:
    """The moves of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self._tally = Tally()

    def insert(self, values: Mapping[str, Any]) -> Job:
        """Add a queued job. Raises IntegrityError when its owner has used its idempotency key before."""
        job = job_of(self.connection.execute(jobs.insert().values(dict(values)).returning(jobs)).one())
        self._tally.submitted(job)
        return job

    def to(self, target: Status, *where: Any, **values: Any) -> list[Job]:
        """Move the jobs that match `where` and may legally move to `target`, and set `values`. The jobs after the move.

        A job that ends and has a webhook URL gets a delivery in the same transaction.
        """
        rows = self.connection.execute(
            jobs.update()
            .where(state_is(*origins(target)), *where)
            .values(state=target, version=jobs.c.version + 1, **values)
            .returning(jobs)
        )
        moved = [job_of(row) for row in rows]
        for job in moved:
            self._count(job)
        if target.final:
            ended = [EndedJob(job.id, job.owner, job.status, job.request.webhook_url) for job in moved]
            add_webhook_delivery(self.connection, ended)
            end_plans_of_jobs(self.connection, [job.id for job in moved if job.unplanned])
        return moved

    def planned(self, job: str, audio_s: float | None) -> None:
        """Let workers claim a queued job, whose songs are `audio_s` seconds long; None if that has not changed."""
        its = (jobs.c.id == job, state_is(Status.QUEUED))
        row = self.connection.execute(sa.select(jobs).where(*its).with_for_update()).one()
        before = job_of(row)
        after = before.audio_seconds if audio_s is None else audio_s
        values = {"unplanned": None, "audio_seconds": after, "progress": None, "version": jobs.c.version + 1}
        self.connection.execute(jobs.update().where(*its).values(values))
        self._tally.resized(before, after)

    def cancel_queued(self, *where: Any) -> int:
        """Move the queued jobs that match `where` to `cancelled`; returns how many. Much faster than `to` for thousands of jobs.

        It reads only what the shares and webhooks need, instead of whole jobs.
        """
        rows = self.connection.execute(
            jobs.update()
            .where(state_is(Status.QUEUED), *where)
            .values(state=Status.CANCELLED, version=jobs.c.version + 1, **ENDED)
            .returning(
                *(jobs.c[name] for name in ("id", "model", "owner", "rank", "audio_seconds", "unplanned")),
                jobs.c.request["webhook_url"].as_string().label("webhook_url"),
            )
        ).all()
        for row in rows:
            self._tally.left_share((row.model, row.owner, row.rank), row.audio_seconds)
        ended = [EndedJob(row.id, row.owner, Status.CANCELLED, row.webhook_url) for row in rows if row.webhook_url]
        add_webhook_delivery(self.connection, ended)
        end_plans_of_jobs(self.connection, [row.id for row in rows if row.unplanned])
        return len(rows)

    def fail(self, error: SophiaError, *where: Any) -> list[Job]:
        """Move the jobs that match `where` to `failed`."""
        return self.to(Status.FAILED, *where, error=failure(error), **ENDED)

    def expire(self, error: SophiaError, *where: Any) -> list[Job]:
        """Move the jobs that match `where` to `expired`."""
        return self.to(Status.EXPIRED, *where, error=failure(error), **ENDED)

    def release(self, *where: Any) -> list[Job]:
        """Release the claims of the running jobs that match `where`: requeue those with attempts left, fail the others."""
        running = (state_is(Status.RUNNING), *where)
        requeued = self.to(Status.QUEUED, *running, jobs.c.attempt < jobs.c.max_attempts, **UNCLAIMED)
        return requeued + self.fail(WorkerLost(), *running)

    def delete(self, *where: Any) -> list[Job]:
        """Delete the jobs that match `where`. The jobs before their deletion."""
        rows = self.connection.execute(jobs.delete().where(*where).returning(jobs))
        deleted = [job_of(row) for row in rows]
        for job in deleted:
            if job.status is Status.QUEUED:
                self._tally.left(job)
        return deleted

    def update_shares(self) -> None:
        """Write the moves so far into the shares."""
        self._tally.write(self.connection)

    def _count(self, moved: Job) -> None:
        # A job that ends without a worker was still queued, so it must be taken off its owner's share.
        if moved.status is Status.RUNNING:
            self._tally.claimed(moved)
        elif moved.status is Status.QUEUED and moved.started_at is None:
            self._tally.submitted(moved)
        elif moved.status is Status.QUEUED:
            self._tally.returned(moved)
        elif moved.worker is None:
            self._tally.left(moved)


def owned_by(owner: str | None) -> tuple[Any, ...]:
    """The condition that a job belongs to `owner`. None matches every job: an operator may see all of them."""
    return () if owner is None else (jobs.c.owner == owner,)


def failure(error: SophiaError) -> dict[str, str]:
    """The JSON of the `error` column."""
    return JobFailure.from_error(error).to_json()


def job_of(row: Any) -> Job:
    """The job in a row of the table."""
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
        family=row.family or "",
        unplanned=bool(row.unplanned),
    )
