"""The database's clock in SQL. It decides on leases and deadlines, so that nodes with different clocks agree."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement


class now(FunctionElement[float]):
    """Seconds since the epoch at the moment of evaluation. For leases: their statement may have waited for a lock."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class statement_time(FunctionElement[float]):
    """Seconds since the epoch at the start of the statement.

    PostgreSQL evaluates `now` again for each row, and therefore reads every row. This is constant, so it can use an index.
    """

    type = sa.Double()
    inherit_cache = True


@compiles(statement_time, "sqlite")
def _sqlite_statement_time(*_: Any, **__: Any) -> str:
    return _sqlite_now()


@compiles(statement_time, "postgresql")
def _postgresql_statement_time(*_: Any, **__: Any) -> str:
    return "extract(epoch from statement_timestamp())::double precision"


class this_hour(FunctionElement[int]):
    """The current hour, as whole hours since the epoch."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(this_hour, "sqlite")
def _sqlite_hour(*_: Any, **__: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 24 AS INTEGER)"


@compiles(this_hour, "postgresql")
def _postgresql_hour(*_: Any, **__: Any) -> str:
    return "floor(extract(epoch from statement_timestamp()) / 3600)::bigint"
