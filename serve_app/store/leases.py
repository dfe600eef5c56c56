"""Leases for work that only one process at a time may do, and for the pause until it is due again."""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import leases

_NOBODY = ""


class LeaseStore:
    """The table of named leases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, name: str, holder: str, seconds: float) -> bool:
        """Take or extend a lease. False while another holder has it, or during the pause after a release."""
        free = sa.or_(leases.c.until <= now(), leases.c.holder == holder)
        taken = leases.update().where(leases.c.name == name, free).values(holder=holder, until=now() + seconds)
        with self._database.write(durable=False) as connection:
            if connection.execute(taken).rowcount:
                return True
        try:
            with self._database.write(durable=False) as connection:
                connection.execute(leases.insert().values(name=name, holder=holder, until=now() + seconds))
        except IntegrityError:
            return False
        return True

    def release(self, name: str, holder: str, seconds: float) -> None:
        """Release a lease. No process can take it for the next `seconds`."""
        mine = leases.update().where(leases.c.name == name, leases.c.holder == holder)
        with self._database.write(durable=False) as connection:
            connection.execute(mine.values(holder=_NOBODY, until=now() + seconds))
