"""Queue positions: how many jobs start before a queued job. Exact up to FAR, at a cost that the length of the queue does not raise.

A job's start is its share's turn plus the lengths of the jobs before it in that share. The jobs ahead of it are those with a
smaller start, in any share. A share that lies ahead as a whole is counted from its sums, without reading its jobs.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from serve_app.jobs import Job, Status
from serve_app.store.shares import OWN_ORDER, Key, Share, in_turn, queued_in, share_of
from serve_app.store.tables import jobs, state_is

FAR: Final = 500
"""The largest count of jobs ahead. A job further back gets FAR, which means "at least this many"."""


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a queued job."""

    ahead: int
    """Queued jobs that start before it; FAR when there are that many or more."""
    audio_s: float | None
    """Seconds of audio in those jobs and in all running jobs of the model. None when `ahead` is FAR."""


_LINES_AT_ONCE: Final = 100  # SQLite accepts at most 500 parts in a UNION ALL

_ORDERED: Final = (jobs.c.id, jobs.c.audio_seconds, jobs.c.priority, jobs.c.created_at)

_FAR_BACK: Final = Place(FAR, None)


_T = TypeVar("_T")


def _batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:  # itertools has it from Python 3.12 on
    """The items in lists of at most `size`."""
    left = list(items)
    for first in range(0, len(left), size):
        yield left[first : first + size]


def places(connection: sa.Connection, queued: Sequence[Job]) -> dict[str, Place]:
    """The position of each of these queued jobs, by id."""
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
    lines = {share.key: _Line(share) for share in shares}
    running_s = _running_s(connection, queued[0].model)
    found = dict.fromkeys((job.id for job in queued), _FAR_BACK)
    near = _find(connection, lines, queued)
    asked = {job: _before(lines, line, own) for job, (line, own) in near.items()}
    asked = {job: parts for job, parts in asked.items() if sum(part.least for part in parts) < FAR}
    _read_up_to(connection, [part for parts in asked.values() for part in parts if part.line])
    for job, parts in asked.items():
        before = [near[job][1]] + [part.counted() for part in parts]
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
    """The number and the total length of the first jobs of a share."""

    jobs: int
    audio_s: float


