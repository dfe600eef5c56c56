"""Shares: how much each owner has queued for each model, and which owner is served next.

This is start-time fair queueing (Goyal, Vin and Cheng 1996), measured in seconds of audio. Each claim advances the share's turn
by the length of the claimed job, and the share with the smallest turn is served next. A share that was empty starts at the clock,
the largest turn ever served, so that an idle owner saves up no turns. Only a claim costs a turn, so a job that leaves the queue
without being generated costs its owner nothing. Within a share, jobs are claimed by priority, then by age.

The transaction that moves a job also updates its share, so the figures are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from serve_app.config import QueueArgs
from serve_app.errors import QueueFull, QuotaExceeded
from serve_app.jobs import Job, Status
from serve_app.plurals import counted
from serve_app.store.statements import upsert
from serve_app.store.tables import api_keys, jobs, shares, state_is

USUAL_RANK: Final = 5
"""The rank of every job whose key does not outrank others; also the default priority. A higher rank is served first."""

Key = tuple[str, str, int]
"""Model, owner and rank identify a share."""


@dataclass(frozen=True, slots=True)
class Share:
    """The queued jobs of one owner for one model, at one rank."""

    model: str
    owner: str
    rank: int
    jobs: int
    audio_s: float
    turn: float
    """The turn at which the share's next job starts, in seconds of audio."""

    @property
    def key(self) -> Key:
        """The share's key."""
        return self.model, self.owner, self.rank


@dataclass
class _Change:
    jobs: int = 0
    audio_s: float = 0.0
    charged_s: float = 0.0
    served: bool = False


class Tally:
    """The changes that one transaction makes to the shares. It writes them last and in a fixed order, which prevents deadlocks."""

    def __init__(self) -> None:
        self._changes: dict[Key, _Change] = {}

    def submitted(self, job: Job) -> None:
        """Count a new or retried job."""
        self._change(job, 1)

    def returned(self, job: Job) -> None:
        """Count a job that its worker did not finish, and refund its owner's turn."""
        self._change(job, 1).charged_s -= job.audio_seconds

    def claimed(self, job: Job) -> None:
        """Count a claimed job, and charge its owner's turn."""
        change = self._change(job, -1)
        change.charged_s += job.audio_seconds
        change.served = True

    def left(self, job: Job) -> None:
        """Count a queued job that was cancelled, deleted or expired."""
        self._change(job, -1)

    def resized(self, job: Job, audio_s: float) -> None:
        """Count a queued job whose songs turn out to be `audio_s` seconds long."""
        self._change_share(share_of(job), 0, 0.0).audio_s += audio_s - job.audio_seconds

    def left_share(self, share: Key, audio_s: float) -> None:
        """Count a queued job of a share, `audio_s` long, that was cancelled."""
        self._change_share(share, -1, audio_s)

    def _change(self, job: Job, by: int) -> _Change:
        return self._change_share(share_of(job), by, job.audio_seconds)

    def _change_share(self, share: Key, by: int, audio_s: float) -> _Change:
        change = self._changes.setdefault(share, _Change())
        change.jobs += by
        change.audio_s += by * audio_s
        return change

    def write(self, connection: sa.Connection) -> None:
        """Write the changes to the table and clear them."""
        for key in sorted(self._changes):
            _write(connection, key, self._changes[key])
        self._changes.clear()


def _write(connection: sa.Connection, key: Key, change: _Change) -> None:
    model, owner, rank = key
    its_key = {"its_model": model, "its_owner": owner, "its_rank": rank}
    amounts = {"by_jobs": change.jobs, "by_audio_s": change.audio_s, "by_turn": change.charged_s}
    if connection.execute(_MOVE, {**its_key, **amounts, "is_served": change.served}).rowcount:
        return
    clock = _clock(sa.literal(model), sa.literal(rank))
    upsert(  # the first job of this share; if another transaction inserts the row first, this adds to it
        connection,
        shares,
        {"model": model, "owner": owner, "rank": rank},
        new={
            "jobs": max(change.jobs, 0),
            "audio_s": max(change.audio_s, 0.0),
            "turn": clock + change.charged_s,
            "served": 0.0,
        },
        existing=_moved(
            clock, sa.literal(change.jobs), sa.literal(change.audio_s), sa.literal(change.charged_s), sa.false()
        ),
    )


