"""Paused models. Until an operator resumes the model, no worker starts for it and none of its jobs is claimed.

Queued jobs stay in the queue, and their deadlines still apply.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import pauses


@dataclass(frozen=True, slots=True)
class Pause:
    """When a model was paused, in seconds since the epoch, and why."""

    since: float
    reason: str


class PauseStore:
    """The table of pauses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pause(self, model: str, reason: str) -> None:
        """Pause a model. If it is already paused, the new reason replaces the old one and `since` stays."""
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
