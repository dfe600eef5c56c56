"""Requests that name recordings: uploads, songs of earlier jobs, addresses, and files beside the request."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from serve_app.store.tables import inputs
from tests.support.downloads import Downloads, serving_files
from tests.support.failure_codes import provoked
from tests.support.recordings import pcm, recording
from tests.support.running import SONG, Service, running

JSON = dict[str, Any]
WAV = recording("wav")
NOBODY = "0" * 64


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a worker that fetches nothing from this machine."""
    with running(tmp_path_factory.mktemp("closed"), workers=0) as service:
        yield service


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a worker that may fetch from this machine."""
    settings = {"allow_private": True, "max_bytes": 500_000, "fetch_timeout_s": 8}
    with running(tmp_path_factory.mktemp("trusting"), workers=0, inputs=settings) as service:
        yield service


@pytest.fixture
def files() -> Iterator[Downloads]:
    """A server of recordings."""
    with serving_files() as server:
        yield server


def upload(service: Service, data: bytes = WAV) -> str:
    """The id of an uploaded recording."""
    answer = service.client.post("/v1/inputs", content=data)
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


def submit(service: Service, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return service.client.post("/v1/jobs", json={**SONG, **fields}, headers=headers or {})


def refusal(answer: httpx.Response, field: str) -> str:
    """The message about the one field that is wrong."""
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    (wrong,) = answer.json()["errors"]
    assert wrong["field"] == field
    return str(wrong["message"])


def test_an_upload_can_be_a_reference_and_stays_while_it_is_needed(closed: Service) -> None:
    """The job's request names it. It cannot be deleted until the job has ended."""
    sha256 = upload(closed, recording("flac"))
    job = submit(closed, reference=f"input:{sha256}").json()
    kept = closed.client.delete(f"/v1/inputs/{sha256}")
    closed.client.post(f"/v1/jobs/{job['id']}/cancel")
    deleted = closed.client.delete(f"/v1/inputs/{sha256}")
    again = closed.client.post(f"/v1/jobs/{job['id']}/retry")
    assert job["request"]["reference"] == f"input:{sha256}"
    assert (kept.status_code, kept.json()["code"], deleted.status_code) == (409, "conflict", 204)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert sha256 in again.json()["detail"]
    provoked("conflict", "deletion of an input that a job needs", kept.json()["detail"])


def test_an_input_that_is_not_there_or_has_expired_is_refused(closed: Service) -> None:
    """The error names the field."""
    sha256 = upload(closed, recording("ogg"))
    with closed.store.database.write() as connection:
        connection.execute(inputs.update().where(inputs.c.sha256 == sha256).values(expires_at=sa.literal(1.0)))
    for name in (f"input:{NOBODY}", f"input:{sha256}"):
        message = refusal(submit(closed, reference=name), "reference")
        assert "names no input of yours" in message
    provoked("invalid_request", "an input that has expired", message)


def test_a_silent_reference_is_refused(closed: Service) -> None:
    """There is no sound to imitate."""
    sha256 = upload(closed, pcm(np.zeros((4800, 2), np.float32), 48_000))
    assert "silent" in refusal(submit(closed, reference=f"input:{sha256}"), "reference")


@pytest.mark.parametrize(
    ("task", "is_refused"),
    [("cover", True), ("cover-nofsq", True), ("extract", True), ("stems", True), ("repaint", False), ("lego", False)],
)
def test_a_silent_source_is_refused_where_it_must_be_heard(closed: Service, task: str, is_refused: bool) -> None:
    """Nothing can be made of it, but something can be put into it or added to it."""
    sha256 = upload(closed, pcm(np.zeros((96_000, 2), np.float32), 48_000))

    answer = submit(closed, source=f"input:{sha256}", task_type=task)

    if is_refused:
        assert "silent" in refusal(answer, "source")
    else:
        assert answer.status_code == 202, answer.text


