"""The shares: how much each owner has queued of each model, and whose turn it is.

Start-time fair queueing (Goyal, Vin and Cheng 1996), in seconds of audio: a share's turn moves on by the length of each song
that is claimed from it, and the share with the smallest turn is served next. A share that was empty starts at the clock, the
largest turn that was ever served, so that nobody saves turns up. Nothing but a claim costs a turn, so a job which leaves the
queue unplayed costs its owner nothing. Which of its jobs a share gives is its owner's affair: by priority, then age.

The figures are changed in the transaction that moves the jobs, so they are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from serve_app.jobs import Job, Status
from serve_app.store.database import upsert
from serve_app.store.tables import api_keys, jobs, shares, state_is

USUAL_RANK: Final = 5
"""The rank of every job whose key does not outrank others; also the default priority. A higher rank is served first."""

Key = tuple[str, str, int]
"""Model, owner and rank: which share a job belongs to."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one owner has queued of one model, at one rank."""

    model: str
    owner: str
    rank: int
    jobs: int
    audio_s: float
    turn: float
    """Where in the order of turns its next job starts."""

    @property
    def key(self) -> Key:
        """Which one it is."""
        return self.model, self.owner, self.rank


@dataclass
class _Change:
    jobs: int = 0
    audio_s: float = 0.0
    charged_s: float = 0.0
    served: bool = False


class Tally:
    """What one transaction changes in the shares; written at its end and in one order, so that no two wait for each other."""

    def __init__(self) -> None:
        self._changes: dict[Key, _Change] = {}

    def submitted(self, job: Job) -> None:
        """A new job, or one that is tried anew."""
        self._change(job, 1)

    def returned(self, job: Job) -> None:
        """A job came back from its worker unplayed: its owner gets the turn back that it cost."""
        self._change(job, 1).charged_s -= job.audio_seconds

    def claimed(self, job: Job) -> None:
        """A job was taken to be played: that is what costs its owner a turn."""
        change = self._change(job, -1)
        change.charged_s += job.audio_seconds
        change.served = True

    def left(self, job: Job) -> None:
        """A queued job was cancelled, deleted or is past its deadline."""
        self._change(job, -1)

    def _change(self, job: Job, by: int) -> _Change:
        change = self._changes.setdefault(share_of(job), _Change())
        change.jobs += by
        change.audio_s += by * job.audio_seconds
        return change

    def write(self, connection: sa.Connection) -> None:
        """Bring the table up to date; nothing is left to write."""
        for key in sorted(self._changes):
            _write(connection, key, self._changes[key])
        self._changes.clear()


def _write(connection: sa.Connection, key: Key, change: _Change) -> None:
    model, owner, rank = key
    clock = _clock(model, rank)
    start = sa.case((sa.and_(shares.c.jobs == 0, clock > shares.c.turn), clock), else_=shares.c.turn)
    some_left = shares.c.jobs + change.jobs > 0
    served = sa.case((shares.c.turn > shares.c.served, shares.c.turn), else_=shares.c.served)
    upsert(
        connection,
        shares,
        {"model": model, "owner": owner, "rank": rank},
        new={
            "jobs": max(change.jobs, 0),
            "audio_s": max(change.audio_s, 0.0),
            "turn": clock + change.charged_s,
            "served": 0.0,
        },
        there={
            "jobs": sa.case((some_left, shares.c.jobs + change.jobs), else_=0),
            "audio_s": sa.case((some_left, shares.c.audio_s + change.audio_s), else_=0.0),  # 0.0: sums of floats drift
            "turn": start + change.charged_s,
            "served": served if change.served else shares.c.served,
        },
    )


def _clock(model: str, rank: int) -> sa.ColumnElement[float]:
    """The largest turn that was ever served at a rank. It never falls, also when the queue is empty."""
    others = shares.alias("others")
    largest = sa.select(sa.func.max(others.c.served)).where(others.c.model == model, others.c.rank == rank)
    return sa.func.coalesce(largest.scalar_subquery(), 0.0)


def share_of(job: Job) -> Key:
    """The share that a job belongs to."""
    return job.model, job.owner, job.rank


def rank_of(owner: str, priority: int) -> sa.ColumnElement[int]:
    """The rank of an owner's new job: its priority where the operator lets the key outrank others, else that of everybody."""
    outranks = sa.exists().where(api_keys.c.name == owner, api_keys.c.outranks)
    return sa.case((outranks, priority), else_=USUAL_RANK)


def in_turn(connection: sa.Connection, *models: str) -> list[Share]:
    """The shares of the models that have something queued, those that are served first first."""
    columns = (shares.c[name] for name in Share.__slots__)
    query = sa.select(*columns).where(shares.c.model.in_(models), shares.c.jobs > 0)
    order = (shares.c.rank.desc(), shares.c.turn, shares.c.owner)
    return [Share(*row) for row in connection.execute(query.order_by(*order))]


def queued_in(key: Key) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition that a job waits in a share."""
    model, owner, rank = key
    return state_is(Status.QUEUED), jobs.c.model == model, jobs.c.rank == rank, jobs.c.owner == owner


OWN_ORDER: Final[Sequence[Any]] = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
"""In which order a share gives its jobs."""
