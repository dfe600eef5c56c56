"""What API clients depend on: errors of bounded size, HEAD, ranges, keys and passwords."""

import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.errors import ConfigurationError, StoreUnavailable
from serve_app.store import Store
from serve_app.store.jobs import JobStore
from tests.support.helpers import eventually, quickest_s
from tests.support.running import Service, running


@pytest.mark.fault("B7")
@pytest.mark.parametrize("field", ["keyscale", "timesignature", "bpm", "format", "vocal_language", "seed"])
def test_a_huge_value_costs_no_more_than_its_reading(service: Service, field: str) -> None:
    """Half a megabyte of spaces in any field is refused about as fast as a prompt of that size."""
    spaces = " " * 500_000

    def send(body: dict[str, str]) -> httpx.Response:
        return service.client.post("/v1/jobs", json=body)

    prompt_s = quickest_s(lambda: send({"prompt": spaces}))
    field_s = quickest_s(lambda: send({"prompt": "x", field: f"C{spaces}x"}))
    answer = send({"prompt": "x", field: f"C{spaces}x"})

    assert answer.status_code == 422
    assert len(answer.content) < 5_000
    assert field_s < 50 * prompt_s


@pytest.mark.fault("C7")
def test_head_is_answered_wherever_there_is_get(service: Service) -> None:
    """HEAD on a probe or route returns what GET returns, without a body."""
    for path in ("/ping", "/healthz", "/readyz", "/v1/health", "/v1/jobs", "/v1/models", "/docs"):
        answer = service.client.head(path)
        assert (path, answer.status_code, answer.content) == (path, 200, b"")


@pytest.mark.fault("C7")
def test_ranges_are_as_the_standard_says(service: Service) -> None:
    """A range that covers the whole file gets 206, and the error for a range beyond its end contains the file's size."""
    job = service.ended(service.submit()["id"])
    url = job["audio"][0]["url"]
    size = job["audio"][0]["bytes"]

    whole = service.client.get(url, headers={"range": "bytes=0-"})
    outside = service.client.get(url, headers={"range": f"bytes={size}-"})

    assert (whole.status_code, whole.headers["content-range"]) == (206, f"bytes 0-{size - 1}/{size}")
    assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{size}")


@pytest.mark.fault("C7")
@pytest.mark.parametrize("prefer", ["respond-async, wait=30", 'Wait = "30"', "handling=lenient;x, WAIT=30"])
def test_the_preference_to_wait_is_read_in_every_spelling(service: Service, prefer: str) -> None:
    """The `wait` preference is found among others, in quotes, with spaces, and in any case."""
    answer = service.client.post("/v1/jobs", json={"prompt": "x", "duration": 1}, headers={"prefer": prefer})

    assert answer.headers["preference-applied"] == "wait=30"


@pytest.mark.fault("C7")
def test_a_compressed_body_is_refused_by_name(service: Service) -> None:
    """A compressed body gets 415 with the supported encoding, not an error about malformed JSON."""
    headers = {"content-encoding": "gzip", "content-type": "application/json"}

    answer = service.client.post("/v1/jobs", content=b"\x1f\x8b", headers=headers)

    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")


@pytest.mark.fault("B1", "B2")
def test_beyond_loopback_no_key_opens_nothing(tmp_path: Path) -> None:
    """While no key exists, every route but the probes answers 401 and explains how to create one."""
    with running(tmp_path, keys_needed=True) as service:
        closed = service.client.get("/v1/jobs")
        key = service.store.keys.create("studio")
        headers = {"Authorization": f"Bearer {key}"}
        eventually(lambda: service.client.get("/v1/jobs", headers=headers).status_code == 200)
        service.store.keys.revoke("studio")
        eventually(lambda: service.client.get("/v1/jobs", headers=headers).status_code == 401)

        assert (closed.status_code, "sophia keys create" in closed.json()["detail"]) == (401, True)
        assert service.client.get("/v1/jobs").status_code == 401
        assert service.client.get("/ping").status_code == 200
        assert service.client.get("/healthz").status_code == 200


@pytest.mark.fault("B11", "E18")
def test_no_error_contains_the_databases_address() -> None:
    """Errors about the database contain the cause but no host, user or password."""
    store = Store("postgresql://sophia:hunter2@db.internal.invalid:1/music")

    with pytest.raises(StoreUnavailable) as told:
        store.backlog.counts()

    for secret in ("hunter2", "db.internal", "sophia", "music"):
        assert secret not in told.value.message
    store.close()


@pytest.mark.fault("E18")
def test_a_password_that_is_not_encoded_is_refused_without_being_shown() -> None:
    """A database URL with an unencoded @ in its password is refused, because drivers show the text after the @ as a host."""
    with pytest.raises(ConfigurationError, match="%40") as told:
        Store("postgresql://me:hunter@2secret@127.0.0.1/x")

    assert "2secret" not in told.value.message


@pytest.mark.fault("A8")
def test_a_caller_who_leaves_during_the_insert_leaves_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the caller disconnects while the job is inserted, the insert finishes and the job is cancelled after the grace."""
    with running(tmp_path, workers=0, api={"leave_grace_s": 0}) as service:
        inserting = threading.Event()
        left = threading.Event()
        insert = JobStore.submit

        def slow(*arguments: Any, **named: Any) -> Any:
            inserting.set()
            left.wait(30)
            return insert(*arguments, **named)

        monkeypatch.setattr(JobStore, "submit", slow)
        leaving = threading.Thread(target=_leave, args=(service.url, inserting))
        leaving.start()
        leaving.join()
        left.set()

        [job] = eventually(lambda: service.client.get("/v1/jobs").json()["jobs"])
        assert eventually(lambda: service.job(job["id"])["state"] == "cancelled")


def _leave(url: str, inserting: threading.Event) -> None:
    """Request a song, and disconnect while its job is being inserted."""
    address = httpx.URL(url)
    body = b'{"prompt": "x"}'
    head = (
        f"POST /v1/music HTTP/1.1\r\nHost: {address.host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        assert inserting.wait(30)
