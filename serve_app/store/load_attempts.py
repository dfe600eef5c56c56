"""The attempts to load a model: what failed and how often, when to try again, and how long a start takes.

The crash breaker is read from this table, so that it survives every process and needs no state of its own. It is open when the same
failure has come `open_after` times since the last load that worked: for one host where the cause is the host's, for the model where
the model would fail everywhere. What passes by itself, such as a hub that is away, opens nothing and only makes the pauses longer.

A load that works forgives a host's failures only there: another host's good disk says nothing of this one's. Asked for no host in
particular, the breaker is closed by any later load that works, since then there is a host on which the model can be loaded. A
host's breaker lets one more load try `trial_s` after the last failure, so that a host that was mended comes back by itself.

A device may load a model well and fail under each job. So a job that lost its device is a row here, too. No load on that host
forgives it, but the first song of a new worker there does. One row a job and host: a job that ends every device opens nothing.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve_app.config import BreakerArgs
from serve_app.errors import DeviceLost, LoadCrashed, codes_not_caused_by_host, load_cause
from serve_app.jobs import new_id
from serve_app.processes import Process
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import decisions, loads

_MEASURED_LOADS: Final = 5
_KEPT_S: Final = 86_400.0
_LOOKED_AT: Final = 200  # rows; a fleet that fails more often than this has an open breaker anyway


@dataclass(frozen=True, slots=True)
class Breaker:
    """What past loads say about the next one. `since` is in seconds since the epoch."""

    is_open: bool = False
    """Whether the asking host, or any host when none asks, should start no more loads."""
    everywhere: bool = False
    """Whether that holds for every host, since the cause is the model's."""
    hosts: tuple[str, ...] = ()
    """The hosts, as in `Process.host`, that start no more loads for a cause of their own."""
    runs: int = 0
    """Failures since the last load that worked, and jobs that lost their devices since the last song there."""
    code: str = ""
    message: str = ""
    phase: str = ""
    since: float | None = None
    retry_in_s: float = 0.0
    """How long the asking host should wait before it tries again."""


