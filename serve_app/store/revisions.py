"""The migrations that this version knows, and those that the database has had."""

import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

import sqlalchemy as sa

_IMPORTING: Final = threading.Lock()


def load_alembic() -> ModuleType:
    """Import Alembic, which only a process's first transaction needs.

    Only one thread imports it at a time. Its modules import each other, so a second thread could see a half-imported module.
    """
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
    """The database's revision if this version does not know it; otherwise empty."""
    return ", ".join(sorted(set(current(connection)) - set(known())))
