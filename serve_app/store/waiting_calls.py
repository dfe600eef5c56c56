"""Jobs of waiting calls, which are answered with the song, after the caller has left.

The job of a waiting call has the fingerprint of its request and no idempotency key. When the caller leaves, the job is marked with
the time. Until a grace is over, a repetition of the call takes the job over; then the sweeper cancels it. Nobody takes over the job
of a caller who still waits: two equal calls at the same time get a song each.
"""

from typing import Any

import sqlalchemy as sa

from serve_app.jobs import Job, Status
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.moves import ENDED, job_of, moving
from serve_app.store.tables import jobs, state_is


class WaitingCallStore:
    """The table of jobs, as waiting calls and the sweeper see it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def leave(self, job: str) -> None:
        """Mark the job of a waiting call, because its caller has left."""
        left = jobs.update().where(jobs.c.id == job, jobs.c.idempotency_key.is_(None))
        with self._database.write(durable=False) as connection:
            connection.execute(left.values(abandoned_at=now()))

    def answer(self, job: str) -> None:
        """Record that the call of an unfinished job was answered, so that nobody takes an equal call for its repetition."""
        answered = jobs.update().where(jobs.c.id == job, jobs.c.idempotency_key.is_(None))
        with self._database.write(durable=False) as connection:
            connection.execute(answered.values(fingerprint=None))

    def take_over(self, owner: str, fingerprint: str, grace_s: float) -> Job | None:
        """Take over the oldest job with this fingerprint whose caller left at most `grace_s` seconds ago.

        None if there is none. A job that failed or was cancelled is not taken over, since the repetition may succeed.
        """
        left = sa.select(jobs.c.id).where(
            *_of_call(owner, fingerprint),
            jobs.c.abandoned_at > now() - grace_s,
            state_is(Status.QUEUED, Status.RUNNING, Status.SUCCEEDED),
        )
        with self._database.read() as connection:  # usually there is none, and then no write lock is taken
            if connection.execute(left.limit(1)).one_or_none() is None:
                return None
        first = left.order_by(jobs.c.id).limit(1).with_for_update(skip_locked=True).scalar_subquery()
        with self._database.write(durable=False) as connection:
            taken = jobs.update().where(jobs.c.id == first).values(abandoned_at=None).returning(jobs)
            row = connection.execute(taken).one_or_none()
        return job_of(row) if row else None

    def is_waited_for(self, owner: str, fingerprint: str) -> bool:
        """Whether a caller waits for an unfinished job with this fingerprint, as far as is known."""
        waited_for = sa.select(jobs.c.id).where(
            *_of_call(owner, fingerprint), jobs.c.finished_at.is_(None), jobs.c.abandoned_at.is_(None)
        )
        with self._database.read() as connection:
            return connection.execute(waited_for.limit(1)).one_or_none() is not None

    def cancel_left(self, grace_s: float) -> int:
        """Cancel the unfinished jobs whose callers left `grace_s` seconds ago or earlier. Returns how many."""
        is_over = jobs.c.abandoned_at <= now() - grace_s
        with self._database.read() as connection:
            if connection.execute(sa.select(jobs.c.id).where(is_over).limit(1)).one_or_none() is None:
                return 0
        with moving(self._database, "ended", "revoked") as moves:
            cancelled = moves.to(Status.CANCELLED, is_over, abandoned_at=None, **ENDED)
            moves.connection.execute(jobs.update().where(is_over).values(abandoned_at=None))
        return len(cancelled)


def _of_call(owner: str, fingerprint: str) -> tuple[Any, ...]:
    return jobs.c.owner == owner, jobs.c.fingerprint == fingerprint, jobs.c.idempotency_key.is_(None)
