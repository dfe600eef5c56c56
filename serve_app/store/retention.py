"""The janitor's queries: which jobs and files have expired, and which files belong to which job. Results come in pages."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from serve_app.jobs import Status, StoredAudio
from serve_app.store.clock import now, statement_time
from serve_app.store.database import Database
from serve_app.store.recordings import jobs_with_needed_songs
from serve_app.store.tables import jobs, state_is

_FINAL = tuple(state for state in Status if state.final)
_HAS_AUDIO = (state_is(Status.SUCCEEDED), jobs.c.audio_gone_at.is_(None))


@dataclass(frozen=True, slots=True)
class Holding:
    """A job and its files. `gone` means that they were removed."""

    id: str
    status: Status
    attempt: int
    worker: str | None
    songs: tuple[str, ...]
    """The published songs."""
    keys: tuple[str, ...]
    """All published files: the songs, their latents and the times of their lyrics."""
    gone: bool


class RetentionStore:
    """The jobs' table as the janitor sees it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def with_old_audio(self, older_s: float, limit: int) -> list[Holding]:
        """Succeeded jobs that ended `older_s` seconds ago or earlier and still have their audio, oldest first.

        Leaves out jobs whose songs a queued or running job of the same owner needs.
        """
        is_old = jobs.c.finished_at <= statement_time() - older_s
        query = _holdings().where(*_HAS_AUDIO, is_old, ~_is_needed())
        return self._fetch(query.order_by(jobs.c.finished_at).limit(limit))

    def with_audio(self, after: str, limit: int) -> list[Holding]:
        """Succeeded jobs that still have their audio, by id, starting after the id `after`."""
        return self._fetch(_holdings().where(*_HAS_AUDIO, jobs.c.id > after).order_by(jobs.c.id).limit(limit))

    def ended_long_ago(self, older_s: float, limit: int) -> list[Holding]:
        """Jobs that ended `older_s` seconds ago or earlier, however they ended, oldest first.

        Leaves out jobs whose songs a queued or running job of the same owner needs.
        """
        return self._fetch(_holdings().where(*_ended(older_s), ~_is_needed()).order_by(jobs.c.finished_at).limit(limit))

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
            forgotten = jobs.delete().where(jobs.c.id.in_(ids), *_ended(older_s), ~_is_needed())
            return connection.execute(forgotten).rowcount

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


def _is_needed() -> sa.ColumnElement[bool]:
    """The condition that a queued or running job of the same owner has a song of the job as its source or reference."""
    return sa.tuple_(jobs.c.owner, jobs.c.id).in_(jobs_with_needed_songs())


def _holding(row: Any) -> Holding:
    files = [StoredAudio.from_json(file) for file in row.audio or ()]
    songs = tuple(file.key for file in files)
    keys = tuple(key for file in files for key in file.keys)
    return Holding(row.id, Status(row.state), row.attempt, row.worker, songs, keys, row.audio_gone_at is not None)
