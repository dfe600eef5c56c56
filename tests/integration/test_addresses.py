"""Which parameters an operator may write into a PostgreSQL address."""

import psycopg
import pytest

from serve_app.errors import ConfigurationError
from serve_app.store import Store


def with_parameters(url: str, parameters: str) -> str:
    """The address with additional parameters."""
    return url + ("&" if "?" in url else "?") + parameters


@pytest.mark.fault("E19")
def test_the_addresss_own_options_hold_on_every_connection(postgresql_url: str) -> None:
    """Tables are created in the schema that the address names, and its time limit has precedence over ours."""
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mine")
    options = "options=-csearch_path%3Dmine%20-cstatement_timeout%3D7s"
    store = Store(with_parameters(postgresql_url, options))
    store.migrate()

    with store.database.listen() as listening:
        heard = [listening.execute(f"SHOW {name}").fetchone() for name in ("search_path", "statement_timeout")]
    with store.database.read() as reading:
        read = [reading.exec_driver_sql(f"SHOW {name}").one() for name in ("search_path", "lock_timeout")]
    store.close()
    with psycopg.connect(postgresql_url) as connection:
        schemas = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'jobs'").fetchall()

    assert heard == [("mine",), ("7s",)]
    assert read == [("mine",), ("15s",)]
    assert schemas == [("mine",)]


@pytest.mark.fault("E19")
@pytest.mark.parametrize(("written", "meant"), [("0", 0), ("3", 3), ("none", None)])
def test_prepare_threshold_is_read_as_a_number(postgresql_url: str, written: str, meant: int | None) -> None:
    """prepare_threshold is converted to a number, since psycopg compares it with a count."""
    store = Store(with_parameters(postgresql_url, f"prepare_threshold={written}"))
    store.migrate()

    with store.database.listen() as connection:
        assert connection.prepare_threshold == meant
    store.close()


@pytest.mark.fault("E19")
@pytest.mark.parametrize("name", ["sslmod", "prepare_threshold", "user_password"])
def test_a_parameter_that_cannot_be_meant_is_refused_by_its_name(name: str) -> None:
    """The error names the parameter and no value, which may be a secret."""
    with pytest.raises(ConfigurationError) as refused:
        Store(f"postgresql://sophia@host/sophia?{name}=hunter-two")

    assert name in str(refused.value)
    assert "hunter" not in str(refused.value)
