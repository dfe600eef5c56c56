"""What the APIs of other services need of the table of jobs beyond the native routes."""

from dataclasses import dataclass

import sqlalchemy as sa

from serve_app.jobs import Status
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.moves import moving, owned_by
from serve_app.store.tables import jobs, shares, state_is


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """The unfinished jobs of one model."""

    queued: int
    running: int
    retried: int
    """Running jobs in their second or a later attempt."""


class ForeignClientStore:
    """The table of jobs, as clients of other services see it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge(self, model: str, owner: str) -> int:
        """Cancel all queued jobs of an owner for a model. Returns how many."""
        with moving(self._database, "ended") as moves:
            return moves.cancel_queued(jobs.c.model == model, *owned_by(owner))

    def stream_once(self, job: str) -> bool:
        """Whether this is the first call for a job, which must have succeeded. Of several calls at once, one is the first."""
        first = jobs.update().where(jobs.c.id == job, jobs.c.streamed_at.is_(None)).values(streamed_at=now())
        with self._database.write(durable=False) as connection:
            return connection.execute(first).rowcount == 1

    def counts(self, model: str) -> ModelCounts:
        """How many jobs of a model wait and run. The cost does not depend on the length of the queue."""
        queued = sa.select(sa.func.coalesce(sa.func.sum(shares.c.jobs), 0)).where(shares.c.model == model)
        running = sa.select(
            sa.func.count(), sa.func.coalesce(sa.func.sum(sa.case((jobs.c.attempt > 1, 1), else_=0)), 0)
        ).where(state_is(Status.RUNNING), jobs.c.model == model, jobs.c.finished_at.is_(None))
        with self._database.read() as connection:
            waiting = connection.execute(queued).scalar_one()
            now_running, retried = connection.execute(running).one()
        return ModelCounts(int(waiting), now_running, int(retried))
