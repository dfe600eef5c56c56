"""Inputs: the recordings that clients have uploaded. An owner has one row for each content, whose id is its SHA-256.

An input expires `ttl_s` after its last use, unless a voice names it. It outlives that while a queued or running job needs it. A
submission renews the expiry in its own transaction, so the janitor cannot delete an input between a submission's check and its job.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve_app.errors import Conflict, NotFound, QuotaExceeded
from serve_app.jobs import input_key
from serve_app.store.clock import now, statement_time
from serve_app.store.database import Database
from serve_app.store.recordings import needed_inputs
from serve_app.store.statements import lock
from serve_app.store.tables import inputs, voices


@dataclass(frozen=True, slots=True)
class NewInput:
    """What is known of a recording when it is added."""

    owner: str
    sha256: str
    """Of the uploaded bytes, in hex; the input's id."""
    upload: str
    """Id of the upload that made it, which names its folder in the audio store."""
    bytes: int
    format: str
    """The container, such as `wav` or `mp4`."""
    seconds: float
    sample_rate: int
    channels: int
    silent: bool

    @property
    def key(self) -> str:
        """The name of its file in the audio store."""
        return input_key(self.upload, self.sha256)


@dataclass(frozen=True, slots=True)
class StoredInput(NewInput):
    """One uploaded recording. Times are seconds since the epoch on the database's clock."""

    created_at: float
    expires_at: float


_LEAST_BYTES: Final = 65_536
"""What a small input counts for in its owner's quota, so that the quota also limits the number of inputs."""

_COLUMNS: Final = [inputs.c[field.name] for field in fields(StoredInput)]


