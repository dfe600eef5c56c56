"""The time limits of jobs: deadlines, the run limit of an attempt, and leases."""

from typing import Any, Final

import sqlalchemy as sa

from serve_app.errors import DeadlineExceeded, RunLimitExceeded
from serve_app.jobs import Job, Status, origins
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.moves import Moves, moving
from serve_app.store.tables import jobs, state_is

_STORING: Final = sa.func.coalesce(jobs.c.progress["stage"].as_string(), "") == "storing"
"""The song is finished and waits for the audio store. The run limit covers device time, so it does not apply during this wait."""

_WAITED_S: Final = sa.func.coalesce(jobs.c.progress["waited_s"].as_float(), 0.0)
"""Seconds for which the attempt waited for the audio store, known when the wait is over."""

_OWN_LIMIT_S: Final = jobs.c.request["run_limit_s"].as_float()
"""The request's own run limit; null without one."""

_OVERDUE: Final = jobs.c.deadline_at <= now()
_RUNNING: Final = state_is(Status.RUNNING)


class TimeLimits:
    """The table of jobs, as the sweeper sees it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enforce(self, run_limit_s: float, expire_leases: bool = True) -> int:
        """End jobs past their deadline or run limit, and release claims with an expired lease. How many jobs it moved.

        `expire_leases` is False for a while after an outage of the database, during which no worker could extend its leases.
        """
        ran_s = now() - jobs.c.started_at - _WAITED_S
        too_long = sa.and_(_RUNNING, sa.not_(_STORING), sa.or_(ran_s >= run_limit_s, ran_s >= _OWN_LIMIT_S))
        lease_expired = sa.and_(_RUNNING, jobs.c.lease_until <= now(), sa.true() if expire_leases else sa.false())
        if not self._any(sa.or_(_OVERDUE, too_long, lease_expired)):
            return 0
        with moving(self._database, "queued", "ended", "revoked") as moves:
            moved = _expire_unstored(moves)
            moved += moves.expire(DeadlineExceeded(), _OVERDUE)
            moved += moves.fail(RunLimitExceeded(), too_long)
            moved += moves.release(lease_expired)
        return len(moved)

    def extend(self, seconds: float) -> None:
        """Extend the run limit and deadline of every running job, by the time for which the machine was suspended."""
        later = {"started_at": jobs.c.started_at + seconds, "deadline_at": jobs.c.deadline_at + seconds}
        with self._database.write() as connection:
            connection.execute(jobs.update().where(_RUNNING).values(later))

    def _any(self, which: sa.ColumnElement[bool]) -> bool:
        """Whether a queued or running job matches. Usually none does, and then no write lock is taken."""
        query = sa.select(jobs.c.id).where(state_is(*origins(Status.EXPIRED)), which).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None


def _expire_unstored(moves: Moves) -> list[Job]:
    """Expire overdue jobs whose finished song waits for the audio store, with the audio store's error as the reason."""
    unstored = sa.select(jobs.c.id, jobs.c.progress).where(_RUNNING, _STORING, _OVERDUE)
    moved: list[Job] = []
    for job, progress in moves.connection.execute(unstored).all():
        moved += moves.expire(_not_stored(progress), jobs.c.id == job, _OVERDUE)
    return moved


def _not_stored(progress: dict[str, Any]) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The job's deadline (deadline_s) passed while its finished song waited for the audio store: {progress.get('detail')}"
    )
