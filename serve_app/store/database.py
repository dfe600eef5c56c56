"""Connections, transactions and the schema. What differs between SQLite and PostgreSQL stands here and nowhere else."""

import logging
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, TimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from serve_app.config import DatabaseArgs
from serve_app.errors import ConfigurationError, DatabaseTooNew, StoreUnavailable
from serve_app.store import postgresql, revisions

logger = logging.getLogger("ray.serve.sophia")

CHANNEL: Final = "sophia"
"""PostgreSQL's notification channel; the payload is a topic."""

Topic = Literal["queued", "ended", "revoked"]
"""What a change means to watchers: a job can be claimed; one has ended; a running one was taken from its worker."""

BUSY_TIMEOUT_S: Final = 15
"""How long a transaction of SQLite's waits for another's lock before it gives up; PostgreSQL's is a setting."""

_TELL_EVERY_S: Final = 60.0

_CAUSES: Final = (
    ("refused", "it refuses connections"),
    ("resolve", "its host name cannot be resolved"),
    ("name or service not known", "its host name cannot be resolved"),
    ("authentication failed", "it rejects the user or the password"),
    ("no password supplied", "it wants a password"),
    ("too many clients", "it has no free connection"),
    ("connection slots", "it has no free connection"),
    ("queuepool limit", "this process has no free connection"),
    ("database is locked", "another process holds its lock"),
    ("readonly", "it is read-only"),
    ("read-only", "it is read-only"),
    ("full", "its disk is full"),
    ("no space", "its disk is full"),
    ("unable to open database file", "its file cannot be opened"),
    (
        "unsupported startup parameter",
        "PgBouncer takes no options from the address; set them for the role or the database",
    ),
    ("no such table", "its tables are not made yet"),
    ('relation "', "its tables are not made yet"),
    ("does not exist", "there is no such database, role or table"),
    ("timeout", "no answer in time"),
    ("timed out", "no answer in time"),
    ("closed the connection", "it closed the connection"),
    ("shutting down", "it is shutting down"),
    ("starting up", "it is starting up"),
)
"""What a driver's text holds, and what we say instead."""

MIGRATION_LOCK: Final = 0x50F1A  # any number that no other program takes


class now(FunctionElement[float]):
    """The database's clock in seconds since the epoch, so that nodes with different clocks agree on leases."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class statement_time(FunctionElement[float]):
    """`now`, but the same all through a statement, so that an index can be searched by it: for `now` PostgreSQL asks the clock anew
    for each row, and so reads each. A lease wants `now`: the statement may have waited for a lock."""

    type = sa.Double()
    inherit_cache = True


@compiles(statement_time, "sqlite")
def _sqlite_statement_time(*_: Any, **__: Any) -> str:
    return _sqlite_now()


@compiles(statement_time, "postgresql")
def _postgresql_statement_time(*_: Any, **__: Any) -> str:
    return "extract(epoch from statement_timestamp())::double precision"


class this_hour(FunctionElement[int]):
    """Hours since the epoch by the database's clock: the one under way."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(this_hour, "sqlite")
def _sqlite_hour(*_: Any, **__: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 24 AS INTEGER)"


@compiles(this_hour, "postgresql")
def _postgresql_hour(*_: Any, **__: Any) -> str:
    return "floor(extract(epoch from statement_timestamp()) / 3600)::bigint"


def increment(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], amounts: Mapping[str, float]) -> None:
    """Add `amounts` to the row whose primary key is in `key`, which is made when there is none; one statement, so that
    writers wait for each other instead of losing an amount."""
    sums = {name: table.c[name] + amount for name, amount in amounts.items()}
    upsert(connection, table, key, new=amounts, there=sums)


def upsert(
    connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], new: Mapping[str, Any], there: Mapping[str, Any]
) -> None:
    """Make the row whose primary key is in `key` with the values `new`, or set those of `there` when it exists.

    Nearly always it exists. It is updated first, since SQLAlchemy compiles an insert with a conflict clause anew each time.
    """
    its_key = [table.c[name] == value for name, value in key.items()]
    if connection.execute(table.update().where(*its_key).values(dict(there))).rowcount:
        return
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql_dialect.insert
    statement = insert(table).values({**key, **new})
    connection.execute(statement.on_conflict_do_update(index_elements=table.primary_key.columns, set_=dict(there)))


def lock(connection: sa.Connection, what: str) -> None:
    """Wait until no other transaction is alone with `what`, and be it until this one ends. On SQLite whoever writes is alone."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(what, 0))))


def lock_table(connection: sa.Connection, table: sa.Table) -> None:
    """Let nobody else write to a table until this transaction ends. On SQLite nobody else writes anyway."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")


