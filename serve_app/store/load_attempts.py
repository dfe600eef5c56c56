"""Attempts to load a model: which failed and how often, when to try again, and how long a start takes.

The crash breaker is computed from this table, so it survives every process. It opens when the same failure has occurred
`open_after` times since the last successful load. It opens for one host if the host caused the failure, and for the model if the
model would fail on every host. A temporary failure, such as an unreachable hub, does not open it but lengthens the backoff.

A successful load clears a host's failures on that host only, because another host may have a different disk or device. When no
host is named, any later successful load closes the breaker, because some host can load the model. `trial_s` after the last
failure, a host's breaker allows one more load, so that a repaired host recovers without an operator.

A device may load a model and then fail during each job. So a job that lost its device also adds a row here. A load on that host
does not clear it, but the first song of a new worker there does. The table keeps one row per job and host, so that a single job
that crashes every device does not open the breaker.
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
_MAX_FAILURES: Final = 200  # rows read; with more failures than this, the breaker is open anyway


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state of the crash breaker. `since` is in seconds since the epoch."""

    is_open: bool = False
    """Whether the given host must start no more loads; any host, when none was given."""
    everywhere: bool = False
    """Whether the breaker is open for every host, because the model is the cause."""
    hosts: tuple[str, ...] = ()
    """The hosts, as in `Process.host`, that start no more loads because the host is the cause."""
    runs: int = 0
    """Failures since the last successful load, plus the jobs that lost a device since the last song on that host."""
    code: str = ""
    message: str = ""
    phase: str = ""
    since: float | None = None
    retry_in_s: float = 0.0
    """How long the given host should wait before it retries."""


class LoadAttemptStore:
    """The table of loads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, model: str, deployment: str, process: Process, load: str | None = None, cluster: str = "") -> str:
        """Record that a load has begun. Returns its id, which is new unless `load` gives one.

        With `load`, a caller may call again after StoreUnavailable: a second call adds no second row.
        """
        load = load or new_id()
        where = {"host": process.host, "pid": process.pid, "born": process.born}
        whose = {"model": model, "deployment": deployment, "cluster": cluster}
        values = {"id": load, "began_at": now(), **whose, **where}
        with suppress(IntegrityError), self._database.write(durable=False) as connection:
            connection.execute(loads.insert().values(values))
        return load

    def succeeded(self, load: str) -> None:
        """Record that the load succeeded, which clears older failures."""
        with self._database.write(durable=False) as connection:
            connection.execute(loads.update().where(loads.c.id == load).values(ended_at=now()))

    def failed(self, load: str, code: str, message: str, phase: str) -> None:
        """Record that the load failed."""
        with self._database.write() as connection:
            self._fail(connection, load, code, message, phase)

    def fail_crashed(self) -> int:
        """Record `load_crashed` for every load on this host whose process has died. Returns how many."""
        with self._database.read() as connection:
            open_loads = connection.execute(sa.select(loads).where(loads.c.ended_at.is_(None))).all()
        dead = [row for row in open_loads if Process(row.host, row.pid, row.born).is_dead]
        if dead:
            with self._database.write() as connection:
                for row in dead:
                    if self._was_scaled_down(connection, row):
                        connection.execute(loads.delete().where(loads.c.id == row.id))
                    else:
                        self._fail(connection, row.id, LoadCrashed.code, LoadCrashed().message, "load")
        return len(dead)

    def discard(self, load: str) -> None:
        """Delete the record of a load that was ended on purpose, since it does not show whether the model loads."""
        with self._database.write(durable=False) as connection:
            connection.execute(loads.delete().where(loads.c.id == load, loads.c.ended_at.is_(None)))

    def add_lost_device(self, model: str, deployment: str, process: Process, job: str, message: str) -> None:
        """Record that a device on the process's host failed during a job. A second call for the same job and host adds nothing."""
        host = process.host
        where = {"model": model, "deployment": deployment, "host": host, "pid": process.pid, "born": process.born}
        what = {"code": DeviceLost.code, "message": message, "phase": "generating"}
        values = {"id": f"{job}@{host}", "began_at": now(), "ended_at": now(), **where, **what}
        with suppress(IntegrityError), self._database.write() as connection:
            connection.execute(loads.insert().values(values))

    def forgive_lost_devices(self, model: str, host: str) -> None:
        """Clear the lost devices of a host, after a newer worker has generated a song there."""
        lost = sa.and_(loads.c.model == model, loads.c.host == host, loads.c.code == DeviceLost.code)
        with self._database.write(durable=False) as connection:
            connection.execute(loads.delete().where(lost))

    @staticmethod
    def _was_scaled_down(connection: sa.Connection, load: Any) -> bool:
        """Whether the cluster has lowered its target since the load began. If so, Serve killed the process on purpose."""
        ours = decisions.c.model == load.model, decisions.c.cluster == load.cluster
        fewer = sa.select(decisions.c.model).where(*ours, decisions.c.lowered_at >= load.began_at)
        return connection.execute(fewer).one_or_none() is not None

    def breaker(self, model: str, deployment: str, args: BreakerArgs, host: str = "") -> Breaker:
        """The breaker for `host`, from the failures since the last success. With no `host`: for any host."""
        found = self._failures(model, deployment)
        hosts = _bad_hosts(args, found)
        failures = [row for row in found if row.host == host or not row.works_elsewhere]
        if not failures:
            return Breaker(hosts=hosts)
        here = [row for row in failures if row.host == host]
        everywhere = _reaches(args.open_after, [row.code for row in failures if load_cause(row.code) == "model"])
        host_is_open = host in hosts if host else bool(_bad_hosts(args, failures))
        last = (here or failures)[0]
        pause_s = min(args.backoff_s * 2 ** (len(here) - 1), args.max_backoff_s) if here else 0.0
        return Breaker(
            is_open=everywhere or host_is_open,
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
        """The failed loads that no success has cleared, newest first. `works_elsewhere`: a later load succeeded on another host."""
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
            .limit(_MAX_FAILURES)
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
        """The mean duration of the last successful loads, in seconds. None before the first."""
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
    """Whether any failure has occurred at least `count` times."""
    return any(times >= count for times in Counter(failures).values())


def _bad_hosts(args: BreakerArgs, failures: Sequence[sa.Row[Any]]) -> tuple[str, ...]:
    """The hosts whose breaker is open: the same failure, caused by the host, occurred `open_after` times, the last time less than
    `trial_s` ago."""
    own = [row for row in failures if load_cause(row.code) == "host"]
    times = Counter((row.host, row.code) for row in own)
    recent = {(row.host, row.code) for row in own if row.age < args.trial_s}
    return tuple(sorted({host for host, code in recent if times[host, code] >= args.open_after}))


def _worked_later(model: str, deployment: str, *, same_host: bool) -> sa.ColumnElement[bool]:
    """The condition that a load succeeded after the failure in `loads`: on its host, or on another."""
    later = loads.alias("later")
    where = later.c.host == loads.c.host if same_host else later.c.host != loads.c.host
    ours = (later.c.model == model, later.c.deployment == deployment)
    worked = (later.c.ended_at >= loads.c.ended_at, later.c.code.is_(None))
    return sa.exists().where(*ours, *worked, where)
