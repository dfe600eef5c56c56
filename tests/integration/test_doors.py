"""Isolation in the API: probes under load, limits per owner, and what a caller may see and do."""

import inspect
import re
import socket
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from serve_app.api.application import ROUTERS
from serve_app.api.limits import RateLimit
from serve_app.store.keys import KeyStore
from serve_app.store.workers import WorkerStore
from tests.support.helpers import eventually
from tests.support.running import Service, running, simulated

# --- Probes beside work ---------------------------------------------------------------------------------------------------


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
def test_a_database_that_says_nothing_is_told_by_readyz_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# --- Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B8")
def test_one_waiter_too_many_is_refused_before_its_job_is_made(tmp_path: Path) -> None:
    """A waiting request beyond `api.waits_per_key` gets 429 with Retry-After; other requests and probes are answered."""
    with running(tmp_path, workers=0, api={"waits_per_key": 3}) as service, ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(submit, service, wait_s=30) for _ in range(3)]
        eventually(lambda: service.client.get("/v1/usage").json()["queued_jobs"] == 3)
        refused = submit(service, wait_s=30)
        song = httpx.post(f"{service.url}/v1/music", json={"prompt": "x"}, timeout=30)
        ordinary = submit(service, wait_s=0)
        probe = service.client.get("/ping")
        for job in service.client.get("/v1/jobs").json()["jobs"]:
            service.client.post(f"/v1/jobs/{job['id']}/cancel")
        ended = [answer.result().status_code for answer in waiting]

    assert (refused.status_code, refused.json()["code"], song.status_code) == (429, "too_many_requests", 429)
    assert "api.waits_per_key" in refused.json()["detail"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert (ordinary.status_code, probe.status_code, ended) == (202, 200, [200, 200, 200])


@pytest.mark.fault("B8")
def test_one_event_stream_too_many_is_refused_and_a_closed_one_makes_room(tmp_path: Path) -> None:
    """An event stream beyond `api.streams_per_key` gets 429 until another stream is closed."""
    with running(tmp_path, workers=0, api={"streams_per_key": 2}) as service:
        path = f"{service.url}/v1/jobs/{service.submit()['id']}/events"
        with httpx.stream("GET", path) as first:
            lines_of_first = first.iter_lines()
            next(lines_of_first)
            with httpx.stream("GET", path) as second:
                lines_of_second = second.iter_lines()
                next(lines_of_second)
                refused = httpx.get(path)
            eventually(lambda: _opens(path))

    assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
    assert "api.streams_per_key" in refused.json()["detail"]


@pytest.mark.fault("B8")
def test_who_asks_too_often_waits_a_second_and_nobody_else_does(tmp_path: Path) -> None:
    """Each key has its own rate limit; a 429 answer has Retry-After, and probes are not counted."""
    with running(tmp_path, workers=0, api={"requests_per_s": 0.5, "request_burst": 5}) as service:
        busy = {"Authorization": f"Bearer {service.store.keys.create('busy')}"}
        calm = {"Authorization": f"Bearer {service.store.keys.create('calm')}"}
        eventually(lambda: service.client.get("/v1/jobs").status_code == 401)
        statuses = [service.client.get("/v1/jobs", headers=busy) for _ in range(6)]
        others = service.client.get("/v1/jobs", headers=calm)
        probes = {service.client.get("/ping").status_code for _ in range(20)}

    assert [answer.status_code for answer in statuses] == [200, 200, 200, 200, 200, 429]
    assert 1 <= int(statuses[-1].headers["Retry-After"]) <= 2
    assert (others.status_code, probes) == (200, {200})


@pytest.mark.fault("B8")
def test_a_full_process_refuses_work_and_answers_probes(tmp_path: Path) -> None:
    """While nine tenths of `api.max_ongoing` requests are running, further requests get 429 and probes are answered."""
    with running(tmp_path, workers=0, api={"max_ongoing": 20}) as service, ThreadPoolExecutor(20) as clients:
        with locked(service):
            answers = [clients.submit(cancel, service) for _ in range(20)]
            eventually(lambda: sum(answer.done() for answer in answers) >= 2)
            ping = service.client.get("/ping")
        statuses = Counter(answer.result() for answer in answers)

    assert ping.status_code == 200
    assert statuses == {404: 18, 429: 2}


@pytest.mark.fault("B8")
def test_a_body_that_does_not_come_gives_its_place_back(tmp_path: Path) -> None:
    """A client that sends its body byte by byte, with or without a key, gets 408 after `api.body_timeout_s`."""
    with running(tmp_path, workers=0, api={"body_timeout_s": 0.5}) as service:
        host = service.client.base_url.host
        port = service.client.base_url.port
        with socket.create_connection((host, port or 80), timeout=30) as connection:
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            connection.sendall(f"{head}\r\n{{".encode())
            answer = connection.makefile("rb").read().decode()
        prompt = service.client.post("/v1/jobs", json={"prompt": "x"})

    assert answer.startswith("HTTP/1.1 408 ")
    assert "api.body_timeout_s" in answer
    assert prompt.status_code == 202


@pytest.mark.fault("B4")
def test_who_reads_nothing_has_a_bounded_part_of_the_memory(tmp_path: Path) -> None:
    """A download beyond `api.download_bytes_per_key` unread bytes gets 429 until another download is read or closed."""
    with running(tmp_path, api={"download_bytes_per_key": 30_000_000}) as service:
        path = f"/v1/jobs/{service.ended(service.submit(duration=100, format='wav')['id'])['id']}/audio"
        with listener_that_reads_nothing(service, path):
            refused = eventually(lambda: refusal(service, path))
        whole = eventually(lambda: answer if (answer := service.client.get(path)).status_code == 200 else None)
        again = service.client.get(path)

    assert refused.json()["code"] == "too_many_requests"
    assert "api.download_bytes_per_key" in refused.json()["detail"]
    assert "Retry-After" in refused.headers
    assert len(whole.content) == len(again.content) > 19_000_000


@pytest.mark.fault("B8")
def test_a_rate_forgets_old_callers_instead_of_growing() -> None:
    """The rate limit keeps a bounded number of callers."""
    rate = RateLimit(per_s=1, burst=1)

    for caller in range(30_000):
        rate.take(str(caller))

    assert len(rate._buckets) <= 10_000


@pytest.mark.fault("B11")
def test_streams_and_waits_end_soon_after_their_key_was_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoking a key ends its event streams and waits, even if the job keeps changing; those of other keys continue."""
    monkeypatch.setattr("serve_app.api.key_cache.KEYS_FRESH_S", 0.2)
    with running(tmp_path, workers=0) as service, ThreadPoolExecutor(1) as clients:
        guest = {"Authorization": f"Bearer {service.store.keys.create('guest')}"}
        other = {"Authorization": f"Bearer {service.store.keys.create('other')}"}
        eventually(lambda: service.client.get("/v1/jobs").status_code == 401)
        job = eventually(lambda: _submitted(service, guest))
        others_job = eventually(lambda: _submitted(service, other))
        with follows(service, job, guest) as lines, follows(service, others_job, other) as others_lines:
            waiting = clients.submit(submit, service, wait_s=50, **guest)
            eventually(lambda: service.client.get("/v1/usage", headers=guest).json()["queued_jobs"] == 2)
            service.store.keys.revoke("guest")
            list(lines)  # ends, or the client's timeout does
            waited = waiting.result()
            service.store.jobs.cancel(others_job)
            others_rest = list(others_lines)

    assert (waited.status_code, waited.json()["code"]) == (401, "unauthorized")
    assert "event: done" in others_rest


# --- Who sees what, and who may ask ---------------------------------------------------------------------------------------


@pytest.mark.fault("B11")
def test_health_tells_a_key_nothing_of_others(tmp_path: Path) -> None:
    """A key sees only its own job ids and no costs; an operator's key, or the only key, sees everything."""
    models = {"ace-step": simulated(step_s=5, price_per_hour=1.0)}
    with running(tmp_path, models, auth={"operators": ["boss"]}) as service:
        guest = {"Authorization": f"Bearer {service.store.keys.create('guest')}"}
        job = eventually(lambda: _submitted(service, guest))
        alone = eventually(lambda: busy_worker(service, guest))
        other = {"Authorization": f"Bearer {service.store.keys.create('other')}"}
        boss = {"Authorization": f"Bearer {service.store.keys.create('boss')}"}
        eventually(lambda: service.client.get("/v1/health", headers=boss).status_code == 200)
        seen = {name: health_of(service, key) for name, key in (("guest", guest), ("other", other), ("boss", boss))}
        service.client.post(f"/v1/jobs/{job}/cancel", headers=guest)

    assert alone["workers"][0]["job"] == job
    assert set(alone["costs"]) == {"ace-step"}
    assert {name: view["workers"][0]["job"] for name, view in seen.items()} == {
        "guest": job,
        "other": None,
        "boss": job,
    }
    assert seen["guest"]["costs"] == seen["other"]["costs"] == {}
    assert set(seen["boss"]["costs"]) == {"ace-step"}
    assert job not in str(seen["other"])


@pytest.mark.fault("B11")
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 421, "wrong_host"),
        ({"Host": "evil.example:8000"}, 421, "wrong_host"),
        ({"Origin": "https://evil.example"}, 403, "cross_site"),
        ({"Origin": "null"}, 403, "cross_site"),
        ({"Host": "studio.example"}, 200, None),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200, None),
        ({"Host": "[::1]:8000"}, 200, None),
    ],
)
def test_without_keys_only_this_machine_is_answered(
    tmp_path: Path, headers: dict[str, str], status: int, code: str | None
) -> None:
    """Requests from a web page of another site are refused by their Host or Origin header."""
    with running(tmp_path, workers=0, api={"allowed_hosts": ["studio.example"]}) as service:
        answer = service.client.get("/v1/jobs", headers=headers)
        probe = service.client.get("/ping", headers=headers)

    assert (answer.status_code, answer.json().get("code")) == (status, code)
    assert probe.status_code == 200


