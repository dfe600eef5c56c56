"""How many connections to PostgreSQL the processes hold, against the guide's counts."""

from pathlib import Path

import psycopg
import pytest
from sqlalchemy import QueuePool

from serve_app.artifacts import Artifacts
from serve_app.config import DatabaseArgs, QueueArgs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.worker.worker import Worker
from tests.support.cluster_files import connection_counts
from tests.support.helpers import eventually
from tests.support.running import simulated


@pytest.mark.fault("E23")
def test_a_worker_holds_as_many_connections_as_the_guide_counts(postgresql_url: str, tmp_path: Path) -> None:
    """Neither a worker nor an API process holds more PostgreSQL connections than the guide says."""
    control = Store(postgresql_url)
    control.migrate()
    request = MusicRequest(prompt="piano", model="m", duration=2, seed=1)
    ids = [control.jobs.submit(request, owner="", deadline_s=600, max_attempts=1)[0].id for _ in range(10)]
    before = connections(postgresql_url)
    own = Store(postgresql_url, DatabaseArgs().of_a_worker)
    worker = Worker("m", SimulatedEngine("m", simulated()), own, Artifacts(tmp_path.as_uri()), QueueArgs())
    worker.start()
    eventually(lambda: all(control.jobs.get(job).status.final for job in ids))
    held = connections(postgresql_url) - before
    worker.drain()
    pool = control.database.engine.pool  # as an API process has it
    assert isinstance(pool, QueuePool)
    assert 1 < held <= connection_counts()["worker"]
    assert pool.size() + pool._max_overflow + 1 <= connection_counts()["api"]  # one more listens
    own.close()
    control.close()


def connections(url: str) -> int:
    """Sessions on a database, without the one that counts them."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "select count(*) - 1 from pg_stat_activity where datname = current_database() and backend_type = 'client backend'"
        ).fetchone()
    assert found is not None
    return int(found[0])