def _moved(clock: Any, by_jobs: Any, by_audio_s: Any, by_turn: Any, is_served: Any) -> dict[str, sa.ColumnElement[Any]]:
    """The column values of a share after a change."""
    start = sa.case((sa.and_(shares.c.jobs == 0, clock > shares.c.turn), clock), else_=shares.c.turn)
    some_left = shares.c.jobs + by_jobs > 0
    return {
        "jobs": sa.case((some_left, shares.c.jobs + by_jobs), else_=0),
        "audio_s": sa.case((some_left, shares.c.audio_s + by_audio_s), else_=0.0),  # 0.0: sums of floats drift
        "turn": start + by_turn,
        "served": sa.case((sa.and_(is_served, shares.c.turn > shares.c.served), shares.c.turn), else_=shares.c.served),
    }


def _clock(model: Any, rank: Any) -> sa.ColumnElement[float]:
    """The largest turn ever served at a rank. It never falls, even when the queue is empty."""
    others = shares.alias("others")
    largest = sa.select(sa.func.max(others.c.served)).where(others.c.model == model, others.c.rank == rank)
    return sa.func.coalesce(largest.scalar_subquery(), 0.0)


_MODEL: Final = sa.bindparam("its_model", type_=sa.Text)
_RANK: Final = sa.bindparam("its_rank", type_=sa.SmallInteger)
_MOVE: Final = (  # built once: it runs in every transaction that moves a job
    shares.update()
    .where(shares.c.model == _MODEL, shares.c.owner == sa.bindparam("its_owner", type_=sa.Text), shares.c.rank == _RANK)
    .values(
        _moved(
            _clock(_MODEL, _RANK),
            sa.bindparam("by_jobs", type_=sa.BigInteger),
            sa.bindparam("by_audio_s", type_=sa.Double),
            sa.bindparam("by_turn", type_=sa.Double),
            sa.bindparam("is_served", type_=sa.Boolean),
        )
    )
)


def share_of(job: Job) -> Key:
    """The share that a job belongs to."""
    return job.model, job.owner, job.rank


def rank_of(owner: str, priority: int) -> sa.ColumnElement[int]:
    """The rank of an owner's new job: its priority if the owner's key may outrank others, else USUAL_RANK."""
    outranks = sa.exists().where(api_keys.c.name == owner, api_keys.c.outranks)
    return sa.case((outranks, priority), else_=USUAL_RANK)


def in_turn(connection: sa.Connection, *models: str, most: int | None = None) -> list[Share]:
    """The shares of these models that have queued jobs, in the order in which they are served. At most `most` of them."""
    return _shares(connection, shares.c.model.in_(models), most=most)


def claimable_in_turn(connection: sa.Connection, model: str, most: int) -> list[Share]:
    """As `in_turn`, without the shares whose jobs all wait for their plans."""
    theirs = (jobs.c.model == shares.c.model, jobs.c.rank == shares.c.rank, jobs.c.owner == shares.c.owner)
    some = sa.exists().where(state_is(Status.QUEUED), jobs.c.unplanned.is_(None), *theirs)
    return _shares(connection, shares.c.model == model, some, most=most)


def _shares(connection: sa.Connection, *where: sa.ColumnElement[bool], most: int | None) -> list[Share]:
    columns = (shares.c[name] for name in Share.__slots__)
    query = sa.select(*columns).where(*where, shares.c.jobs > 0)
    order = (shares.c.rank.desc(), shares.c.turn, shares.c.owner)
    return [Share(*row) for row in connection.execute(query.order_by(*order).limit(most))]