class _Line:
    """The first jobs of one share, in order. Reads as many as needed, at most FAR."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.most = min(share.jobs, FAR)
        self.read = 0
        self.ends: list[float] = []
        """For each job, the seconds of audio up to its end."""

    def first(self, count: int) -> _Part:
        """The sums of the first `count` jobs, which must have been read."""
        return _Part(count, self.ends[count - 1] if count else 0.0)

    def covers(self, room_s: float) -> bool:
        """Whether the jobs read so far last longer than `room_s`, or there are no more to read."""
        return self.read >= self.most or bool(self.ends and self.ends[-1] > room_s)

    def enough_for(self, room_s: float) -> int:
        """How many jobs to read so that they probably last longer than `room_s`, estimated from the mean length plus a margin."""
        mean_s = max(self.share.audio_s / self.share.jobs, 0.001)
        return min(max(int(1.2 * room_s / mean_s) + 4, 2 * self.read), self.most)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """The jobs of one share that start before a job of another share."""

    least: int
    """A lower bound of their number."""
    audio_s: float = 0.0
    line: _Line | None = None
    """The line in which to count the jobs that start within `room_s`. None: `least` is exact."""
    room_s: float = 0.0
    ties: bool = False
    """Whether this share goes first when both jobs start at the same turn."""

    def counted(self) -> _Part:
        """The exact sums. The line must have been read."""
        if self.line is None:
            return _Part(self.least, self.audio_s)
        starts = [0.0, *self.line.ends[:-1]]
        return self.line.first((bisect_right if self.ties else bisect_left)(starts, self.room_s))


def _find(connection: sa.Connection, lines: dict[Key, _Line], queued: list[Job]) -> dict[str, tuple[_Line, _Part]]:
    """For each job, its line and the jobs before it in that line. Omits jobs that are FAR back."""
    asked = [(job, lines[share_of(job)]) for job in queued if share_of(job) in lines]
    own = list({line.share.key: line for _, line in asked}.values())
    # with several lines, finding their ends first is cheaper than counting jobs that prove to be FAR back
    ends = _far_ends(connection, own) if len(own) > 1 else {}
    asked = [(job, line) for job, line in asked if line.share.key not in ends or _own_order(job) < ends[line.share.key]]
    counted = _count_own(connection, asked)
    found: dict[str, tuple[_Line, _Part]] = {}
    for job, line in asked:
        if job.id in counted:
            found[job.id] = line, counted[job.id]
        elif line.share.jobs <= FAR:  # a worker has just taken it
            found[job.id] = line, _Part(0, 0.0)
    return found


def _count_own(connection: sa.Connection, asked: list[tuple[Job, _Line]]) -> dict[str, _Part]:
    """For each job, the jobs before it in its own line. The database counts among the first FAR jobs of the line."""
    counted: dict[str, _Part] = {}
    keys = list({line.share.key: None for _, line in asked})
    for some in _batched(keys, _LINES_AT_ONCE):
        first = _of_shares([(key, _ORDERED, 0, FAR) for key in some]).subquery()
        order = (first.c.priority.desc(), first.c.created_at, first.c.id)
        place = sa.func.row_number().over(partition_by=first.c.number, order_by=order)
        end_s = sa.func.sum(first.c.audio_seconds).over(partition_by=first.c.number, order_by=order, rows=(None, 0))
        all_of_it = sa.select(first.c.id, place.label("place"), end_s.label("end_s"), first.c.audio_seconds).subquery()
        ids = [job.id for job, line in asked if line.share.key in some]
        for row in connection.execute(sa.select(all_of_it).where(all_of_it.c.id.in_(ids))):
            counted[row.id] = _Part(row.place - 1, row.end_s - row.audio_seconds)
    return counted


def _before(lines: dict[Key, _Line], own: _Line, before: _Part) -> list[_Ahead]:
    """For every other line, its jobs that start before a job. `before`: the jobs before that job in its own line."""
    return [_of_line(line, own.share, before.audio_s) for line in lines.values() if line is not own]


def _of_line(line: _Line, own: Share, audio_s: float) -> _Ahead:
    share = line.share
    whole = _Ahead(share.jobs, share.audio_s)
    if share.rank != own.rank:
        return whole if share.rank > own.rank else _Ahead(0)
    room_s = own.turn + audio_s - share.turn
    ties = share.owner < own.owner
    if room_s < 0 or (room_s == 0 and not ties):
        return _Ahead(0)
    if share.audio_s <= room_s:
        return whole
    return _Ahead(1, 0.0, line, room_s, ties)


def _read_up_to(connection: sa.Connection, asked: list[_Ahead]) -> None:
    """Read enough jobs of each line to count all of `asked` exactly."""
    rooms: dict[Key, tuple[_Line, float]] = {}
    for part in asked:
        assert part.line is not None  # noqa: S101 - the caller passes no others
        _, room_s = rooms.get(part.line.share.key, (part.line, 0.0))
        rooms[part.line.share.key] = part.line, max(room_s, part.room_s)
    while rooms := {key: (line, room_s) for key, (line, room_s) in rooms.items() if not line.covers(room_s)}:
        _read(connection, {key: (line, line.enough_for(room_s)) for key, (line, room_s) in rooms.items()})


def _read(connection: sa.Connection, wanted: dict[Key, tuple[_Line, int]]) -> None:
    """Read the given number of jobs from each line, a hundred lines per statement."""
    for part in _batched(wanted.items(), _LINES_AT_ONCE):
        rows: dict[int, list[Any]] = {number: [] for number in range(len(part))}
        queries = [(key, _ORDERED, 0, count) for key, (_, count) in part]
        for number, *row in connection.execute(_of_shares(queries)):
            rows[number].append(row)
        for number, (_, (line, count)) in enumerate(part):
            found = sorted(rows[number], key=lambda row: (-row[2], row[3], row[0]))
            line.read = count
            line.ends = list(accumulate(row[1] for row in found))


def _far_ends(connection: sa.Connection, lines: list[_Line]) -> dict[Key, tuple[int, float, str]]:
    """For each share, the sort key of its first job that is FAR back. Omits shares that have no such job."""
    ends: dict[Key, tuple[int, float, str]] = {}
    columns = (jobs.c.priority, jobs.c.created_at, jobs.c.id)
    for part in _batched([line for line in lines if line.share.jobs > FAR], _LINES_AT_ONCE):
        for number, priority, *rest in connection.execute(
            _of_shares([(line.share.key, columns, FAR, 1) for line in part])
        ):
            ends[part[number].share.key] = (-priority, *rest)
    return ends


def _of_shares(queries: Sequence[tuple[Key, Sequence[Any], int, int]]) -> sa.CompoundSelect[Any]:
    """Select the jobs of several shares. A query is (share, columns, offset, limit); its number begins each of its rows."""
    parts = []
    for number, (key, columns, offset, limit) in enumerate(queries):
        of_it = sa.select(sa.literal(number).label("number"), *columns).where(*queued_in(key)).order_by(*OWN_ORDER)
        parts.append(sa.select(of_it.limit(limit).offset(offset).subquery()))
    return sa.union_all(*parts)


def _own_order(job: Job) -> tuple[int, float, str]:
    return -job.priority, job.created_at, job.id
