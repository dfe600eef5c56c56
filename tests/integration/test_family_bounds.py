"""What a client of a foreign API may cost: sizes of answers and errors, parsing of bodies, and limits that count calls."""

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve_app.api.compat.acestep import results
from serve_app.api.compat.mcp import call_key
from serve_app.jobs import new_id
from tests.support.helpers import eventually
from tests.support.running import Service, running

MANY = {f"x{number}": 1 for number in range(5000)}
CHAT = {"messages": [{"role": "user", "content": "warm piano"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/fal/queue/fal-ai/ace-step": {"prompt": "x"},
    "/replicate/v1/models/visoar/ace-step/predictions": {"input": {"prompt": "x"}},
    "/v2/ace-step/run": {"input": {"prompt": "x"}},
    "/v1/audio/speech": {"input": "x", "voice": ""},
    "/v1/sound-generation": {"text": "x"},
    "/v1/chat/completions": CHAT,
    "/elevenlabs/v1/music": {"prompt": "x"},
    "/release_task": {"prompt": "x"},
}
"""A good body by path, for every family whose routes make songs."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a worker, in which one upload and one waiting call use up their limits."""
    limits: dict[str, Any] = {"api": {"waits_per_key": 1}, "inputs": {"uploads_per_key": 1}}
    with running(tmp_path_factory.mktemp("bounds"), workers=0, **limits) as service:
        yield service


def with_fields(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The good body of a path with more fields of its song."""
    body = BODIES[path]
    return {"input": {**body["input"], **fields}} if isinstance(body.get("input"), dict) else {**body, **fields}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("fields", [MANY, {"lora": [{"scale": "x"}] * 3000}], ids=["fields", "list"])
def test_an_error_is_bounded_in_every_family(service: Service, path: str, fields: dict[str, Any]) -> None:
    """Thousands of wrong fields, or wrong entries of one field, are refused or ignored in a short answer."""
    answer = service.client.post(path, json=with_fields(path, fields))

    assert 200 <= answer.status_code < 500
    assert len(answer.content) < 30_000


def test_ignored_fields_of_a_chat_stay_few_words(tmp_path: Any) -> None:
    """The warning of a job names the first of many ignored fields, and each of them by its first characters."""
    with running(tmp_path) as service:
        unknown = {f"x{number}{'y' * 5000}": 1 for number in range(100)}
        answer = service.client.post("/v1/chat/completions", json={**CHAT, **unknown, "audio_config": {"duration": 1}})
        [job] = service.client.get("/v1/jobs").json()["jobs"]

    assert answer.status_code == 200
    assert len(job["warnings"][0]) < 4000
    assert job["warnings"][0].endswith(" and 70 more.")


@pytest.mark.parametrize("path", ["/v1/chat/completions"])
def test_only_recordings_make_a_body_of_json_large(service: Service, path: str) -> None:
    """A body of megabytes is parsed only if recordings as base64 make it that large."""
    lists = json.dumps({**CHAT, "seed": [[]] * 1_000_000})
    sound = base64.b64encode(bytes(3_000_000)).decode()
    part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    recording = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}

    refused = service.client.post(path, content=lists, headers={"Content-Type": "application/json"})
    read = service.client.post(path, json=recording)

    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert "Without its recordings" in refused.json()["detail"]
    assert read.json()["error"]["code"] != "body_too_large"


def test_recordings_for_ace_step_count_as_uploads_while_they_come(service: Service) -> None:
    """A second large body is refused before it is read, as on the native routes."""
    head = "POST /release_task HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    url = httpx.URL(service.url)
    with socket.create_connection((url.host, url.port)) as first:
        first.sendall(f"{head}Content-Length: 5000000\r\n\r\n--b\r\n".encode())
        song = {"src_audio": ("a.wav", bytes(2_000_000))}

        def is_refused() -> bool:
            answer = service.client.post("/release_task", data={"prompt": "x"}, files=song)
            return answer.status_code == 429

        assert eventually(is_refused)


def test_a_task_is_answered_once_and_long_answers_end(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is asked for again and again has one row; results that are too long together look unfinished."""
    tasks = [service.submit(seed=seed)["id"] for seed in (1, 2)]
    for task in tasks:
        service.client.post(f"/v1/jobs/{task}/cancel")

    monkeypatch.setattr(results, "_MOST_TEXT", 10)
    rows = service.client.post("/query_result", json={"task_id_list": [tasks[0]] * 50 + tasks}).json()["data"]

    assert [(row["task_id"], row["status"]) for row in rows] == [(tasks[0], 2), (tasks[1], 0)]
    assert rows[1]["result"] == "[]"
    assert "ask again" in rows[1]["progress_text"]


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("/v1/audio/speech", {"input": "x", "voice": "", "max_new_tokens": 10**400}, "max_new_tokens"),
        ("/v1/audio/speech", {"input": "x", "voice": "", "max_new_tokens": True}, "max_new_tokens"),
        ("/release_task", {"task_type": "complete", "track_classes": 5}, ""),
        ("/v1/music/generations", {"prompt": "x", "tags": 5}, "tags"),
        ("/v1/music/generations", {"prompt": ["x"], "tags": "y"}, "prompt"),
    ],
)
def test_odd_values_are_refused_by_name(service: Service, path: str, fields: dict[str, Any], field: str) -> None:
    """A value that no song can have is an error of the client's."""
    answer = service.client.post(path, json=fields)

    assert 400 <= answer.status_code < 500, answer.text
    assert field in answer.text


def test_a_submission_that_waits_for_nothing_is_no_waiting_call(service: Service) -> None:
    """While a caller's waiting calls use up their limit, its queues still take jobs."""
    with pytest.raises(httpx.TimeoutException):
        service.client.post("/v1/music", json={"prompt": "waits"}, timeout=0.5)
    with service.client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as waiting:
        answer = service.client.post("/fal/queue/fal-ai/ace-step", json={"prompt": "queued"})
        full = service.client.post("/v1/music", json={"prompt": "full"})

    assert (waiting.status_code, answer.status_code, full.status_code) == (200, 200, 429)


def test_calls_of_a_session_have_keys_of_their_own() -> None:
    """Long ids of requests that differ at their end are different calls."""
    session = new_id()

    assert call_key(session, "a" * 160 + "1") != call_key(session, "a" * 160 + "2")