def check_limits(connection: sa.Connection, owner: str, limits: QueueArgs) -> None:
    """Raise QuotaExceeded or QueueFull when the queue exceeds a limit. The job being submitted is already counted."""
    use = use_of(connection, owner)
    if use.jobs > limits.max_owner_jobs:
        raise QuotaExceeded(
            f"You have {counted(use.jobs - 1, 'job')} waiting, and queue.max_owner_jobs is {limits.max_owner_jobs}: {_WAIT}"
        )
    if use.audio_s > limits.max_owner_audio_s:
        raise QuotaExceeded(
            f"With this job you would have {use.audio_s:.0f} seconds of audio waiting, and queue.max_owner_audio_s is "
            f"{limits.max_owner_audio_s:.0f}: {_WAIT}"
        )
    waiting = connection.execute(sa.select(sa.func.sum(shares.c.jobs)).where(shares.c.jobs > 0)).scalar_one()
    if waiting > limits.max_jobs:
        raise QueueFull(
            f"All API keys together have {counted(int(waiting) - 1, 'job')} waiting, and queue.max_jobs is {limits.max_jobs}: "
            "try again later, or ask the operator to add workers or to raise the limit"
        )


_WAIT: Final = "wait until some have started, cancel some, or ask the operator to raise the limit"


@dataclass(frozen=True, slots=True)
class Use:
    """The queued jobs of one owner, over all models."""

    jobs: int
    audio_s: float


def use_of(connection: sa.Connection, owner: str) -> Use:
    """The queued jobs of one owner, over all models."""
    sums = sa.select(
        sa.func.coalesce(sa.func.sum(shares.c.jobs), 0), sa.func.coalesce(sa.func.sum(shares.c.audio_s), 0.0)
    )
    waiting, audio_s = connection.execute(sums.where(shares.c.owner == owner)).one()
    return Use(int(waiting), audio_s)


def recount(connection: sa.Connection) -> None:
    """Recompute jobs and audio of every share from the queue. The caller must hold a lock on the table of jobs."""
    recounted = _recounted().subquery()
    keys = [recounted.c[name] == shares.c[name] for name in _KEY]
    columns = (recounted.c.jobs, recounted.c.audio_s)
    found = [sa.func.coalesce(sa.select(column).where(*keys).scalar_subquery(), 0) for column in columns]
    connection.execute(shares.update().where(_wrong()).values(jobs=found[0], audio_s=found[1]))
    for row in connection.execute(_recounted().where(_no_share())).all():
        clock = connection.execute(sa.select(_clock(sa.literal(row.model), sa.literal(row.rank)))).scalar_one()
        connection.execute(shares.insert().values(**row._mapping, turn=clock, served=0.0))


def are_exact(connection: sa.Connection) -> bool:
    """Whether every share matches the queue."""
    wrong = sa.select(sa.literal(1)).select_from(shares).where(_wrong())
    missing = sa.select(sa.literal(1)).select_from(jobs).where(state_is(Status.QUEUED), _no_share())
    return connection.execute(sa.union_all(wrong, missing).limit(1)).first() is None


_KEY: Final = ("model", "owner", "rank")


def _recounted() -> sa.Select[Any]:
    keys = [jobs.c[name] for name in _KEY]
    sums = (sa.func.count().label("jobs"), sa.func.sum(jobs.c.audio_seconds).label("audio_s"))
    return sa.select(*keys, *sums).where(state_is(Status.QUEUED)).group_by(*keys)


def _wrong() -> sa.ColumnElement[bool]:
    of_it = [state_is(Status.QUEUED), *(jobs.c[name] == shares.c[name] for name in _KEY)]
    count = sa.select(sa.func.count()).select_from(jobs).where(*of_it).scalar_subquery()
    return shares.c.jobs != count


def _no_share() -> sa.ColumnElement[bool]:
    return ~sa.exists().where(*(shares.c[name] == jobs.c[name] for name in _KEY))


def queued_in(key: Key) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition that a job waits in a share."""
    model, owner, rank = key
    return state_is(Status.QUEUED), jobs.c.model == model, jobs.c.rank == rank, jobs.c.owner == owner


OWN_ORDER: Final[Sequence[Any]] = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
"""The order in which the jobs of a share are claimed."""
