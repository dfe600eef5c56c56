"""What each worker says of itself, for health and for `waiting_for`."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa

from serve_app.store.database import Database, now
from serve_app.store.tables import workers

FORGET_AFTER_S: Final = 600
"""A worker that said nothing for so long is no longer listed."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker's own account of itself. `phase_since` and `seen_at` are set by the store."""

    id: str
    model: str
    node: str
    pid: int
    device: str
    phase: str
    progress: float | None = None
    detail: str = ""
    error: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None
    job: str | None = None
    phase_since: float = 0.0
    seen_at: float = 0.0


class WorkerStore:
    """The table of workers."""

    def __init__(self, database: Database):
        self._database = database

    def report(self, row: WorkerRow) -> None:
        """Write what a worker says; `phase_since` moves only when the phase changes."""
        values = asdict(row) | {"seen_at": now()}
        since = sa.case((workers.c.phase == row.phase, workers.c.phase_since), else_=now())
        with self._database.write(durable=False) as connection:
            updated = connection.execute(
                workers.update().where(workers.c.id == row.id).values(values | {"phase_since": since})
            )
            if updated.rowcount == 0:
                connection.execute(workers.insert().values(values | {"phase_since": now()}))

    def forget(self, worker: str) -> None:
        """Take a worker that ended well off the list."""
        with self._database.write(durable=False) as connection:
            connection.execute(workers.delete().where(workers.c.id == worker))

    def seen(self, seen_within_s: float = FORGET_AFTER_S) -> list[tuple[WorkerRow, float]]:
        """The workers that were heard of lately, each with the seconds since then."""
        age = (now() - workers.c.seen_at).label("age")
        query = sa.select(workers, age).where(workers.c.seen_at > now() - seen_within_s).order_by(workers.c.id)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [(WorkerRow(**{k: v for k, v in row.items() if k != "age"}), row["age"]) for row in rows]
