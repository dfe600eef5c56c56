"""What each worker says of itself, for health and for `waiting_for`."""

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
"""A worker that said nothing for so long is no longer listed."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker's own account of itself. `phase_since`, `moved_at` and `seen_at` are set by the store."""

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
    """The Ray cluster that runs it; empty where that is not known."""
    phase_since: float = 0.0
    moved_at: float = 0.0
    """When phase, progress or detail changed last."""
    seen_at: float = 0.0
    age_s: float = 0.0
    """Seconds since it was heard of."""
    still_s: float = 0.0
    """Seconds since `moved_at`."""


def cannot_store(worker: WorkerRow) -> bool:
    """Whether it takes no jobs, since the audio store refuses its songs."""
    return (worker.error or {}).get("code") == ArtifactsUnavailable.code


class WorkerStore:
    """The table of workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def report(self, row: WorkerRow) -> None:
        """Write what a worker says; `phase_since` moves only with the phase, `moved_at` with any sign of progress."""
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
        """Take a worker that ended well off the list."""
        with self._database.write(durable=False) as connection:
            connection.execute(workers.delete().where(workers.c.id == worker))

    def forget_old(self, older_s: float) -> None:
        """Drop what is left of workers that were not heard of for so long: dead ones, of other hosts."""
        with self._database.write(durable=False) as connection:
            connection.execute(workers.delete().where(workers.c.seen_at < now() - max(older_s, FORGET_AFTER_S)))

    def seen(self, within_s: float = FORGET_AFTER_S) -> list[WorkerRow]:
        """The workers that were heard of lately."""
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
        """The workers whose process has ended on this host without a word."""
        return [row for row in self.seen() if row.phase is not WorkerPhase.FAILED and row.process.is_dead]


_TOLD: Final = ("id", "model", "node", "cluster", "device", "phase", "progress", "detail")


def _values(row: WorkerRow) -> dict[str, Any]:
    told = {field: getattr(row, field) for field in _TOLD}
    told |= {"error": row.error, "facts": row.facts, "job": row.job}
    return told | {"host": row.process.host, "pid": row.process.pid, "born": row.process.born}


def _row(values: dict[str, Any]) -> WorkerRow:
    process = Process(values.pop("host"), values.pop("pid"), values.pop("born"))
    phase = _phase(values.pop("phase"))
    return WorkerRow(**values, process=process, phase=phase)


def _phase(name: str) -> WorkerPhase:
    """The phase of this name. One that only a later version knows, as during an update, counts as starting: not ready."""
    try:
        return WorkerPhase(name)
    except ValueError:
        return WorkerPhase.STARTING
