"""Statements that SQLite and PostgreSQL write differently: upserts and locks."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def increment(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], amounts: Mapping[str, float]) -> None:
    """Add `amounts` to the row with the primary key `key`, or insert the row. One statement, so concurrent writers lose nothing."""
    sums = {name: table.c[name] + amount for name, amount in amounts.items()}
    upsert(connection, table, key, new=amounts, existing=sums)


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    new: Mapping[str, Any],
    existing: Mapping[str, Any],
) -> None:
    """Set the values `existing` in the row with the primary key `key`, or insert the row with the values `new`.

    The row nearly always exists, so an UPDATE comes first: SQLAlchemy recompiles an INSERT with a conflict clause each time.
    """
    has_key = [table.c[name] == value for name, value in key.items()]
    if connection.execute(table.update().where(*has_key).values(dict(existing))).rowcount:
        return
    insert = sqlite.insert if _is_sqlite(connection) else postgresql.insert
    statement = insert(table).values({**key, **new})
    connection.execute(statement.on_conflict_do_update(index_elements=table.primary_key.columns, set_=dict(existing)))


def lock(connection: sa.Connection, name: str) -> None:
    """Hold a named lock until the transaction ends. Does nothing on SQLite, which has one writer at a time anyway."""
    if not _is_sqlite(connection):
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))


def lock_table(connection: sa.Connection, table: sa.Table) -> None:
    """Keep other transactions from writing to a table until this one ends. Does nothing on SQLite, as `lock`."""
    if not _is_sqlite(connection):
        connection.exec_driver_sql(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")


def _is_sqlite(connection: sa.Connection) -> bool:
    return connection.dialect.name == "sqlite"
