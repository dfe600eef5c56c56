"""Adapters that an operator has added to a model beside those of its configuration.

They are rows, so that every API process and every worker, on whatever node, knows them at once.
"""

from collections.abc import Mapping

import sqlalchemy as sa

from serve_app.config import AdapterArgs
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import adapters


class AdapterStore:
    """The table of adapters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, model: str, name: str, settings: AdapterArgs) -> None:
        """Add an adapter to a model, or replace the one of this name."""
        values = {"settings": settings.model_dump(mode="json", exclude_defaults=True), "added_at": now()}
        with self._database.write() as connection:
            changed = connection.execute(adapters.update().where(_is(model, name)).values(**values))
            if changed.rowcount == 0:
                connection.execute(adapters.insert().values(model=model, name=name, **values))

    def remove(self, model: str, name: str) -> bool:
        """Remove an adapter; False when the model has none of this name."""
        with self._database.write() as connection:
            return connection.execute(adapters.delete().where(_is(model, name))).rowcount == 1

    def known(self, model: str, configured: Mapping[str, AdapterArgs]) -> dict[str, AdapterArgs]:
        """A model's adapters by name: those that were added and those of its configuration, which take precedence."""
        query = sa.select(adapters).where(adapters.c.model == model).order_by(adapters.c.name)
        with self._database.read() as connection:
            added = {row.name: AdapterArgs.model_validate(row.settings) for row in connection.execute(query)}
        return {**added, **configured}


def _is(model: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(adapters.c.model == model, adapters.c.name == name)
