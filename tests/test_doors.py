"""The HTTP side's bounds: probes beside work, limits for each owner, who sees what, who may ask."""

import inspect
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from serve_app.api import health
from serve_app.api.jobs import job_routes
from serve_app.config import AppArgs
from serve_app.store.keys import KeyStore
from serve_app.store.workers import WorkerStore
from tests.helpers import eventually
from tests.running import Service, running

# --- Probes beside work ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("B6")
def test_probes_answer_while_every_thread_waits_for_the_database(tmp_path: Path):
    """Sixty cancels wait for a lock; /ping, /healthz and /readyz answer before the first of them."""
    with running(tmp_path, workers=0) as service, ThreadPoolExecutor(60) as clients:
        with locked(service):
            answers = [clients.submit(cancel, service) for _ in range(60)]
            eventually(lambda: working() == service.args.api.threads)
            probes = [service.client.get(path, timeout=10).status_code for path in ("/ping", "/healthz", "/readyz")]
            still_waiting = not any(answer.done() for answer in answers)
        statuses = {answer.result() for answer in answers}

    assert still_waiting
    assert probes == [200, 200, 503]
    assert statuses == {404}


@pytest.mark.fault("B6")
def test_nothing_that_blocks_runs_in_a_shared_thread_pool(tmp_path: Path):
    """Every route and dependency is a coroutine, so that none takes one of the threads that FastAPI shares among all."""
    routers = (job_routes(AppArgs(data_dir=tmp_path)), health.router)

    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    blocking = [call.__name__ for route in routes for call in calls(route.dependant) if not is_coroutine(call)]

    assert routes
    assert blocking == []


@pytest.mark.fault("B6")
def test_a_database_that_says_nothing_is_told_by_readyz_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """/readyz answers 503 in words after its limit, and all who ask meanwhile share one question."""
    silent = threading.Event()
    asked: list[int] = []
    seen = WorkerStore.seen

    def hangs(self: WorkerStore) -> Any:
        if threading.current_thread().name.startswith("probes"):
            asked.append(1)
            silent.wait(60)
        return seen(self)

    with running(tmp_path, api={"ready_timeout_s": 0.5}) as service, ThreadPoolExecutor(5) as clients:
        eventually(lambda: service.client.get("/readyz").status_code == 200)
        monkeypatch.setattr(WorkerStore, "seen", hangs)
        answers = list(clients.map(lambda _: httpx.get(f"{service.url}/readyz", timeout=30), range(5)))
        silent.set()
        eventually(lambda: service.client.get("/readyz").status_code == 200)

    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["reason"] for answer in answers} == {"the job database did not answer within 0.5 s"}
    assert len(asked) < len(answers)


@pytest.mark.fault("B6")
def test_the_keys_are_read_once_for_all_who_ask_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Twenty requests that come while the keys are read take the answer of that one question."""
    asked: list[int] = []
    digests = KeyStore.digests

    def slow(self: KeyStore) -> dict[str, str]:
        asked.append(1)
        time.sleep(1)
        return digests(self)

    monkeypatch.setattr(KeyStore, "digests", slow)
    with running(tmp_path, workers=0) as service, ThreadPoolExecutor(20) as clients:
        statuses = list(clients.map(lambda _: httpx.get(f"{service.url}/v1/jobs", timeout=30).status_code, range(20)))

    assert set(statuses) == {200}
    assert len(asked) == 1


@contextmanager
def locked(service: Service) -> Iterator[None]:
    """A writer of another program holds SQLite's lock."""
    connection = sqlite3.connect(service.args.data_dir / "sophia.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def working() -> int:
    """How many threads the service's calls of the database have taken."""
    return sum(thread.name.startswith("work") for thread in threading.enumerate())


def cancel(service: Service) -> int:
    return httpx.post(f"{service.url}/v1/jobs/{uuid.uuid4()}/cancel", timeout=60).status_code


def calls(dependant: Dependant) -> list[Any]:
    return [dependant.call, *(call for part in dependant.dependencies for call in calls(part))]


def is_coroutine(call: Any) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
