"""Where queued jobs stand: how many start before each, counted exactly up to FAR, at a cost that is bounded whatever waits.

A job starts when its share's turn has come to it: at the share's turn plus the lengths of the share's jobs before it. What starts
before it is then what has a smaller start in the other shares, and whole shares are known from their sums.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import sqlalchemy as sa

from serve_app.jobs import Job, Status
from serve_app.store.shares import OWN_ORDER, Share, in_turn, queued_in, share_of
from serve_app.store.tables import jobs, state_is

FAR: Final = 1000
"""So many jobs ahead are counted; a job further back is told that there are at least so many."""


@dataclass(frozen=True, slots=True)
class Place:
    """What starts before a queued job."""

    ahead: int
    """Queued jobs before it; FAR when there are as many or more."""
    audio_s: float | None
    """Seconds of audio in them and in all running jobs of the model; None when it is FAR back."""


_FAR_BACK: Final = Place(FAR, None)


def places(connection: sa.Connection, queued: Sequence[Job]) -> dict[str, Place]:
    """The place of each of these queued jobs, by id."""
    models = sorted({job.model for job in queued})
    if not models:
        return {}
    shares = in_turn(connection, *models)
    found: dict[str, Place] = {}
    for model in models:
        ours = [job for job in queued if job.model == model]
        found |= _of_model(connection, ours, [share for share in shares if share.model == model])
    return found


def _of_model(connection: sa.Connection, queued: list[Job], shares: list[Share]) -> dict[str, Place]:
    lines = [_Line(connection, share) for share in shares]
    running_s = _running_s(connection, queued[0].model)
    found = dict.fromkeys((job.id for job in queued), _FAR_BACK)
    for line in lines:
        ours = [job for job in queued if share_of(job) == line.share.key]
        others = [other for other in lines if other is not line]
        for job, own in line.find(ours).items():
            before = [own] + [other.before(line.share, own.audio_s) for other in others]
            ahead = sum(part.jobs for part in before)
            if ahead < FAR:
                found[job] = Place(ahead, running_s + sum(part.audio_s for part in before))
    return found


def _running_s(connection: sa.Connection, model: str) -> float:
    query = sa.select(sa.func.coalesce(sa.func.sum(jobs.c.audio_seconds), 0.0))
    running_s: float = connection.execute(query.where(state_is(Status.RUNNING), jobs.c.model == model)).scalar_one()
    return running_s


@dataclass(frozen=True, slots=True)
class _Part:
    """The first jobs of a share, summed up."""

    jobs: int
    audio_s: float


class _Line:
    """The jobs of one share in their order; as many of them are read as are needed, at most FAR."""

    def __init__(self, connection: sa.Connection, share: Share):
        self.share = share
        self._connection = connection
        self._ids: list[str] = []
        self._ends: list[float] = []  # seconds of audio up to the end of each

    def find(self, queued: Sequence[Job]) -> dict[str, _Part]:
        """What stands before each of these jobs in the share; those that are FAR back are left out."""
        end = self._far_end() if queued else None
        near = [job.id for job in queued if end is None or _own_order(job) < end]
        while not set(near) <= set(self._ids) and self._read_more():
            pass
        index = {job: number for number, job in enumerate(self._ids)}
        return {job: self._first(index.get(job, 0)) for job in near}  # 0: a worker has just taken it

    def before(self, share: Share, audio_s: float) -> _Part:
        """What starts before the job of another share that has `audio_s` seconds before it there."""
        if self.share.rank != share.rank:
            return _Part(self.share.jobs, self.share.audio_s) if self.share.rank > share.rank else _Part(0, 0.0)
        room_s = share.turn + audio_s - self.share.turn
        if room_s < 0:
            return _Part(0, 0.0)
        if self.share.audio_s <= room_s:
            return _Part(self.share.jobs, self.share.audio_s)
        while (not self._ends or self._ends[-1] <= room_s) and self._read_more():
            pass
        starts = [0.0, *self._ends[:-1]]
        if self.share.owner < share.owner:  # who is served first of two with one turn
            return self._first(bisect_right(starts, room_s))
        return self._first(bisect_left(starts, room_s))

    def _first(self, count: int) -> _Part:
        return _Part(count, self._ends[count - 1] if count else 0.0)

    def _read_more(self) -> bool:
        """Read a hundred, then all up to FAR; False when there are no more."""
        most = 100 if not self._ids else FAR
        if len(self._ids) >= min(most, self.share.jobs):
            return False
        query = sa.select(jobs.c.id, jobs.c.audio_seconds).where(*queued_in(self.share.key))
        rows = self._connection.execute(query.order_by(*OWN_ORDER).limit(most)).all()
        grown = len(rows) > len(self._ids)
        self._ids = [row.id for row in rows]
        self._ends = list(accumulate(row.audio_seconds for row in rows))
        return grown

    def _far_end(self) -> tuple[int, float, str] | None:
        """Where in the share's order the first job stands that is FAR back; None when none is."""
        if self.share.jobs <= FAR:
            return None
        query = sa.select(jobs.c.priority, jobs.c.created_at, jobs.c.id).where(*queued_in(self.share.key))
        row = self._connection.execute(query.order_by(*OWN_ORDER).limit(1).offset(FAR)).one_or_none()
        return (-row.priority, row.created_at, row.id) if row else None


def _own_order(job: Job) -> tuple[int, float, str]:
    return -job.priority, job.created_at, job.id
