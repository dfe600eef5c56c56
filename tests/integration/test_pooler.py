"""PostgreSQL behind PgBouncer in transaction mode, where each transaction may be another server connection's."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from serve_app.store import Store
from tests.support.helpers import eventually
from tests.support.running import running
from tests.support.wires import wire


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(params=["", "ignore_startup_parameters = options"], ids=["refuses-options", "ignores-options"])
def pooled(
    request: pytest.FixtureRequest, postgresql_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of an empty PostgreSQL database through PgBouncer, which refuses or ignores startup options."""
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + os.pathsep + "/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed; apt-get install pgbouncer")
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    folder = tmp_path_factory.mktemp("pgbouncer")
    settings = folder / "pgbouncer.ini"
    with wire(postgresql_url) as (_, behind):
        server = make_url(behind)
        settings.write_text(
            f"[databases]\n{server.database} = host=127.0.0.1 port={server.port} user={server.username}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = 5\n{request.param}\n"
        )
        with (folder / "log").open("w") as log, settings.open() as text:
            user = (
                ["-u", "nobody"] if os.getuid() == 0 else []
            )  # it does not run as root, and nobody cannot enter the folder
            command = [program, *user, f"/proc/self/fd/{text.fileno()}"]
            process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[text.fileno()])
        url = server.set(port=port).render_as_string(hide_password=False)
        try:
            eventually(lambda: _answers(url))
            yield url
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.fault("E15")
def test_everything_works_through_pgbouncer(pooled: str, tmp_path: Path) -> None:
    """Forty submissions and forty health calls at once are answered, the songs are made, and health says what a pooler costs."""
    with running(tmp_path, workers=2, database_url=pooled) as service:
        with ThreadPoolExecutor(20) as pool:
            jobs = list(pool.map(lambda _: service.submit(), range(40)))
            answers = list(pool.map(lambda _: service.client.get("/v1/health"), range(40)))
        states = {service.ended(job["id"])["state"] for job in jobs}

    assert {answer.status_code for answer in answers} == {200}
    assert any("PgBouncer" in told for told in answers[-1].json()["notices"])
    assert states == {"succeeded"}


@pytest.mark.fault("E15")
def test_our_time_limits_hold_in_each_transaction_through_pgbouncer(pooled: str) -> None:
    """The server ends a statement of ours as ever, though the pooler takes no limits for a connection; others' changes are seen."""
    with closing(Store(pooled)) as store:
        store.migrate()
        seen = store.notifications.count("queued")
        with store.database.write() as connection:
            limit = connection.exec_driver_sql("SHOW statement_timeout").scalar_one()

        assert limit == f"{store.database.limits.statement_s:g}s"
        assert store.database.is_pooled
        assert store.notifications.wait("queued", seen, 30)