class LoadAttemptStore:
    """The table of loads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, model: str, deployment: str, process: Process, load: str | None = None, cluster: str = "") -> str:
        """A load begins; its id, which is new unless given.

        With an id it may be called again after StoreUnavailable: a row whose acknowledgement was lost is not made twice.
        """
        load = load or new_id()
        where = {"host": process.host, "pid": process.pid, "born": process.born}
        whose = {"model": model, "deployment": deployment, "cluster": cluster}
        values = {"id": load, "began_at": now(), **whose, **where}
        with suppress(IntegrityError), self._database.write(durable=False) as connection:
            connection.execute(loads.insert().values(values))
        return load

    def succeeded(self, load: str) -> None:
        """The load worked: older failures are forgiven."""
        with self._database.write(durable=False) as connection:
            connection.execute(loads.update().where(loads.c.id == load).values(ended_at=now()))

    def failed(self, load: str, code: str, message: str, phase: str) -> None:
        """The load failed."""
        with self._database.write() as connection:
            self._fail(connection, load, code, message, phase)

    def fail_crashed(self) -> int:
        """Loads whose process died on this host have failed: `load_crashed`. How many."""
        with self._database.read() as connection:
            open_loads = connection.execute(sa.select(loads).where(loads.c.ended_at.is_(None))).all()
        dead = [row for row in open_loads if Process(row.host, row.pid, row.born).is_dead]
        if dead:
            with self._database.write() as connection:
                for row in dead:
                    if self._was_let_go(connection, row):
                        connection.execute(loads.delete().where(loads.c.id == row.id))
                    else:
                        self._fail(connection, row.id, LoadCrashed.code, LoadCrashed().message, "load")
        return len(dead)

    def discard(self, load: str) -> None:
        """The load was ended on purpose, so it says nothing about the model."""
        with self._database.write(durable=False) as connection:
            connection.execute(loads.delete().where(loads.c.id == load, loads.c.ended_at.is_(None)))

    def add_lost_device(self, model: str, deployment: str, process: Process, job: str, message: str) -> None:
        """A device of the process' host failed under a job. Told again of the same job, it counts once."""
        host = process.host
        where = {"model": model, "deployment": deployment, "host": host, "pid": process.pid, "born": process.born}
        what = {"code": DeviceLost.code, "message": message, "phase": "generating"}
        values = {"id": f"{job}@{host}", "began_at": now(), "ended_at": now(), **where, **what}
        with suppress(IntegrityError), self._database.write() as connection:
            connection.execute(loads.insert().values(values))

    def forgive_lost_devices(self, model: str, host: str) -> None:
        """A worker that began after them has played a song there: devices lost on that host are forgiven."""
        lost = sa.and_(loads.c.model == model, loads.c.host == host, loads.c.code == DeviceLost.code)
        with self._database.write(durable=False) as connection:
            connection.execute(loads.delete().where(lost))

    @staticmethod
    def _was_let_go(connection: sa.Connection, load: Any) -> bool:
        """Whether its cluster wanted fewer workers since it began: then Serve has ended it, and kills without a last word."""
        ours = decisions.c.model == load.model, decisions.c.cluster == load.cluster
        fewer = sa.select(decisions.c.model).where(*ours, decisions.c.lowered_at >= load.began_at)
        return connection.execute(fewer).one_or_none() is not None

    def breaker(self, model: str, deployment: str, args: BreakerArgs, host: str = "") -> Breaker:
        """What the failures since the last success say. `host` is whose turn to try again is asked for."""
        found = self._failures(model, deployment)
        hosts = _bad_hosts(args, found)
        failures = [row for row in found if row.host == host or not row.works_elsewhere]
        if not failures:
            return Breaker(hosts=hosts)
        here = [row for row in failures if row.host == host]
        everywhere = _reaches(args.open_after, [row.code for row in failures if load_cause(row.code) == "model"])
        of_hosts = host in hosts if host else bool(_bad_hosts(args, failures))
        last = (here or failures)[0]
        pause_s = min(args.backoff_s * 2 ** (len(here) - 1), args.max_backoff_s) if here else 0.0
        return Breaker(
            is_open=everywhere or of_hosts,
            everywhere=everywhere,
            hosts=hosts,
            runs=len(failures),
            code=last.code,
            message=last.message,
            phase=last.phase,
            since=min(row.ended_at for row in failures if row.code == last.code),
            retry_in_s=max(pause_s - here[0].age, 0.0) if here else 0.0,
        )

    def _failures(self, model: str, deployment: str) -> list[sa.Row[Any]]:
        """The failed loads that no success has cleared, newest first, and whether a later load worked on another host."""
        ours = sa.and_(loads.c.model == model, loads.c.deployment == deployment)
        age = (now() - loads.c.ended_at).label("age")
        elsewhere = _worked_later(model, deployment, same_host=False)
        of_a_host = loads.c.code.not_in(codes_not_caused_by_host())
        forgiven = sa.or_(
            sa.and_(sa.not_(of_a_host), elsewhere),
            sa.and_(loads.c.code != DeviceLost.code, _worked_later(model, deployment, same_host=True)),
        )
        query = (
            sa.select(loads, age, elsewhere.label("works_elsewhere"))
            .where(ours, loads.c.code.is_not(None), sa.not_(forgiven))
            .order_by(loads.c.ended_at.desc())
            .limit(_LOOKED_AT)
        )
        with self._database.read() as connection:
            return list(connection.execute(query))

    def reset(self, model: str) -> int:
        """An operator's word: forget the failures of a model. How many there were."""
        with self._database.write("queued") as connection:
            return connection.execute(loads.delete().where(loads.c.model == model, loads.c.code.is_not(None))).rowcount

    def forget(self, older_s: float) -> None:
        """Drop loads that ended so long ago, but not within a day: the breaker and estimates look back on them."""
        with self._database.write(durable=False) as connection:
            connection.execute(loads.delete().where(loads.c.ended_at < now() - max(older_s, _KEPT_S)))

    def startup_s(self, model: str) -> float | None:
        """How long a load takes: the mean of the last that worked, in seconds; None before the first."""
        query = (
            sa.select(loads.c.ended_at - loads.c.began_at)
            .where(loads.c.model == model, loads.c.ended_at.is_not(None), loads.c.code.is_(None))
            .order_by(loads.c.ended_at.desc())
            .limit(_MEASURED_LOADS)
        )
        with self._database.read() as connection:
            seconds = list(connection.execute(query).scalars())
        return sum(seconds) / len(seconds) if seconds else None

    @staticmethod
    def _fail(connection: sa.Connection, load: str, code: str, message: str, phase: str) -> None:
        connection.execute(
            loads.update()
            .where(loads.c.id == load, loads.c.ended_at.is_(None))
            .values(ended_at=now(), code=code, message=message, phase=phase)
        )


def _reaches(count: int, failures: Sequence[Any]) -> bool:
    """Whether any failure has come so often."""
    return any(times >= count for times in Counter(failures).values())


def _bad_hosts(args: BreakerArgs, failures: Sequence[sa.Row[Any]]) -> tuple[str, ...]:
    """The hosts on which the same failure, whose cause is theirs, came too often, and not too long ago for one more try."""
    own = [row for row in failures if load_cause(row.code) == "host"]
    times = Counter((row.host, row.code) for row in own)
    recent = {(row.host, row.code) for row in own if row.age < args.trial_s}
    return tuple(sorted({host for host, code in recent if times[host, code] >= args.open_after}))


def _worked_later(model: str, deployment: str, *, same_host: bool) -> sa.ColumnElement[bool]:
    """Whether a load has worked after the failure in `loads`, on its host or on another."""
    later = loads.alias("later")
    where = later.c.host == loads.c.host if same_host else later.c.host != loads.c.host
    ours = (later.c.model == model, later.c.deployment == deployment)
    worked = (later.c.ended_at >= loads.c.ended_at, later.c.code.is_(None))
    return sa.exists().where(*ours, *worked, where)
