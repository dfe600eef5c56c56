"""What the clients of foreign APIs set for their later calls, where the other service keeps it for them."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from serve_app.store.database import Database
from serve_app.store.statements import lock, upsert
from serve_app.store.tables import client_settings

Settings = dict[str, Any]


class ClientSettingStore:
    """The table of clients' settings: one JSON object for each API key and foreign API."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, owner: str, family: str) -> Settings:
        """The settings; empty if there are none."""
        with self._database.read() as connection:
            return _get(connection, owner, family)

    def change(self, owner: str, family: str, change: Callable[[Settings], Settings]) -> Settings:
        """Replace the settings by what `change` makes of them, and return that. Concurrent changes happen one after another."""
        with self._database.write() as connection:
            lock(connection, f"settings of {family} {owner}")
            changed = change(_get(connection, owner, family))
            values = {"settings": changed}
            upsert(connection, client_settings, {"owner": owner, "family": family}, new=values, existing=values)
        return changed


def forget_settings(connection: sa.Connection, owner: str) -> None:
    """Delete all settings of an owner."""
    connection.execute(client_settings.delete().where(client_settings.c.owner == owner))


def _get(connection: sa.Connection, owner: str, family: str) -> Settings:
    query = sa.select(client_settings.c.settings).where(
        client_settings.c.owner == owner, client_settings.c.family == family
    )
    found: Settings | None = connection.execute(query).scalar_one_or_none()
    return found or {}
