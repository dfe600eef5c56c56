"""A database that a newer version of Sophia has migrated: it is refused at the start, reported while running, and left alone."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from serve_app.api.application import create_api
from serve_app.artifacts import Artifacts
from serve_app.config import AppArgs
from serve_app.errors import DatabaseTooNew, LoadError
from serve_app.store import Store, revisions
from serve_app.worker.startup import migrate
from tests.support.helpers import eventually
from tests.support.running import running, simulated

NEWER = "9999"


@contextmanager
def migrated_by_a_newer_version(store: Store) -> Iterator[Callable[[], None]]:
    """Sets the database's revision to one that this version does not know, until the returned function is called."""
    with store.database.read() as connection:
        [ours] = revisions.current(connection)

    def set_revision(revision: str) -> None:
        with store.database.write() as connection:
            connection.execute(sa.text("update alembic_version set version_num = :revision"), {"revision": revision})

    set_revision(NEWER)
    yield lambda: set_revision(ours)
    set_revision(ours)


@pytest.mark.fault("B10")
def test_a_service_on_a_newer_database_answers_503_until_it_fits(database_url: str, tmp_path: Path) -> None:
    """The API answers 503 with the cause while the database is newer, and accepts jobs again on the right one."""
    args = AppArgs.model_validate({"data_dir": tmp_path, "database_url": database_url, "models": {"m": simulated()}})
    operator = Store(database_url)
    operator.migrate()
    api = create_api(args, Store(database_url), Artifacts(args.resolved_artifacts_url), "test")
    with migrated_by_a_newer_version(operator) as restore, TestClient(api, base_url="http://127.0.0.1") as client:
        submitted = client.post("/v1/jobs", json={"prompt": "x"})
        ready = client.get("/readyz")

        assert (submitted.status_code, submitted.json()["code"]) == (503, "database_too_new")
        assert NEWER in submitted.json()["detail"]
        assert "restore the backup" in submitted.json()["detail"]
        assert (ready.status_code, NEWER in ready.json()["reason"]) == (503, True)
        assert client.get("/ping").status_code == 200
        restore()
        eventually(lambda: client.post("/v1/jobs", json={"prompt": "x"}).status_code == 202)
    assert operator.backlog.counts()["queued"] == 1
    operator.close()


@pytest.mark.fault("B10")
def test_a_worker_neither_claims_nor_ends_on_a_newer_database(database_url: str) -> None:
    """A worker on a newer database claims no job and can still be stopped."""
    operator = Store(database_url)
    operator.migrate()
    newcomer = Store(database_url)
    ending = threading.Event()
    outcome: list[Exception] = []

    def start() -> None:
        try:
            migrate(newcomer, ending)
        except LoadError as error:
            outcome.append(error)

    with migrated_by_a_newer_version(operator):
        starting = threading.Thread(target=start)
        starting.start()
        [problem] = eventually(newcomer.supervisor.problems)
        with pytest.raises(DatabaseTooNew):
            newcomer.claims.take("w", "m", 60)
        ending.set()
        starting.join()

    assert NEWER in problem
    assert "The worker was stopped while it waited for the job database" in str(outcome[0])
    operator.close()
    newcomer.close()


@pytest.mark.fault("B10")
def test_a_running_service_reports_a_newer_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During an update, running processes keep working and report that they could not start again."""
    monkeypatch.setattr("serve_app.background.sweeper.METRICS_EVERY_S", 0.1)
    with running(tmp_path) as service:
        service.ended(service.submit()["id"])
        with migrated_by_a_newer_version(service.store):
            eventually(lambda: any(NEWER in notice for notice in service.client.get("/v1/health").json()["notices"]))
            assert service.ended(service.submit()["id"])["state"] == "succeeded"
        eventually(lambda: service.client.get("/v1/health").json()["status"] == "ok")
