"""Which migrations this version has, and which the database has had."""

import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

import sqlalchemy as sa

_IMPORTING: Final = threading.Lock()


def load_alembic() -> ModuleType:
    """Alembic, which nothing but a process's first transaction needs. One thread imports it at a time: the modules import each
    other, and of two threads that begin with different ones the second sees the first's half-made."""
    with _IMPORTING:
        import alembic.command
        import alembic.config
        import alembic.runtime.migration
        import alembic.script
    return alembic


@cache
def known() -> tuple[str, ...]:
    """The revisions of our migrations, newest first."""
    from serve_app.store import migrations

    folder = str(Path(migrations.__file__).parent)
    return tuple(script.revision for script in load_alembic().script.ScriptDirectory(folder).walk_revisions())


def current(connection: sa.Connection) -> tuple[str, ...]:
    """The revision of the database's tables; empty when there are none."""
    heads: tuple[str, ...] = load_alembic().runtime.migration.MigrationContext.configure(connection).get_current_heads()
    return heads


def unknown(connection: sa.Connection) -> str:
    """The revision of the database's tables when only a newer version knows it; else empty."""
    return ", ".join(sorted(set(current(connection)) - set(known())))
