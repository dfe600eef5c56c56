"""Which database this is, and why its janitor deletes nothing, if it does not: every API process tells that."""

import sqlalchemy as sa

from serve_app.store.database import Database
from serve_app.store.tables import installation


class InstallationStore:
    """The table `installation`, which has one row from the migration on."""

    def __init__(self, database: Database):
        self._database = database

    def id(self) -> str:
        """The database's own id. A restored backup has it, too; a new database never."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.id)).scalar_one())

    def refusal(self) -> str:
        """Why the janitor did not delete what it found; empty when it did."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.refusal)).scalar_one())

    def refuse(self, reason: str) -> None:
        """Keep the reason for `refusal`; an empty one says that there is none any more."""
        changed = installation.update().where(installation.c.refusal != reason).values(refusal=reason)
        with self._database.write(durable=False) as connection:
            connection.execute(changed)
