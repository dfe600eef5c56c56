"""The database's id, and the reason why the janitor deletes nothing or less than it could. Every API process reports the reason."""

import sqlalchemy as sa

from serve_app.store.database import Database
from serve_app.store.tables import installation


class InstallationStore:
    """The table `installation`. A migration creates its only row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def id(self) -> str:
        """The database's id. A restored backup keeps it; a new database gets a new one."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.id)).scalar_one())

    def refusal(self) -> str:
        """Why the janitor refused to delete files; empty when it did not refuse."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.refusal)).scalar_one())

    def set_refusal(self, reason: str) -> None:
        """Set the reason that `refusal` returns; an empty text clears it."""
        self._set(installation.c.refusal, reason)

    def held_back(self) -> str:
        """What has expired but stays until later rounds, because one round may delete only so much; empty when nothing does."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.held_back)).scalar_one())

    def set_held_back(self, reason: str) -> None:
        """Set the text that `held_back` returns; an empty text clears it."""
        self._set(installation.c.held_back, reason)

    def _set(self, column: sa.Column[str], text: str) -> None:
        with self._database.write(durable=False) as connection:
            connection.execute(installation.update().where(column != text).values({column: text}))
