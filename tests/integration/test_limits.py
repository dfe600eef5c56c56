"""Limits per owner and per API process."""

import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serve_app.api.limits import RateLimit
from tests.support.helpers import eventually
from tests.support.running import Service, running
from tests.support.services import cancel, locked, submitted


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
def test_who_asks_too_often_waits_and_nobody_else_does(tmp_path: Path) -> None:
    """Each key has its own rate limit; a 429 answer has Retry-After, and probes are not counted."""
    with running(tmp_path, workers=0, api={"requests_per_s": 0.05, "request_burst": 5}) as service:
        busy = {"Authorization": f"Bearer {service.store.keys.create('busy')}"}
        calm = {"Authorization": f"Bearer {service.store.keys.create('calm')}"}
        eventually(lambda: service.client.get("/v1/jobs").status_code == 401)
        statuses = [service.client.get("/v1/jobs", headers=busy) for _ in range(6)]
        others = service.client.get("/v1/jobs", headers=calm)
        probes = {service.client.get("/ping").status_code for _ in range(20)}

    assert [answer.status_code for answer in statuses] == [200, 200, 200, 200, 200, 429]
    assert 1 <= int(statuses[-1].headers["Retry-After"]) <= 20
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
    with running(tmp_path, workers=0, api={"body_timeout_s": 3}) as service:
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
        job = eventually(lambda: submitted(service, guest))
        others_job = eventually(lambda: submitted(service, other))
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


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/voices"])
def test_a_header_about_the_body_is_sent_once(tmp_path: Path, path: str) -> None:
    """With two content types, the limit of uploads would hold for a body of JSON, which is read into memory."""
    with running(tmp_path) as service:
        headers = [("Content-Type", "application/json"), ("Content-Type", "multipart/form-data; boundary=x")]
        answer = service.client.post(path, content=b"{}" + b" " * 5_000_000, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "content-type was sent 2 times" in answer.json()["detail"]