def test_a_source_needs_a_task_that_changes_it(closed: Service) -> None:
    """text2music takes none."""
    message = refusal(submit(closed, source=f"input:{upload(closed)}"), "source")
    assert "task_type 'text2music'" in message


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"task_type": "cover", "duration": 60}, 2),
        ({"task_type": "repaint", "repaint_start": 0.5, "repaint_end": 1}, 2),
        ({"task_type": "repaint", "extend_before": 1, "extend_after": 3}, 6),
    ],
)
def test_a_song_from_a_source_is_as_long_as_the_source(closed: Service, fields: JSON, seconds: float) -> None:
    """And as what is added to it. The job's request, and so the queue, tells that length, and a warning that another was given."""
    given = {**SONG, "duration": 5, "source": f"input:{upload(closed)}", **fields}
    job = closed.client.post("/v1/jobs", json=given).json()
    repeated = closed.client.post("/v1/jobs", json=job["request"]).json()
    silent = [
        closed.client.post("/v1/jobs", json={**given, "duration": duration}).json()
        for duration in (seconds, "auto", None)
    ]
    assert job["request"]["duration"] == seconds
    assert job["warnings"] == [
        f"duration is ignored: the source, and what is added to it, make a song of {seconds:g} s."
    ]
    assert [(other["warnings"], other["request"]["duration"]) for other in (repeated, *silent)] == [([], seconds)] * 4


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"task_type": "cover", "source": None}, "source", "is required"),
        ({"task_type": "repaint", "repaint_start": 2.5}, "repaint_start", "the source ends at 2 s"),
        ({"task_type": "repaint", "repaint_end": 3}, "repaint_end", "the source ends at 2 s"),
        ({"task_type": "repaint", "extend_after": 599}, "extend_after", "a song of 601 s; it must be from 1 to 600 s"),
    ],
)
def test_a_source_that_does_not_fit_its_task_is_refused(closed: Service, fields: JSON, field: str, says: str) -> None:
    """It is missing, or the named part lies outside of it, or the song would be too long."""
    source = f"input:{upload(closed)}"
    assert says in refusal(submit(closed, **{"source": source, **fields}), field)


@pytest.mark.parametrize("name", ["input:abc", "job:1/0", "file:///etc/passwd", "ftp://example.com/a.wav", "", "a.wav"])
def test_a_name_of_another_form_is_refused(closed: Service, name: str) -> None:
    """The message tells the three forms."""
    message = refusal(submit(closed, reference=name), "reference")
    assert "input:ID" in message
    assert "job:ID/N" in message
    assert "https://" in message


def test_a_song_of_an_earlier_job_can_be_a_reference(service: Service, song: JSON) -> None:
    """By its number, or without one for the first."""
    for name in (f"job:{song['id']}/1", f"job:{song['id']}"):
        answer = submit(service, reference=name)
        assert answer.status_code == 202, answer.text
        assert answer.json()["request"]["reference"] == (name if "/" in name else f"{name}/0")
    assert "has 2 songs, numbered from 0" in refusal(submit(service, reference=f"job:{song['id']}/2"), "reference")


def test_a_job_without_songs_is_no_reference(closed: Service) -> None:
    """It waits, or it does not exist."""
    waiting = submit(closed).json()["id"]
    assert "it is queued" in refusal(submit(closed, reference=f"job:{waiting}"), "reference")
    unknown = "00000000-0000-7000-8000-000000000000"
    assert "names no job of yours" in refusal(submit(closed, reference=f"job:{unknown}/0"), "reference")


def test_one_key_cannot_name_the_recordings_of_another(tmp_path: Path) -> None:
    """Neither uploads nor songs."""
    with running(tmp_path, auth={"mode": "keys"}) as service:
        mine, yours = ({"Authorization": f"Bearer {service.store.keys.create(name)}"} for name in ("mine", "yours"))
        sha256 = service.client.post("/v1/inputs", content=WAV, headers=mine).json()["id"]
        job = service.client.post("/v1/jobs", json=SONG, headers={**mine, "Prefer": "wait=60"}).json()
        assert job["state"] == "succeeded"
        for name in (f"input:{sha256}", f"job:{job['id']}/0"):
            assert "of yours" in refusal(submit(service, yours, reference=name), "reference")
            assert submit(service, mine, reference=name).status_code == 202


def test_an_idempotency_key_counts_the_recording(closed: Service) -> None:
    """The same recording gives the same job, another one 409."""
    first, second = (f"input:{upload(closed, recording('wav', seconds))}" for seconds in (0.5, 0.6))
    once = {"Idempotency-Key": "with a reference".replace(" ", "-")}
    made = submit(closed, once, reference=first)
    again = submit(closed, once, reference=first)
    other = submit(closed, once, reference=second)
    assert again.json()["id"] == made.json()["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


# --- Addresses ------------------------------------------------------------------------------------------------------


def test_an_address_is_fetched_and_replaced(trusting: Service, files: Downloads) -> None:
    """Through redirects, once per submission; the job names an input, which is the same as an upload's."""
    files.answers["/song.wav"] = (200, {}, WAV)
    files.answers["/moved"] = (302, {"location": "/song.wav?signature=1"}, b"")
    files.answers["/song.wav?signature=1"] = (200, {"content-type": "text/html"}, WAV)
    names = [
        submit(trusting, reference=files.url + path).json()["request"]["reference"] for path in ("/song.wav", "/moved")
    ]
    assert names == [f"input:{upload(trusting)}"] * 2
    assert files.asked == ["/song.wav", "/moved", "/song.wav?signature=1"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing", "answered 404"),
        ("/loop", "redirects more than 5 times"),
        ("/elsewhere", "must begin with https:// or http://"),
        ("/large", "inputs.max_bytes"),
        ("/slow", "inputs.fetch_timeout_s"),
        ("/broken", "incomplete"),
    ],
)
def test_an_address_that_gives_no_file_is_refused(trusting: Service, files: Downloads, path: str, says: str) -> None:
    """The error names the field and the reason."""
    files.answers["/loop"] = (302, {"location": "/loop"}, b"")
    files.answers["/elsewhere"] = (302, {"location": "file:///etc/passwd"}, b"")
    files.answers["/large"] = (200, {}, bytes(600_000))
    files.answers["/slow"] = files.hang
    files.answers["/broken"] = (200, {"content-length": "1000"}, b"RIFF")
    assert says in refusal(submit(trusting, reference=files.url + path), "reference")


