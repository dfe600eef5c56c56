"""The size of the queue, and estimates of how long it takes."""

import threading
import time
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from serve_app.jobs import Job, Status
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.places import Place, places
from serve_app.store.shares import Use, are_exact, recount, use_of
from serve_app.store.statements import lock_table
from serve_app.store.tables import jobs, shares, state_is

_MEASURED_JOBS: Final = 20  # how many finished jobs an estimate uses
_COUNT_REST: Final = 20


class Backlog:
    """Queries about the queue."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ended: dict[str, int] = {}
        self._ended_until = 0.0
        self._counting = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Jobs by state.

        There may be many ended jobs, so they are counted again only after _COUNT_REST times the duration of the last count.
        Their number can be out of date by that long.
        """
        with self._counting:
            if time.monotonic() > self._ended_until:
                began = time.monotonic()
                self._ended = self._count(jobs.c.finished_at.is_not(None))
                ended = time.monotonic()
                self._ended_until = ended + _COUNT_REST * (ended - began)
        found = self._ended | self._count(state_is(Status.RUNNING)) | {Status.QUEUED: self._queued()}
        return {state.value: found.get(state, 0) for state in Status}

    def _count(self, which: sa.ColumnElement[bool]) -> dict[str, int]:
        query = sa.select(jobs.c.state, sa.func.count()).where(which).group_by(jobs.c.state)
        with self._database.read() as connection:
            return dict(connection.execute(query).all())  # type: ignore[arg-type]  # rows of two

    def _queued(self) -> int:
        query = sa.select(sa.func.coalesce(sa.func.sum(shares.c.jobs), 0)).where(shares.c.jobs > 0)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def oldest_wait_s(self) -> float | None:
        """How long the oldest queued job has waited, in seconds. None when no job is queued."""
        models = sa.select(shares.c.model).where(shares.c.jobs > 0).distinct().subquery()
        of_it = sa.select(jobs.c.created_at).where(jobs.c.model == models.c.model, state_is(Status.QUEUED))
        oldest = of_it.order_by(jobs.c.created_at).limit(1).scalar_subquery()
        query = sa.select(now() - sa.func.min(oldest)).select_from(models)
        with self._database.read() as connection:
            waited: float | None = connection.execute(query).scalar()
        return waited

    def use(self, owner: str) -> Use:
        """The queued jobs of an owner."""
        with self._database.read() as connection:
            return use_of(connection, owner)

    def recount(self) -> bool:
        """Correct the shares if they are wrong, as after an earlier version wrote to this database. Returns whether they were."""
        with self._database.read() as connection:
            if are_exact(connection):
                return False
        with self._database.write() as connection:
            lock_table(connection, jobs)
            wrong = not are_exact(connection)
            recount(connection)
        return wrong

    def places(self, queued: Sequence[Job]) -> dict[str, Place]:
        """The position of each of these queued jobs, by id. The cost is bounded."""
        with self._database.read() as connection:
            return places(connection, queued)

    def speed(self, model: str) -> float | None:
        """Device seconds per second of audio, over the last finished jobs. None before the first."""
        last = (
            sa.select(jobs.c.audio_seconds, jobs.c.timing)
            .where(jobs.c.model == model, state_is(Status.SUCCEEDED))
            .order_by(jobs.c.finished_at.desc())
            .limit(_MEASURED_JOBS)
        )
        with self._database.read() as connection:
            rows = connection.execute(last).all()
        seconds = sum(row.audio_seconds for row in rows)
        return sum(row.timing["gpu_s"] for row in rows) / seconds if seconds else None
