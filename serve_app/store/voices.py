"""Voices: inputs to which their owners have given names. A voice keeps its input, also beyond the input's expiry."""

from dataclasses import dataclass, fields
from typing import Any, Final

import sqlalchemy as sa

from serve_app.errors import NotFound, QuotaExceeded
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.inputs import hold, lock_inputs
from serve_app.store.tables import inputs, voices


@dataclass(frozen=True, slots=True)
class Voice:
    """A named input. Times are seconds since the epoch on the database's clock."""

    name: str
    sha256: str
    """The input's id."""
    seconds: float
    """The recording's length."""
    created_at: float
    changed_at: float
    """When the voice got its present recording."""


class VoiceStore:
    """The table of voices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, owner: str, name: str, sha256: str, ttl_s: float, most: int) -> bool:
        """Give a name to an input, or give an existing name to another input. Returns whether the name is new.

        Raises NotFound when the owner has no such input, and QuotaExceeded when a new name would be the owner's `most` + 1st.
        """
        with self._database.write() as connection:
            lock_inputs(connection, owner)
            hold(connection, owner, [sha256], ttl_s)
            moved = voices.update().where(voices.c.owner == owner, voices.c.name == name)
            changed_at = sa.case((voices.c.sha256 == sha256, voices.c.changed_at), else_=now())
            if connection.execute(moved.values(sha256=sha256, changed_at=changed_at)).rowcount:
                return False
            _check_room(connection, owner, most)
            times = {"created_at": now(), "changed_at": now()}
            connection.execute(voices.insert().values(owner=owner, name=name, sha256=sha256, **times))
            return True

    def get(self, owner: str, name: str) -> Voice:
        """One voice. Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(_voices_of(owner).where(voices.c.name == name)).one_or_none()
        if row is None:
            raise _not_found(name)
        return Voice(*row)

    def all(self, owner: str) -> list[Voice]:
        """The voices of an owner, by name."""
        with self._database.read() as connection:
            return [Voice(*row) for row in connection.execute(_voices_of(owner).order_by(voices.c.name))]

    def count(self, owner: str) -> int:
        """How many voices an owner has."""
        with self._database.read() as connection:
            return _count(connection, owner)

    def delete(self, owner: str, name: str) -> None:
        """Delete a voice. Its input stays until it expires. Raises NotFound."""
        deleted = voices.delete().where(voices.c.owner == owner, voices.c.name == name)
        with self._database.write() as connection:
            if not connection.execute(deleted).rowcount:
                raise _not_found(name)


_COLUMNS: Final = [inputs.c.seconds if field.name == "seconds" else voices.c[field.name] for field in fields(Voice)]


def _voices_of(owner: str) -> sa.Select[Any]:
    same_input = sa.and_(inputs.c.owner == voices.c.owner, inputs.c.sha256 == voices.c.sha256)
    return sa.select(*_COLUMNS).join_from(voices, inputs, same_input).where(voices.c.owner == owner)


def _count(connection: sa.Connection, owner: str) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(_voices_of(owner).subquery())).scalar_one()


def forget_voices(connection: sa.Connection, owner: str) -> int:
    """Delete the voices of an owner, whose inputs then expire. Returns how many."""
    return connection.execute(voices.delete().where(voices.c.owner == owner)).rowcount


def _check_room(connection: sa.Connection, owner: str, most: int) -> None:
    count = _count(connection, owner)
    if count >= most:
        raise QuotaExceeded(
            f"You have {count} voices, and the maximum is {most} (inputs.voices_per_key): delete some (DELETE /v1/voices/{{name}})"
        )


def _not_found(name: str) -> NotFound:
    return NotFound(f"There is no voice {name!r}: it was never made with this API key, or has been deleted")
