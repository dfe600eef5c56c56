"""Connections to PostgreSQL: their arguments, and limits on a server that says nothing any more.

A server's own timeouts end nothing when the server, or the way to it, has gone silent. Ours are kept here, on every connection:
those of the pool and the one that listens.
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
    "PostgreSQL is reached through a pooler such as PgBouncer, which carries no notifications: "
    "changes that other processes make are seen within about a second, by asking"
)

_KEYWORDS: Final = frozenset(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())
"""The connection parameters that libpq knows."""


class Connection(psycopg.Connection[Any]):
    """A connection that is given up, and closed, when the server does not answer a statement in time."""

    answer_s: float | None = None
    """Seconds to wait for each answer; None: as long as it takes."""

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Psycopg waits here for whatever the server sends. Raises OperationalError when nothing came in time."""
        return super().wait(gen if self.answer_s is None else self._in_time(gen, self.answer_s), *args, **kwargs)

    def _in_time(self, gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        deadline = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # 0 when the socket was not ready within psycopg's interval of 0.1 s
                if not ready and time.monotonic() > deadline:
                    self.close()  # an answer that comes later would be taken for the next statement's
                    raise psycopg.OperationalError(f"timeout: the server did not answer within {seconds:g} s")
                wanted = gen.send(ready)
        except StopIteration as ended:
            return ended.value

    def check(self, seconds: float) -> None:
        """Ask the server whether it is there. Raises psycopg.Error when it does not answer within `seconds`."""
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
        """Raises ConfigurationError when the address has a parameter that nobody knows."""
        self._arguments = arguments(url, limits)
        self._has_options = "options" in url.query
        self._answer_s = limits.answer_s
        self.is_pooled: bool | None = None
        """Whether a pooler stands between, which hands out server connections by the transaction; None until it is known."""
        self._silent = False
        self._trying = threading.Lock()

    def connect(self, **more: Any) -> Connection:
        """A new connection, with `more` arguments of psycopg's. Raises psycopg.Error.

        After an attempt that got no answer one caller at a time tries again, and the others are refused at once: else all of a
        process's threads would wait for the same silent server, and requests behind them.
        """
        alone = self._silent
        if alone and not self._trying.acquire(blocking=False):
            raise psycopg.errors.ConnectionTimeout("timeout: the server has not answered lately, and is being tried")
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
            if _is_pooled(connection):  # it takes `options`, or is told to ignore them
                self._without_session()
            else:
                self.is_pooled = False
        if self.is_pooled:
            connection.prepare_threshold = self._arguments["prepare_threshold"]
        return connection

    def _without_session(self) -> None:
        """A pooler hands neither our limits nor prepared statements on: another server connection may take the next transaction."""
        self._arguments.setdefault("prepare_threshold", None)
        if not self._has_options:
            self._arguments.pop("options", None)
        if not self.is_pooled:
            logger.warning(POOLER)
        self.is_pooled = True


def arguments(url: sa.URL, limits: DatabaseArgs) -> dict[str, Any]:
    """What `psycopg.connect` takes for an address. What the address itself says goes before what we would say.

    Raises ConfigurationError when it has a parameter that nobody knows.
    """
    _, given = url.get_dialect()().create_connect_args(url)
    for name, value in given.items():
        if name not in _KEYWORDS | {"prepare_threshold"}:
            raise ConfigurationError(f"database_url: PostgreSQL knows no connection parameter {name!r}; leave it out")
        if isinstance(value, tuple):
            raise ConfigurationError(f"database_url: the connection parameter {name!r} is given twice; give it once")
    ours: dict[str, Any] = {
        "connect_timeout": limits.connect_s,
        "application_name": "sophia",
        # A vanished peer acknowledges nothing: the kernel gives up then. One that still acknowledges is `answer_s`' business.
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
    """A pooler tells its clients a process number of its own making, since the server's changes with each transaction."""
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
    """The server's own limits. It, too, lets go of a client that has vanished, and of the locks that it held."""
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
        raise ConfigurationError("database_url: prepare_threshold is a whole number, or none to prepare no statement")
    return int(text)


def engine(url: sa.URL, connector: Connector, limits: DatabaseArgs) -> sa.Engine:
    """A pool of connections, each of which is asked whether it is still there before it is used."""
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
        if connector.is_pooled:  # this transaction's server connection may be another than the last one's
            connection.exec_driver_sql(f"SELECT {each}")

    @sa.event.listens_for(made, "checkout")
    def _check(connection: Connection, *_: Any) -> None:
        try:
            connection.check(limits.silent_s)
        except psycopg.Error:  # the others of its age are no better: they are opened anew, too
            raise sa.exc.InvalidatePoolError from None

    return made
