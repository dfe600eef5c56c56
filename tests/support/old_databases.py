"""Databases that f09e160 made, with jobs in every state, replayed from dumps in tests/data.

The dumps were written by f09e160's own store on both kinds of database, the moves of the jobs included; their first line tells
which job is which, a key of `studio`, and when it was. Replaying moves all times to now.
"""

import json
import sqlite3
import time
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from tests.support.paths import ROOT

FOLDER: Final = ROOT / "tests" / "data"
REVISION: Final = "0005"
"""The newest migration that f09e160 has."""


def replay(database_url: str) -> dict[str, Any]:
    """Creates the old tables with their rows in an empty database, and returns the facts in the dump's first line."""
    kind = sa.make_url(database_url).get_backend_name()
    text = (FOLDER / f"f09e160.{kind}.sql").read_text()
    told: dict[str, Any] = json.loads(text.splitlines()[0].removeprefix("-- "))
    _execute(database_url, text)
    _move_to_now(database_url, time.time() - told["at"])
    return told


def _execute(database_url: str, text: str) -> None:
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        connection = sqlite3.connect(str(url.database))
        connection.executescript(text)
        connection.close()
        return
    with psycopg.connect(database_url, autocommit=True) as server:
        server.execute(text)


def _move_to_now(database_url: str, seconds: float) -> None:
    """Moves the jobs' deadlines and leases to the present, since they would have passed."""
    engine = sa.create_engine(sa.make_url(database_url).set(drivername=_driver(database_url)))
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            times = [column for column in table.c if column.name.endswith(("_at", "_since", "_until"))]
            for column in times:
                connection.execute(table.update().where(column > 0).values({column: column + seconds}))
    engine.dispose()


def _driver(database_url: str) -> str:
    return "sqlite" if database_url.startswith("sqlite") else "postgresql+psycopg"
