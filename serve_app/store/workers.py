"""Status reports of the workers, for health and for `waiting_for`."""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from serve_app.errors import ArtifactsUnavailable
from serve_app.jobs import WorkerPhase
from serve_app.processes import Process
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import workers

FORGET_AFTER_S: Final = 600
"""A worker that has not reported for this long is no longer listed."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker's status report. The store sets `phase_since`, `moved_at` and `seen_at`."""

    id: str
    model: str
    node: str
    process: Process
    device: str
    phase: WorkerPhase
    progress: float | None = None
    detail: str = ""
    error: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None
    job: str | None = None
    cluster: str = ""
    """The Ray cluster that runs the worker; empty when unknown."""
    phase_since: float = 0.0
    moved_at: float = 0.0
    """When phase, progress or detail last changed."""
    seen_at: float = 0.0
    age_s: float = 0.0
    """Seconds since the last report."""
    still_s: float = 0.0
    """Seconds since `moved_at`."""


def cannot_store(worker: WorkerRow) -> bool:
    """Whether the worker claims no jobs because the audio store cannot take its songs."""
    return (worker.error or {}).get("code") == ArtifactsUnavailable.code


class WorkerStore:
    """The table of workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def report(self, row: WorkerRow) -> None:
        """Write a worker's report. `phase_since` changes with the phase only, `moved_at` also with progress and detail."""
        values = _values(row) | {"seen_at": now()}
        same_phase = workers.c.phase == row.phase
        still = sa.and_(
            same_phase, workers.c.detail == row.detail, workers.c.progress.is_not_distinct_from(row.progress)
        )
        moments = {
            "phase_since": sa.case((same_phase, workers.c.phase_since), else_=now()),
            "moved_at": sa.case((still, workers.c.moved_at), else_=now()),
        }
        with self._database.write(durable=False) as connection:
            updated = connection.execute(workers.update().where(workers.c.id == row.id).values(values | moments))
            if updated.rowcount == 0:
                connection.execute(workers.insert().values(values | {"phase_since": now(), "moved_at": now()}))

    def forget(self, worker: str) -> None:
        """Delete the row of a worker."""
        with self._database.write(durable=False) as connection:
            connection.execute(workers.delete().where(workers.c.id == worker))

    def forget_old(self, older_s: float) -> None:
        """Delete the rows of workers that have not reported for `older_s` seconds: dead ones on other hosts."""
        with self._database.write(durable=False) as connection:
            connection.execute(workers.delete().where(workers.c.seen_at < now() - max(older_s, FORGET_AFTER_S)))

    def seen(self, within_s: float = FORGET_AFTER_S) -> list[WorkerRow]:
        """The workers that have reported in the last `within_s` seconds."""
        query = (
            sa.select(
                workers, (now() - workers.c.seen_at).label("age_s"), (now() - workers.c.moved_at).label("still_s")
            )
            .where(workers.c.seen_at > now() - within_s)
            .order_by(workers.c.id)
        )
        with self._database.read() as connection:
            return [_row(dict(found)) for found in connection.execute(query).mappings()]

    def dead(self) -> list[WorkerRow]:
        """The workers on this host whose process ended without reporting a failure."""
        return [row for row in self.seen() if row.phase is not WorkerPhase.FAILED and row.process.is_dead]


_REPORTED: Final = ("id", "model", "node", "cluster", "device", "phase", "progress", "detail")


def _values(row: WorkerRow) -> dict[str, Any]:
    reported = {field: getattr(row, field) for field in _REPORTED}
    reported |= {"error": row.error, "facts": row.facts, "job": row.job}
    return reported | {"host": row.process.host, "pid": row.process.pid, "born": row.process.born}


def _row(values: dict[str, Any]) -> WorkerRow:
    process = Process(values.pop("host"), values.pop("pid"), values.pop("born"))
    phase = _phase(values.pop("phase"))
    return WorkerRow(**values, process=process, phase=phase)


def _phase(name: str) -> WorkerPhase:
    """The phase with this name. During an update a newer worker may report an unknown phase, which counts as `starting`."""
    try:
        return WorkerPhase(name)
    except ValueError:
        return WorkerPhase.STARTING
