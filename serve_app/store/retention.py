"""The janitor's queries: which jobs and files have expired, and which files belong to which job. Results come in pages."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from serve_app.jobs import Status
from serve_app.store.clock import now, statement_time
from serve_app.store.database import Database
from serve_app.store.tables import jobs, state_is

_FINAL = tuple(state for state in Status if state.final)
_HAS_AUDIO = (state_is(Status.SUCCEEDED), jobs.c.audio_gone_at.is_(None))


@dataclass(frozen=True, slots=True)
class Holding:
    """A job and its files. `keys` are its published files; `gone` means that they were removed."""

    id: str
    status: Status
    attempt: int
    worker: str | None
    keys: tuple[str, ...]
    gone: bool


class RetentionStore:
    """The jobs' table as the janitor sees it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def with_old_audio(self, older_s: float, limit: int) -> list[Holding]:
        """Succeeded jobs that ended `older_s` seconds ago or earlier and still have their audio, oldest first."""
        query = _holdings().where(*_HAS_AUDIO, jobs.c.finished_at <= statement_time() - older_s)
        return self._fetch(query.order_by(jobs.c.finished_at).limit(limit))

    def with_audio(self, after: str, limit: int) -> list[Holding]:
        """Succeeded jobs that still have their audio, by id, starting after the id `after`."""
        return self._fetch(_holdings().where(*_HAS_AUDIO, jobs.c.id > after).order_by(jobs.c.id).limit(limit))

    def ended_long_ago(self, older_s: float, limit: int) -> list[Holding]:
        """Jobs that ended `older_s` seconds ago or earlier, however they ended, oldest first."""
        return self._fetch(_holdings().where(*_ended(older_s)).order_by(jobs.c.finished_at).limit(limit))

    def songs(self, older_s: float = 0) -> int:
        """How many jobs ended `older_s` seconds ago or earlier and still have their audio."""
        return self._count(*_HAS_AUDIO, jobs.c.finished_at <= statement_time() - older_s)

    def ended(self, older_s: float = 0) -> int:
        """How many jobs ended `older_s` seconds ago or earlier."""
        return self._count(*_ended(older_s))

    def holdings(self, ids: Collection[str]) -> dict[str, Holding]:
        """The jobs with these ids that exist, by id."""
        return {found.id: found for found in self._fetch(_holdings().where(jobs.c.id.in_(ids)))}

    def mark_audio_gone(self, ids: Sequence[str], gone: bool = True) -> None:
        """Record that the audio of these jobs was removed, or with `gone=False` that it exists after all."""
        marked = jobs.update().where(jobs.c.id.in_(ids), state_is(Status.SUCCEEDED))
        with self._database.write("ended") as connection:
            connection.execute(marked.values(audio_gone_at=now() if gone else None, version=jobs.c.version + 1))

    def forget(self, ids: Sequence[str], older_s: float) -> int:
        """Delete those of the jobs that ended at least `older_s` seconds ago. Returns how many.

        The condition is checked again, because a client may have retried a job since it was listed.
        """
        with self._database.write("ended") as connection:
            return connection.execute(jobs.delete().where(jobs.c.id.in_(ids), *_ended(older_s))).rowcount

    def _count(self, *where: Any) -> int:
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(jobs).where(*where)).scalar_one()

    def _fetch(self, query: sa.Select[Any]) -> list[Holding]:
        with self._database.read() as connection:
            return [_holding(row) for row in connection.execute(query)]


def _holdings() -> sa.Select[Any]:
    return sa.select(jobs.c.id, jobs.c.state, jobs.c.attempt, jobs.c.worker, jobs.c.audio, jobs.c.audio_gone_at)


def _ended(older_s: float) -> tuple[Any, ...]:
    return (state_is(*_FINAL), jobs.c.finished_at <= statement_time() - older_s)


def _holding(row: Any) -> Holding:
    keys = tuple(str(file["key"]) for file in row.audio or ())
    return Holding(row.id, Status(row.state), row.attempt, row.worker, keys, row.audio_gone_at is not None)
