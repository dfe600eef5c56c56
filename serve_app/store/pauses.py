"""Models that an operator has paused: no worker is wanted and no job is claimed, until the operator says otherwise.

The jobs stay where they are, and their deadlines run on.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import pauses


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when a model is paused, in seconds since the epoch, and why."""

    since: float
    reason: str


class PauseStore:
    """The table of pauses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pause(self, model: str, reason: str) -> None:
        """Pause a model; a pause that is in force gets the new reason and keeps its beginning."""
        with self._database.write("queued") as connection:
            changed = connection.execute(pauses.update().where(pauses.c.model == model).values(reason=reason))
            if changed.rowcount == 0:
                connection.execute(pauses.insert().values(model=model, reason=reason, since=now()))

    def resume(self, model: str) -> bool:
        """End a pause; False when the model was not paused."""
        with self._database.write("queued") as connection:
            return connection.execute(pauses.delete().where(pauses.c.model == model)).rowcount == 1

    def all(self) -> dict[str, Pause]:
        """The pauses in force, by model."""
        with self._database.read() as connection:
            return {row.model: Pause(row.since, row.reason) for row in connection.execute(sa.select(pauses))}
