"""Sophia's tables in SQLite databases: each process of tests runs the migrations once, and copies the result."""

import atexit
import shutil
import sqlite3
import tempfile
import uuid
from contextlib import closing
from functools import cache
from pathlib import Path

from serve_app.store import Store


def migrate(store: Store) -> None:
    """Give a store its tables. A SQLite database whose file does not exist yet becomes a copy of one that was migrated before."""
    file = store.database.url.database
    if not store.database.is_sqlite or file is None or Path(file).exists():
        store.migrate()
        return
    shutil.copyfile(_template(), file)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(new_id())


def new_id() -> str:
    """A statement for a copied database: it needs an id of its own, by which an audio store knows whose it is."""
    return f"UPDATE installation SET id = '{uuid.uuid4().hex}'"  # noqa: S608


@cache
def _template() -> Path:
    """A migrated database, which is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="sophia-tables-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "jobs.db"
    with closing(Store(f"sqlite:///{file}")) as store:
        store.migrate()
    return file
