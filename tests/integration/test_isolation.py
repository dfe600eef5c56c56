"""The API stays responsive while its threads, database or keys are busy."""

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from serve_app.api.application import ROUTERS
from serve_app.store.keys import KeyStore
from serve_app.store.workers import WorkerStore
from tests.support.helpers import eventually
from tests.support.running import running
from tests.support.services import cancel, locked


@pytest.mark.fault("B6")
def test_probes_answer_while_every_thread_waits_for_the_database(tmp_path: Path) -> None:
    """/ping, /healthz and /readyz answer while sixty requests wait for a database lock."""
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
def test_nothing_that_blocks_runs_in_a_shared_thread_pool() -> None:
    """Every route and dependency is a coroutine, because FastAPI runs plain functions in one shared thread pool."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    blocking = [call.__name__ for route in routes for call in calls(route.dependant) if not is_coroutine(call)]

    assert routes
    assert blocking == []


@pytest.mark.fault("B6")
def test_readyz_reports_a_silent_database_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/readyz answers 503 with the reason after its timeout, and concurrent requests share one query."""
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
def test_the_keys_are_read_once_for_all_who_ask_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty requests that arrive while the keys are read share that one query."""
    asked: list[int] = []
    digests = KeyStore.digests

    def slow(self: KeyStore) -> dict[str, str]:
        asked.append(1)
        time.sleep(1)
        return digests(self)

    monkeypatch.setattr(KeyStore, "digests", slow)
    monkeypatch.setattr("serve_app.api.key_cache.KEYS_FRESH_S", 600)
    with running(tmp_path, workers=0) as service, ThreadPoolExecutor(20) as clients:
        statuses = list(clients.map(lambda _: httpx.get(f"{service.url}/v1/jobs", timeout=30).status_code, range(20)))

    assert set(statuses) == {200}
    assert len(asked) == 1


def working() -> int:
    """The number of threads that run the service's database calls."""
    return sum(thread.name.startswith("work") for thread in threading.enumerate())


def calls(dependant: Dependant) -> list[Any]:
    return [dependant.call, *(call for part in dependant.dependencies for call in calls(part))]


def is_coroutine(call: Any) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
