"""A PostgreSQL that goes silent without closing connections: no request hangs, and everything works once the network is back."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from serve_app.config import DatabaseArgs
from serve_app.errors import StoreUnavailable
from serve_app.store import Store, notifications
from serve_app.store.database import MIGRATION_LOCK
from tests.support.helpers import eventually
from tests.support.running import running, simulated
from tests.support.wires import Wire, wire

LIMITS = DatabaseArgs(connect_s=5, statement_s=4, silent_s=4)


@pytest.fixture
def wired(postgresql_url: str) -> Iterator[tuple[Wire, str]]:
    """An empty PostgreSQL database behind a proxy, and its address through the proxy."""
    with wire(postgresql_url) as found:
        yield found


def _unavailable(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except StoreUnavailable:
        return True
    return False


@pytest.mark.fault("B5", "E10")
def test_a_statement_under_way_is_given_up_when_the_server_goes_silent(wired: tuple[Wire, str]) -> None:
    """A statement on a silent connection fails as "database unavailable"; the next succeeds once the network is back."""
    line, url = wired
    store = Store(url, LIMITS)
    store.migrate()
    under_way = threading.Event()

    def ask() -> None:
        with store.database.read() as connection:
            connection.exec_driver_sql("SELECT 1")
            under_way.set()
            connection.exec_driver_sql("SELECT pg_sleep(0.5)")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_unavailable, ask)
        under_way.wait()
        line.cut()
        assert first.result(30)
        assert _unavailable(store.backlog.counts)
        line.mend()

    assert store.backlog.counts()["queued"] == 0
    store.close()


@pytest.mark.fault("B5")
def test_every_request_is_answered_while_the_database_is_silent(wired: tuple[Wire, str], tmp_path: Path) -> None:
    """Forty requests at once, on old and new connections, each get a 503 before the network is back."""
    line, url = wired
    limits: dict[str, Any] = {"database": LIMITS.model_dump(), "api": {"ready_timeout_s": 20}}
    with running(tmp_path, workers=0, database_url=url, **limits) as service:
        service.submit()
        line.cut()
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda _: service.client.get("/v1/jobs", timeout=200), range(40)))
        ready = service.client.get("/readyz", timeout=200)
        line.mend()

        assert {answer.status_code for answer in answers} == {503}
        assert (ready.status_code, "did not answer in time" in ready.json()["reason"]) == (503, True)
        eventually(lambda: service.client.get("/v1/jobs").status_code == 200)


@pytest.mark.fault("B5", "E10")
def test_a_song_is_published_soon_after_its_connections_were_lost(wired: tuple[Wire, str], tmp_path: Path) -> None:
    """A running song is published over new connections after a failover, in its first attempt."""
    line, url = wired
    models = {"m": simulated(step_s=0.1)}
    with running(tmp_path, models, database_url=url, database=LIMITS.model_dump(), queue={"lease_s": 60}) as service:
        job = service.submit(steps=20)
        eventually(lambda: service.job(job["id"])["state"] == "running")
        line.cut()
        line.mend(forget=True)

        assert eventually(lambda: service.client.get(f"/v1/jobs/{job['id']}").status_code == 200)
        ended = service.ended(job["id"])

    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)


@pytest.mark.fault("B5")
def test_who_listens_hears_again_after_its_connection_was_lost(
    wired: tuple[Wire, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener finds a dead connection by probing it, because it sends nothing that could time out."""
    monkeypatch.setattr(notifications, "CHECK_S", 0.5)
    line, url = wired
    store = Store(url, LIMITS)
    store.migrate()
    store.notifications.wait("queued", store.notifications.count("queued"), 20)
    seen = store.notifications.count("revoked")

    line.cut()
    line.mend(forget=True)

    assert store.notifications.wait("revoked", seen, 30)  # it counts the gap as a change
    seen = store.notifications.count("ended")
    with store.database.write("ended"):
        pass
    assert store.notifications.wait("ended", seen, 30)
    store.close()


def test_a_migration_may_wait_longer_than_a_statement(postgresql_url: str) -> None:
    """A process that starts while another builds a large index waits for it without a time limit."""
    store = Store(postgresql_url, LIMITS)
    with psycopg.connect(postgresql_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        migration = pool.submit(store.migrate)
        other.execute("SELECT pg_sleep(%s)", [LIMITS.answer_s + 1])
        other.commit()
        migration.result(30)
    assert store.backlog.counts()["queued"] == 0
    store.close()