class Database:
    """An engine and its two kinds of transaction."""

    def __init__(self, url: str, limits: DatabaseArgs | None = None) -> None:
        """Opens nothing yet. Raises ConfigurationError when the address cannot work."""
        self.url = _checked(url)
        self.limits = limits or DatabaseArgs()
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._told_at = -math.inf
        self._is_known = False
        self.newer_schema = ""
        """What to tell operators when a newer version has migrated the database under this process; empty otherwise."""
        self._connector = None if self.is_sqlite else postgresql.Connector(self.url, self.limits)
        self.engine = self._engine()

    def _engine(self) -> sa.Engine:
        if self._connector is None:
            return _sqlite_engine(self.url)
        return postgresql.engine(self.url, self._connector, self.limits)

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler such as PgBouncer is known to stand between; it carries no notifications."""
        return self._connector is not None and bool(self._connector.is_pooled)

    def listen(self) -> postgresql.Connection:
        """A connection of PostgreSQL's own that hears of every commit, unless `is_pooled`. Raises psycopg.Error."""
        if self._connector is None:
            raise TypeError("SQLite has nothing to listen to")
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
        """A transaction that reads. Raises StoreUnavailable when the database is away, and DatabaseTooNew."""
        with self.translated_errors(), self.engine.connect() as connection, connection.begin():
            self._refuse_a_newer(connection)
            yield connection

    @contextmanager
    def write(self, *topics: Topic, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction that writes, and wakes those who watch `topics` when it commits.

        `durable`: on disk before it returns, which is owed for whatever a client was promised. A heartbeat is not.
        """
        with self.translated_errors(), self.engine.connect() as connection:
            if self.is_sqlite:
                cursor = connection.connection.cursor()
                cursor.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with connection.execution_options(write=True).begin():
                self._refuse_a_newer(connection)
                if not self.is_sqlite:
                    if not durable:
                        connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                    for topic in topics:
                        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, topic)))
                yield connection

    def migrate(self) -> None:
        """Run the migrations under a lock that every process takes, so that the second finds nothing to do.

        Raises StoreUnavailable, and DatabaseTooNew: then every later call raises it, too, until the database is one that we know.
        """
        alembic = revisions.load_alembic()
        config = alembic.config.Config()
        config.set_main_option("script_location", "serve_app.store:migrations")
        config.set_main_option("path_separator", "os")
        self._is_known = False
        with self.write() as connection:  # on SQLite, that is the lock
            config.attributes["connection"] = connection
            with self._patient(connection):
                alembic.command.upgrade(config, "head")

    @contextmanager
    def _patient(self, connection: sa.Connection) -> Iterator[None]:
        """An index over many jobs takes its time, and so does the migration of another process that is waited for."""
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
        """Set `newer_schema` when another process's version has migrated the database since this process began."""
        with self.read() as connection:
            unknown = revisions.unknown(connection)
        self.newer_schema = unknown and (
            f"a newer version of Sophia has migrated the database (revision {unknown}) while this process ran; "
            "it goes on, but cannot be started again: end the update"
        )

    def _refuse_a_newer(self, connection: sa.Connection) -> None:
        """Asked by each process until the tables are there and known; those of a newer version are never touched."""
        if self._is_known:
            return
        if unknown := revisions.unknown(connection):
            raise DatabaseTooNew(
                f"A newer version of Sophia has migrated the database (to revision {unknown}, which this version does not "
                "know). Run that version, or restore the backup that was made before the update"
            )
        self._is_known = revisions.current(connection) != ()

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """The driver's errors become ours here. A constraint that is violated stays what it is: that is for the caller."""
        try:
            yield
        except sa.exc.IntegrityError:
            raise
        except (DBAPIError, TimeoutError, psycopg.Error, sqlite3.Error) as error:
            self._tell(error)
            raise StoreUnavailable(f"The job database did not answer ({_cause(error)}); try again shortly") from None

    def _tell(self, error: Exception) -> None:
        """Log what the driver said, which names addresses, at most once a minute; never the password."""
        if time.monotonic() < self._told_at + _TELL_EVERY_S:
            return
        self._told_at = time.monotonic()
        said = str(getattr(error, "orig", None) or error).strip()
        password = str(self.url.password or "")
        logger.warning("the job database did not answer: %s", said.replace(password, "***") if password else said)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _checked(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:  # its text shows the URL, and so a password
        raise ConfigurationError("database_url is not a URL such as postgresql://user@host/name") from None
    if "@" in (
        parsed.host or ""
    ):  # of a password; the driver would look up what comes after it, and name it in its errors
        raise ConfigurationError(
            "database_url: a user name or password with '@', ':', '/' or '%' in it must be percent-encoded ('@' is %40)"
        )
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigurationError(
            f"database_url: Sophia stores jobs in sqlite or postgresql, not in {parsed.drivername!r}"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("database_url: SQLite needs a file, since several processes share it")
    return parsed if parsed.get_backend_name() == "sqlite" else parsed.set(drivername="postgresql+psycopg")


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, pool_size=8)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")  # a job takes its webhook deliveries with it

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # IMMEDIATE: a write that began as a read cannot wait for a lock, it fails at once
        writes = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _cause(error: Exception) -> str:
    """What is wrong with the database, in words that anybody may read: no address, no user, no password."""
    text = str(getattr(error, "orig", None) or error).lower()
    return next((words for sign, words in _CAUSES if sign in text), "the log of the process says why")
