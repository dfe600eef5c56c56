"""Which migrations this version has, and which the database has had."""

from functools import cache
from pathlib import Path

import sqlalchemy as sa


@cache
def known() -> tuple[str, ...]:
    """The revisions of our migrations, newest first."""
    from alembic.script import ScriptDirectory  # here, and below: only a process's first transaction needs it

    from serve_app.store import migrations

    folder = str(Path(migrations.__file__).parent)
    return tuple(script.revision for script in ScriptDirectory(folder).walk_revisions())


def current(connection: sa.Connection) -> tuple[str, ...]:
    """The revision of the database's tables; empty when there are none."""
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_heads()


def unknown(connection: sa.Connection) -> str:
    """The revision of the database's tables when only a newer version knows it; else empty."""
    return ", ".join(sorted(set(current(connection)) - set(known())))
