"""A connection to the job database: its transactions and its schema. SQLite or PostgreSQL."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, TimeoutError

from serve_app.config import DatabaseArgs
from serve_app.errors import ConfigurationError, DatabaseTooNew, StoreUnavailable
from serve_app.log_throttle import LogThrottle
from serve_app.store import postgresql, revisions, sqlite
from serve_app.store.driver_errors import driver_text, public_cause

logger = logging.getLogger("ray.serve.sophia")

CHANNEL: Final = "sophia"
"""PostgreSQL's notification channel. The payload is a topic."""

Topic = Literal["queued", "ended", "revoked"]
"""What a transaction announces: a job can be claimed, a job has ended, a running job was taken from its worker."""

MIGRATION_LOCK: Final = 0x50F1A
"""The advisory lock of migrations: any number that no other program uses."""


class Database:
    """An engine and its two kinds of transaction. Safe to use from several threads."""

    def __init__(self, url: str, limits: DatabaseArgs | None = None) -> None:
        """Opens no connection yet. Raises ConfigurationError when the URL cannot work."""
        self.url = _parsed(url)
        self.limits = limits or DatabaseArgs()
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._log = LogThrottle()
        self._schema_known = False
        self.newer_schema = ""
        """A warning for operators when a newer version migrated the database while this process ran. Otherwise empty."""
        self._connector = None if self.is_sqlite else postgresql.Connector(self.url, self.limits)
        self.engine = self._engine()

    def _engine(self) -> sa.Engine:
        if self._connector is None:
            return sqlite.engine(self.url)
        return postgresql.engine(self.url, self._connector, self.limits)

    @property
    def is_pooled(self) -> bool:
        """Whether connections are known to go through a pooler such as PgBouncer, which delivers no notifications."""
        return self._connector is not None and bool(self._connector.is_pooled)

    def listen(self) -> postgresql.Connection:
        """A new connection that listens to CHANNEL, unless `is_pooled`. Raises psycopg.Error, and TypeError on SQLite."""
        if self._connector is None:
            raise TypeError("SQLite has no notifications to listen to")
        connection = self._connector.connect(autocommit=True)
        try:
            if not self.is_pooled:
                connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that reads. Raises StoreUnavailable, and DatabaseTooNew."""
        with self.translated_errors(), self.engine.connect() as connection, connection.begin():
            self._check_schema(connection)
            yield connection

    @contextmanager
    def write(self, *topics: Topic, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction that writes, and announces `topics` when it commits. Raises StoreUnavailable, and DatabaseTooNew.

        `durable`: the commit returns when it is on disk. Needed for everything that a client was promised, but not for heartbeats.
        """
        with self.translated_errors(), self.engine.connect() as connection:
            if self.is_sqlite:
                sqlite.set_durable(connection, durable)
            with connection.execution_options(write=True).begin():
                self._check_schema(connection)
                if not self.is_sqlite:
                    _prepare_postgresql(connection, topics, durable)
                yield connection

    def migrate(self) -> None:
        """Bring the schema up to date. Processes that call it at once do so in turn, and all but the first find nothing to do.

        Raises StoreUnavailable, and DatabaseTooNew. After DatabaseTooNew every call raises it until the schema is known again.
        """
        alembic = revisions.load_alembic()
        config = alembic.config.Config()
        config.set_main_option("script_location", "serve_app.store:migrations")
        config.set_main_option("path_separator", "os")
        self._schema_known = False
        with self.write() as connection:  # on SQLite this transaction is the lock
            config.attributes["connection"] = connection
            with self._migration_lock(connection):
                alembic.command.upgrade(config, "head")

    @contextmanager
    def _migration_lock(self, connection: sa.Connection) -> Iterator[None]:
        """Hold PostgreSQL's migration lock, without time limits: another process's migration may build a large index."""
        if self.is_sqlite:
            yield
            return
        raw: Any = connection.connection.driver_connection
        raw.answer_s = None
        try:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            yield
        finally:
            raw.answer_s = self.limits.answer_s

    def check_for_newer_schema(self) -> None:
        """Set `newer_schema` when a newer version has migrated the database since this process began."""
        with self.read() as connection:
            unknown = revisions.unknown(connection)
        self.newer_schema = unknown and (
            f"a newer version of Sophia has migrated the database (to revision {unknown}) while this process ran. "
            "It continues, but cannot be restarted; finish the update"
        )

    def _check_schema(self, connection: sa.Connection) -> None:
        """Raise DatabaseTooNew when this version does not know the schema. Checks until the tables exist and are known."""
        if self._schema_known:
            return
        if unknown := revisions.unknown(connection):
            raise DatabaseTooNew(
                f"A newer version of Sophia has migrated the database (to revision {unknown}, which this version does not "
                "know). Run that version, or restore the backup that was made before the update"
            )
        self._schema_known = revisions.current(connection) != ()

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Raise StoreUnavailable instead of the driver's errors. IntegrityError passes: the caller handles it."""
        try:
            yield
        except sa.exc.IntegrityError:
            raise
        except (DBAPIError, TimeoutError, psycopg.Error, sqlite3.Error) as error:
            self._log_error(error)
            raise StoreUnavailable(
                f"The job database is unavailable: {public_cause(error)}. Try again shortly"
            ) from None

    def _log_error(self, error: Exception) -> None:
        """Log the driver's text, which may name addresses, at most once a minute and without the password."""
        if not self._log.due():
            return
        text = driver_text(error)
        password = str(self.url.password or "")
        logger.warning("the job database is unavailable: %s", text.replace(password, "***") if password else text)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _prepare_postgresql(connection: sa.Connection, topics: tuple[Topic, ...], durable: bool) -> None:
    if not durable:
        connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
    for topic in topics:
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, topic)))


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:  # its text holds the URL, and so the password
        raise ConfigurationError("database_url is not a valid URL. Example: postgresql://user@host/name") from None
    if "@" in (parsed.host or ""):
        # The rest of a password would be taken for the host name, and so appear in the driver's errors.
        raise ConfigurationError(
            "database_url: the characters '@', ':', '/' and '%' in a user name or password must be percent-encoded ('@' is %40)"
        )
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigurationError(
            f"database_url: {parsed.drivername!r} is not supported. Use sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("database_url: SQLite needs a file, because several processes share the database")
    return parsed if parsed.get_backend_name() == "sqlite" else parsed.set(drivername="postgresql+psycopg")