@pytest.mark.fault("B11")
def test_with_a_key_every_name_is_answered(tmp_path: Path) -> None:
    """With a key, every Host is answered: behind a reverse proxy it is the proxy's name, and no web page has the key."""
    with running(tmp_path, workers=0) as service:
        key = {"Authorization": f"Bearer {service.store.keys.create('studio')}", "Host": "music.example"}
        answer = service.client.get("/v1/jobs", headers={**key, "Origin": "https://app.example"})

    assert answer.status_code == 200


# --- HTTP -----------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("C7")
def test_an_event_source_that_has_heard_the_end_is_told_to_stop(tmp_path: Path) -> None:
    """A client that reconnects with the last event's id gets 204, which stops an EventSource; without the id it gets the event."""
    with running(tmp_path) as service:
        job = service.ended(service.submit()["id"])["id"]
        path = f"/v1/jobs/{job}/events"
        heard = service.client.get(path)
        last = [line.removeprefix("id: ") for line in heard.text.splitlines() if line.startswith("id: ")][-1]
        again = service.client.get(path, headers={"Last-Event-ID": last})

    assert (heard.status_code, "event: done" in heard.text) == (200, True)
    assert (again.status_code, again.content) == (204, b"")


@pytest.mark.fault("C8")
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_of_the_api_need_no_internet(tmp_path: Path, page: str) -> None:
    """The service itself serves every file that the page links, and the page's policy allows no other source."""
    with running(tmp_path, workers=0) as service:
        answer = service.client.get(page)
        links = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)""", answer.text) + re.findall(
            r"url: '([^']+)'", answer.text
        )
        parts = {link: service.client.get(link).status_code for link in links}

    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert any(link.endswith(".js") for link in links)
    assert "/openapi.json" in links
    assert set(parts.values()) == {200}
    assert not [link for link in links if not link.startswith("/")]


def health_of(service: Service, headers: dict[str, str]) -> dict[str, Any]:
    return dict(service.client.get("/v1/health", headers=headers).json())


def busy_worker(service: Service, headers: dict[str, str]) -> dict[str, Any] | None:
    view = health_of(service, headers)
    return view if view.get("workers") and view["workers"][0]["job"] else None


def _submitted(service: Service, headers: dict[str, str]) -> str | None:
    answer = httpx.post(f"{service.url}/v1/jobs", json={"prompt": "x"}, headers=headers, timeout=30)
    return str(answer.json()["id"]) if answer.status_code == 202 else None


@contextmanager
def listener_that_reads_nothing(service: Service, path: str) -> Iterator[None]:
    """Request a file, read its first bytes, and stop reading."""
    host = service.client.base_url.host
    port = service.client.base_url.port
    with socket.create_connection((host, port or 80)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        connection.recv(100)
        yield


def refusal(service: Service, path: str) -> httpx.Response | None:
    with service.client.stream("GET", path) as answer:
        if answer.status_code != 429:
            return None
        answer.read()
        return answer


def _opens(path: str) -> bool:
    with httpx.stream("GET", path) as stream:
        return stream.status_code == 200


@contextmanager
def follows(service: Service, job: str, headers: dict[str, str]) -> Iterator[Iterator[str]]:
    """The lines of a job's event stream after the first event."""
    path = f"{service.url}/v1/jobs/{job}/events"
    with httpx.stream("GET", path, headers=headers, timeout=httpx.Timeout(30, read=13)) as stream:
        lines = stream.iter_lines()
        next(lines)
        yield lines


def submit(service: Service, wait_s: int, **headers: str) -> httpx.Response:
    headers |= {"Prefer": f"wait={wait_s}"} if wait_s else {}
    return httpx.post(f"{service.url}/v1/jobs", json={"prompt": "x"}, headers=headers, timeout=60)


@contextmanager
def locked(service: Service) -> Iterator[None]:
    """Hold SQLite's write lock, as another program would."""
    connection = sqlite3.connect(service.args.data_dir / "sophia.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def working() -> int:
    """The number of threads that run the service's database calls."""
    return sum(thread.name.startswith("work") for thread in threading.enumerate())


def cancel(service: Service) -> int:
    return httpx.post(f"{service.url}/v1/jobs/{uuid.uuid4()}/cancel", timeout=60).status_code


def calls(dependant: Dependant) -> list[Any]:
    return [dependant.call, *(call for part in dependant.dependencies for call in calls(part))]


def is_coroutine(call: Any) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