def test_an_address_that_gives_no_audio_is_refused(trusting: Service, files: Downloads) -> None:
    """The error is that of an upload, and names the field."""
    files.answers["/page"] = (200, {}, b"<html>")
    problem = submit(trusting, reference=f"{files.url}/page").json()
    assert (problem["status"], problem["code"]) == (422, "unreadable_audio")
    assert problem["detail"].startswith("reference: ")


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/a.wav",
        "https://127.0.0.1/a.wav",
        "https://[::1]/a.wav",
        "https://localhost/a.wav",
        "https://2130706433/a.wav",
        "https://169.254.169.254/latest",
        "https://user:password@example.com/a.wav",
        "https://[::1/a",
    ],
)
def test_internal_addresses_are_never_asked(closed: Service, address: str) -> None:
    """Nor plain http."""
    answer = submit(closed, reference=address)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["detail"].startswith("reference: ")


# --- Multipart ------------------------------------------------------------------------------------------------------


def parts(**files: bytes) -> JSON:
    return {
        "request": (None, json.dumps(SONG), "application/json"),
        **{name: (name, data) for name, data in files.items()},
    }


def test_a_recording_can_come_with_its_request(service: Service) -> None:
    """In one multipart body, for a job or for a song at once; it becomes an input."""
    job = service.client.post("/v1/jobs", files=parts(reference=WAV))
    song = service.client.post("/v1/music", files=parts(reference=WAV))
    assert job.status_code == 202, job.text
    assert job.json()["request"]["reference"] == f"input:{upload(service)}"
    assert (song.status_code, song.headers["content-type"]) == (200, "audio/flac")


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ({"reference": ("a", WAV)}, "invalid_request", "'request'"),
        ({"request": (None, "{"), "reference": ("a", WAV)}, "malformed_body", "'request' is not valid JSON"),
        ({"request": (None, "[]")}, "invalid_request", "must be a JSON object"),
        ({"request": (None, '{"duration": 2}')}, "invalid_request", "prompt: is required"),
        ({"request": (None, '{"prompt": "x"}'), "song": ("a", WAV)}, "invalid_request", "'song' is not a known part"),
        ({"request": (None, '{"prompt": "x"}'), "reference": ("a", b"?")}, "unreadable_audio", "reference: "),
        ({"request": (None, '{"prompt": "x"}'), "reference": (None, "input:1")}, "invalid_request", "must be a file"),
        (
            {"request": (None, f'{{"prompt": "x", "reference": "input:{NOBODY}"}}'), "reference": ("a", WAV)},
            "invalid_request",
            "also sent as a file",
        ),
        ({"request": (None, '{"prompt": "x"}'), "source": ("a", WAV)}, "invalid_request", "task_type 'text2music'"),
    ],
)
def test_a_multipart_request_that_is_wrong_is_refused(closed: Service, given: JSON, code: str, says: str) -> None:
    """The error tells which part, or which field in it."""
    problem = closed.client.post("/v1/jobs", files=given).json()
    assert problem["code"] == code, problem
    assert says in problem["detail"]


def test_a_multipart_request_needs_a_key_before_its_body_is_read(tmp_path: Path) -> None:
    """Nobody without a key fills the disk. With a key, the request counts once."""
    limits = {"requests_per_s": 0.01, "request_burst": 1}
    with running(tmp_path, workers=0, auth={"mode": "keys"}, api=limits) as service:
        key = {"Authorization": f"Bearer {service.store.keys.create('me')}"}
        refused = service.client.post("/v1/jobs", files=parts(reference=WAV))
        accepted = service.client.post("/v1/jobs", files=parts(reference=WAV), headers=key)
        too_fast = service.client.post("/v1/jobs", files=parts(reference=WAV), headers=key)
    assert [answer.status_code for answer in (refused, accepted, too_fast)] == [401, 202, 429]
