"""Which database this is, and why its janitor deletes nothing, if it does not: every API process tells that."""

import sqlalchemy as sa

from serve_app.store.database import Database
from serve_app.store.tables import installation


class InstallationStore:
    """The table `installation`, which has one row from the migration on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def id(self) -> str:
        """The database's own id. A restored backup has it, too; a new database never."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.id)).scalar_one())

    def refusal(self) -> str:
        """Why the janitor did not delete what it found; empty when it did."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.refusal)).scalar_one())

    def set_refusal(self, reason: str) -> None:
        """Keep the reason for `refusal`; an empty one says that there is none any more."""
        self._keep(installation.c.refusal, reason)

    def held_back(self) -> str:
        """What is over its time and stays for later rounds, since it is much; empty when nothing does."""
        with self._database.read() as connection:
            return str(connection.execute(sa.select(installation.c.held_back)).scalar_one())

    def set_held_back(self, reason: str) -> None:
        """Keep the words for `held_back`; empty ones say that nothing is any more."""
        self._keep(installation.c.held_back, reason)

    def _keep(self, column: sa.Column[str], words: str) -> None:
        with self._database.write(durable=False) as connection:
            connection.execute(installation.update().where(column != words).values({column: words}))
