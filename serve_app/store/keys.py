"""API keys: random tokens, of which only the SHA-256 is kept.

A token has 256 random bits, so it cannot be guessed and a fast hash is safe.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve_app.errors import Conflict, InvalidRequest, NotFound
from serve_app.store.client_settings import forget_settings
from serve_app.store.clock import now
from serve_app.store.database import Database
from serve_app.store.tables import api_keys
from serve_app.store.voices import forget_voices

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class KeyStore:
    """The table of API keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, outranks: bool = False) -> str:
        """Create a key and return its token, which cannot be read again. Raises Conflict when the name is taken.

        `outranks`: the priorities of its jobs count among the jobs of all keys. Without it, other keys' jobs see priority 5.
        """
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name!r} is not a valid key name: use 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )
        token = f"sophia-{secrets.token_urlsafe(32)}"
        try:
            with self._database.write() as connection:
                row = {"name": name, "sha256": _digest(token), "created_at": now(), "outranks": outranks}
                connection.execute(api_keys.insert().values(row))
        except IntegrityError as error:
            raise Conflict(f"There is a key named {name!r} already. Revoke it first or choose another name") from error
        return token

    def revoke(self, name: str) -> int:
        """Delete a key, what its clients have set, and its voices, which would keep their inputs for ever.

        Returns how many voices it had.

        Running API processes stop accepting the key within seconds. Raises NotFound.
        """
        with self._database.write() as connection:
            deleted = connection.execute(api_keys.delete().where(api_keys.c.name == name))
            if deleted.rowcount == 0:
                raise NotFound(f"There is no key named {name!r}")
            forget_settings(connection, name)
            return forget_voices(connection, name)

    def names(self) -> list[tuple[str, float]]:
        """Name and time of creation of every key."""
        query = sa.select(api_keys.c.name, api_keys.c.created_at).order_by(api_keys.c.name)
        with self._database.read() as connection:
            return [(name, created_at) for name, created_at in connection.execute(query)]

    def outranking(self) -> set[str]:
        """The names of the keys whose jobs' priorities count among the jobs of all keys."""
        with self._database.read() as connection:
            return set(connection.execute(sa.select(api_keys.c.name).where(api_keys.c.outranks)).scalars())

    def digests(self) -> dict[str, str]:
        """Name to SHA-256 of every key, for `owner_of`."""
        with self._database.read() as connection:
            return {row.name: row.sha256 for row in connection.execute(sa.select(api_keys))}


def owner_of(token: str, digests: dict[str, str]) -> str | None:
    """The name of the key that `token` is, or None. Compares with every key, each in constant time."""
    given = _digest(token)
    found = [name for name, digest in digests.items() if hmac.compare_digest(digest, given)]
    return found[0] if found else None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
