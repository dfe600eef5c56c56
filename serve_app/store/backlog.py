"""What is waiting, and how long it will take."""

from typing import Final

import sqlalchemy as sa

from serve_app.jobs import Job, Status
from serve_app.store.database import Database, now
from serve_app.store.jobs import owned
from serve_app.store.tables import jobs

_MEASURED_JOBS: Final = 20  # how many finished jobs an estimate looks back on


class Backlog:
    """Figures of the queue."""

    def __init__(self, database: Database):
        self._database = database

    def counts(self, owner: str | None = None) -> dict[str, int]:
        """Jobs by state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state).where(*owned(owner))
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
        place = sa.tuple_(-jobs.c.priority, jobs.c.turn, jobs.c.created_at, jobs.c.id)
        earlier = place < sa.tuple_(-job.priority, job.turn, job.created_at, job.id)
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
