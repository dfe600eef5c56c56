"""Connections to SQLite."""

from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

BUSY_TIMEOUT_S: Final = 15
"""How long a transaction waits for another's lock before it fails. PostgreSQL's limit is a setting, `database.statement_s`."""


def engine(url: sa.URL) -> sa.Engine:
    """A pool of connections to the file of `url`, whose folder is created."""
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, pool_size=8)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin in _begin, not where the driver guesses
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")  # deleting a job deletes its webhook deliveries

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # IMMEDIATE: a transaction that reads first and writes later fails at once instead of waiting for the lock
        writes = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def set_durable(connection: sa.Connection, durable: bool) -> None:
    """Whether the next commit waits until it is on disk. Must be called before the transaction begins."""
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
