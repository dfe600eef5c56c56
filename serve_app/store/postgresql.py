"""Connections to PostgreSQL: their arguments, and the time limits for a server that stops answering.

The server's own timeouts do not help when the server or the network fails silently. So this module puts a client-side limit on
every connection: those of the pool and the one that listens.
"""

import logging
import threading
import time
from collections.abc import Generator
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from serve_app.config import DatabaseArgs
from serve_app.errors import ConfigurationError

logger = logging.getLogger("ray.serve.sophia")

POOLER: Final = (
    "PostgreSQL is reached through a pooler such as PgBouncer, which delivers no notifications. "
    "Sophia polls instead, and sees changes by other processes within about a second"
)

_KEYWORDS: Final = frozenset(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())
"""The connection parameters that libpq knows."""


class Connection(psycopg.Connection[Any]):
    """A connection that closes itself when the server does not answer a statement in time."""

    answer_s: float | None = None
    """Seconds to wait for each answer. None: no limit."""

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Wait for the server's answer; psycopg calls this. Raises OperationalError when none came within `answer_s`."""
        return super().wait(gen if self.answer_s is None else self._in_time(gen, self.answer_s), *args, **kwargs)

    def _in_time(self, gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        deadline = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # 0 when the socket was not ready within psycopg's interval of 0.1 s
                if not ready and time.monotonic() > deadline:
                    self.close()  # otherwise a late answer would be read as the answer to the next statement
                    raise psycopg.OperationalError(f"timeout: the server did not answer within {seconds:g} s")
                wanted = gen.send(ready)
        except StopIteration as ended:
            return ended.value

    def check(self, seconds: float) -> None:
        """Check the connection. Raises psycopg.Error when the server does not answer within `seconds`."""
        usual_s = self.answer_s
        autocommit = self.autocommit
        self.answer_s = seconds
        self.autocommit = True  # outside a transaction, so that there is nothing to roll back
        self.execute("")
        self.autocommit = autocommit
        self.answer_s = usual_s


class Connector:
    """Opens connections to one address."""

    def __init__(self, url: sa.URL, limits: DatabaseArgs) -> None:
        """Raises ConfigurationError when the address has an unknown parameter."""
        self._arguments = arguments(url, limits)
        self._has_options = "options" in url.query
        self._answer_s = limits.answer_s
        self.is_pooled: bool | None = None
        """Whether connections go through a pooler that assigns a server connection per transaction. None until it is known."""
        self._silent = False
        self._trying = threading.Lock()

    def connect(self, **more: Any) -> Connection:
        """A new connection, with `more` arguments for psycopg. Raises psycopg.Error.

        After an attempt that got no answer, only one caller at a time retries and the others fail at once. Otherwise all threads of
        the process would wait for the same silent server, and block further requests.
        """
        alone = self._silent
        if alone and not self._trying.acquire(blocking=False):
            raise psycopg.errors.ConnectionTimeout(
                "timeout: the server did not answer recently, and another thread is retrying"
            )
        try:
            connection = self._open(more)
        except psycopg.Error as error:
            self._silent = isinstance(error, psycopg.errors.ConnectionTimeout)
            raise
        finally:
            if alone:
                self._trying.release()
        self._silent = False
        return connection

    def _open(self, more: dict[str, Any]) -> Connection:
        tried = dict(self._arguments)
        try:
            connection = Connection.connect(**tried, **more)
        except psycopg.OperationalError as error:
            if self._has_options or "options" not in tried or "unsupported startup parameter" not in str(error):
                raise
            self._without_session()
            connection = Connection.connect(**self._arguments, **more)
        connection.answer_s = self._answer_s
        if self.is_pooled is None:
            if _is_pooled(connection):  # a pooler that accepts `options`, or is configured to ignore them
                self._without_session()
            else:
                self.is_pooled = False
        if self.is_pooled:
            connection.prepare_threshold = self._arguments["prepare_threshold"]
        return connection

    def _without_session(self) -> None:
        """Drop session limits and prepared statements: behind a pooler, the next transaction may use another server connection."""
        self._arguments.setdefault("prepare_threshold", None)
        if not self._has_options:
            self._arguments.pop("options", None)
        if not self.is_pooled:
            logger.warning(POOLER)
        self.is_pooled = True


def arguments(url: sa.URL, limits: DatabaseArgs) -> dict[str, Any]:
    """The arguments of `psycopg.connect` for an address. Parameters in the address override Sophia's defaults.

    Raises ConfigurationError when the address has an unknown parameter.
    """
    _, given = url.get_dialect()().create_connect_args(url)
    for name, value in given.items():
        if name not in _KEYWORDS | {"prepare_threshold"}:
            raise ConfigurationError(f"database_url: {name!r} is not a connection parameter of PostgreSQL. Remove it")
        if isinstance(value, tuple):
            raise ConfigurationError(
                f"database_url: the connection parameter {name!r} is given twice. Remove one of them"
            )
    ours: dict[str, Any] = {
        "connect_timeout": limits.connect_s,
        "application_name": "sophia",
        # Ends the connection to a peer that acknowledges no packets. `answer_s` covers a peer that does but sends no answer.
        "tcp_user_timeout": round(limits.silent_s * 2000),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    both = {**ours, **given}
    both["options"] = f"{_session(limits)} {given.get('options', '')}".strip()
    if "prepare_threshold" in given:
        both["prepare_threshold"] = _threshold(given["prepare_threshold"])
    return both


def _is_pooled(connection: Connection) -> bool:
    """Whether a pooler is in between. A pooler reports a made-up process id, because the server's changes with each transaction."""
    usual = connection.autocommit
    connection.autocommit = True
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    connection.autocommit = usual
    return row is None or row[0] != connection.info.backend_pid


def _time_limits(limits: DatabaseArgs) -> dict[str, str]:
    return {
        "statement_timeout": f"{limits.statement_s:g}s",
        "lock_timeout": f"{limits.statement_s:g}s",
        "idle_in_transaction_session_timeout": f"{limits.answer_s:g}s",
    }


def _session(limits: DatabaseArgs) -> str:
    """The server-side limits. With them the server drops a vanished client and releases its locks."""
    settings = {
        **_time_limits(limits),
        "tcp_user_timeout": f"{limits.answer_s:g}s",
        "tcp_keepalives_idle": "10s",
        "tcp_keepalives_interval": "5s",
        "tcp_keepalives_count": "3",
    }
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _threshold(text: str) -> int | None:
    if text.lower() in ("", "none"):
        return None
    if not text.isdecimal():
        raise ConfigurationError(
            "database_url: prepare_threshold must be a whole number, or none to prepare no statements"
        )
    return int(text)


def engine(url: sa.URL, connector: Connector, limits: DatabaseArgs) -> sa.Engine:
    """A pool that checks each connection before use."""
    made = sa.create_engine(
        url,
        creator=connector.connect,
        pool_size=limits.pool_size,
        max_overflow=limits.pool_overflow,
        pool_timeout=limits.statement_s,
    )

    each = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _time_limits(limits).items())

    @sa.event.listens_for(made, "begin")
    def _limit(connection: sa.Connection) -> None:
        if connector.is_pooled:  # this transaction may use another server connection than the last one
            connection.exec_driver_sql(f"SELECT {each}")

    @sa.event.listens_for(made, "checkout")
    def _check(connection: Connection, *_: Any) -> None:
        try:
            connection.check(limits.silent_s)
        except psycopg.Error:  # the other connections of the same age have failed, too, so the pool replaces them all
            raise sa.exc.InvalidatePoolError from None

    return made