class InputStore:
    """The table of inputs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, new: NewInput, ttl_s: float, max_owner_bytes: int) -> tuple[StoredInput, bool]:
        """Add an input. Returns it, and whether it is new: another upload may have added the same content meanwhile.

        Its file must be in the audio store already. Raises QuotaExceeded.
        """
        values = asdict(new)
        try:
            with self._database.write() as connection:
                lock_inputs(connection, new.owner)
                _check_quota(connection, new, max_owner_bytes)
                times = {"created_at": now(), "expires_at": now() + ttl_s}
                row = connection.execute(inputs.insert().values(**values, **times).returning(*_COLUMNS)).one()
                return StoredInput(*row), True
        except IntegrityError:
            if (earlier := self.renew(new.owner, new.sha256, ttl_s)) is None:
                raise NotFound(
                    f"The input {new.sha256} was deleted while it was uploaded again. Send it once more"
                ) from None
            return earlier, False

    def renew(self, owner: str, sha256: str, ttl_s: float) -> StoredInput | None:
        """Renew an input that is uploaded again, even if it has expired. None when the owner has no such input."""
        renewed = inputs.update().where(*_is(owner, sha256)).values(expires_at=now() + ttl_s).returning(*_COLUMNS)
        with self._database.write() as connection:
            row = connection.execute(renewed).one_or_none()
        return StoredInput(*row) if row else None

    def get(self, owner: str, sha256: str, even_expired: bool = False) -> StoredInput:
        """One input. Raises NotFound when the owner has no such input, or it has expired. A job may use one that has."""
        query = sa.select(*_COLUMNS).where(*_is(owner, sha256))
        if not even_expired:
            query = query.where(_is_valid())
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise _not_found(sha256)
        return StoredInput(*row)

    def page(self, owner: str, before: tuple[float, str] | None, limit: int) -> list[StoredInput]:
        """Up to `limit` inputs of an owner, newest first. `before`: only those after this (created_at, sha256)."""
        query = sa.select(*_COLUMNS).where(inputs.c.owner == owner, _is_valid())
        if before is not None:
            query = query.where(sa.tuple_(inputs.c.created_at, inputs.c.sha256) < sa.tuple_(*map(sa.literal, before)))
        order = (inputs.c.created_at.desc(), inputs.c.sha256.desc())
        with self._database.read() as connection:
            return [StoredInput(*row) for row in connection.execute(query.order_by(*order).limit(limit))]

    def bytes_of(self, owner: str) -> int:
        """How many bytes the inputs of an owner take, each at least `_LEAST_BYTES`."""
        with self._database.read() as connection:
            return _bytes_of(connection, owner)

    def delete(self, owner: str, sha256: str) -> StoredInput:
        """Delete an input; the caller deletes its file.

        Raises NotFound, and Conflict when a voice or a queued or running job needs it.
        """
        with self._database.write() as connection:
            lock_inputs(connection, owner)  # so that nobody makes a voice of it meanwhile
            found = sa.select(inputs.c.sha256).where(*_is(owner, sha256))
            # Waits for a submission that holds the input, so that the next statement sees its job.
            if connection.execute(found.with_for_update()).one_or_none() is None:
                raise _not_found(sha256)
            deleted = connection.execute(
                inputs.delete().where(*_is(owner, sha256), ~_is_needed(owner)).returning(*_COLUMNS)
            )
            row = deleted.one_or_none()
            if row is not None:
                return StoredInput(*row)
            named = sa.select(voices.c.name).where(voices.c.owner == owner, voices.c.sha256 == sha256)
            voice = connection.execute(named.order_by(voices.c.name)).scalars().first()
        if voice is not None:
            raise Conflict(f"Input {sha256} cannot be deleted: it is the voice {voice!r}. Delete that voice first")
        raise Conflict(
            f"Input {sha256} cannot be deleted: a queued or running job needs it. Wait for that job, or cancel it"
        )

    def count(self) -> int:
        """How many inputs there are, of all owners."""
        query = sa.select(sa.func.count()).select_from(inputs)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def forget_expired(self, limit: int) -> list[StoredInput]:
        """Delete up to `limit` expired inputs that no voice and no queued or running job needs. The caller deletes their files."""
        some = sa.select(inputs.c.upload).where(*_has_expired()).order_by(inputs.c.expires_at).limit(limit)
        with self._database.write() as connection:
            # The condition is repeated, because a submission may have renewed an input since it was selected.
            statement = inputs.delete().where(inputs.c.upload.in_(some), *_has_expired())
            return [StoredInput(*row) for row in connection.execute(statement.returning(*_COLUMNS))]

    def uploads(self, ids: Collection[str]) -> set[str]:
        """Those of the uploads that have an input."""
        query = sa.select(inputs.c.upload).where(inputs.c.upload.in_(ids))
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())


def lock_inputs(connection: sa.Connection, owner: str) -> None:
    """Let no other transaction with this lock change which inputs and voices an owner has, until this one ends."""
    lock(connection, f"the inputs of {owner}")


def hold(connection: sa.Connection, owner: str, ids: Collection[str], ttl_s: float) -> None:
    """Keep the inputs that a job or voice names for another `ttl_s` seconds at least, in the transaction that adds it.

    Raises NotFound when one is gone or has expired.
    """
    later = now() + ttl_s
    expires_at = sa.case((inputs.c.expires_at < later, later), else_=inputs.c.expires_at)
    for sha256 in sorted(ids):  # in a fixed order, which prevents deadlocks
        held = inputs.update().where(*_is(owner, sha256), _is_valid()).values(expires_at=expires_at)
        if not connection.execute(held).rowcount:
            raise _not_found(sha256)


def _is(owner: str, sha256: str) -> Sequence[sa.ColumnElement[bool]]:
    return inputs.c.owner == owner, inputs.c.sha256 == sha256


def _not_found(sha256: str) -> NotFound:
    return NotFound(
        f"There is no input {sha256}: it was never uploaded with this API key, or has expired or been deleted"
    )


def _is_valid() -> sa.ColumnElement[bool]:
    """The condition that a request may name the input: it has not expired, or it is a voice."""
    is_voice = sa.exists().where(voices.c.owner == inputs.c.owner, voices.c.sha256 == inputs.c.sha256)
    return sa.or_(inputs.c.expires_at > now(), is_voice)


def _has_expired() -> tuple[Any, ...]:
    return inputs.c.expires_at <= statement_time(), ~_is_needed()


def _is_needed(owner: str | None = None) -> sa.ColumnElement[bool]:
    """The condition that a voice or a queued or running job of the input's owner names it. `owner`: of an input of theirs."""
    return sa.tuple_(inputs.c.owner, inputs.c.sha256).in_(needed_inputs(owner))


def _bytes_of(connection: sa.Connection, owner: str) -> int:
    counted = sa.case((inputs.c.bytes < _LEAST_BYTES, _LEAST_BYTES), else_=inputs.c.bytes)
    query = sa.select(sa.func.coalesce(sa.func.sum(counted), 0)).where(inputs.c.owner == owner)
    return int(connection.execute(query).scalar_one())


def _check_quota(connection: sa.Connection, new: NewInput, max_owner_bytes: int) -> None:
    """Raise QuotaExceeded when the new input would take its owner beyond the limit."""
    used = _bytes_of(connection, new.owner)
    more = max(new.bytes, _LEAST_BYTES)
    if used + more > max_owner_bytes:
        raise QuotaExceeded(
            f"Your inputs take {used} bytes, this one takes {more}, and the maximum is {max_owner_bytes} "
            "(inputs.max_owner_bytes): delete some (DELETE /v1/inputs/{id}), or wait until they expire"
        )
