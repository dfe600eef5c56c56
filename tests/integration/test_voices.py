"""Voices over HTTP: making, changing and deleting them, and songs that name one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from serve_app.background import janitor
from serve_app.store.tables import inputs
from tests.support.downloads import serving_files
from tests.support.failure_codes import provoked
from tests.support.recordings import pcm, recording
from tests.support.retention import KEPT, always
from tests.support.running import SONG, Service, running

JSON = dict[str, Any]
NOBODY = "0" * 64


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Service]:
    """A service without a worker, whose keys may have two voices and fetch from this machine."""
    settings = {"voices_per_key": 2, "allow_private": True}
    with running(tmp_path, workers=0, inputs=settings) as service:
        yield service


def upload(service: Service, seconds: float = 0.5) -> str:
    """The name of an uploaded recording."""
    answer = service.client.post("/v1/inputs", content=recording("wav", seconds))
    assert answer.is_success, answer.text
    return str(answer.json()["name"])


def name_it(service: Service, name: str, source: str) -> httpx.Response:
    return service.client.post("/v1/voices", json={"name": name, "source": source})


def submit(service: Service, **fields: Any) -> httpx.Response:
    return service.client.post("/v1/jobs", json={**SONG, **fields})


def refusal(answer: httpx.Response, field: str) -> str:
    """The message about the one field that is wrong."""
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    (wrong,) = answer.json()["errors"]
    assert wrong["field"] == field
    return str(wrong["message"])


def test_the_voices_of_a_revoked_key_go_with_it(tmp_path: Path) -> None:
    """Then their inputs expire, and a key that later gets the same name has none of them."""
    with running(tmp_path, workers=0) as service:
        service.client.headers["Authorization"] = f"Bearer {service.store.keys.create('studio')}"
        assert name_it(service, "anna", upload(service)).status_code == 201
        deleted = service.store.keys.revoke("studio")
        left = service.store.voices.all("studio")
    assert (deleted, left) == (1, [])


def make_expire(service: Service, *names: str) -> None:
    """Let the time after which unused inputs are deleted have passed for these inputs."""
    ids = [name.removeprefix("input:") for name in names]
    with service.store.database.write() as connection:
        connection.execute(inputs.update().where(inputs.c.sha256.in_(ids)).values(expires_at=sa.literal(1.0)))


def test_a_voice_is_made_listed_changed_and_deleted(closed: Service) -> None:
    """A second recording with the same name replaces the first; a repetition changes nothing."""
    first = upload(closed, 0.5)
    second = upload(closed, 0.6)

    made = name_it(closed, "anna", first)
    repeated = name_it(closed, "anna", first)
    changed = name_it(closed, "anna", second)
    name_it(closed, "Bob", first)
    listed = closed.client.get("/v1/voices").json()["voices"]
    deleted = closed.client.delete(made.headers["location"])
    gone = closed.client.get(made.headers["location"])

    assert [answer.status_code for answer in (made, repeated, changed, deleted, gone)] == [201, 200, 200, 204, 404]
    assert (made.json()["name"], made.json()["input"], made.json()["seconds"]) == ("anna", first, 0.5)
    assert repeated.json() == made.json()
    assert (changed.json()["input"], changed.json()["created_at"]) == (second, made.json()["created_at"])
    assert changed.json()["changed_at"] >= made.json()["changed_at"]
    assert [voice["name"] for voice in listed] == ["Bob", "anna"]
    assert [voice["name"] for voice in closed.client.get("/v1/voices").json()["voices"]] == ["Bob"]
    provoked("not_found", "a voice that was deleted", gone.json()["detail"])


def test_a_voice_can_come_from_an_address_and_from_a_file(closed: Service) -> None:
    """Both become inputs, as in a submission."""
    data = recording("flac")
    with serving_files() as files:
        files.answers["/anna.flac"] = (200, {}, data)
        fetched = name_it(closed, "anna", f"{files.url}/anna.flac").json()
        missing = name_it(closed, "anna", f"{files.url}/else")

    sent = closed.client.post("/v1/voices", data={"name": "bob"}, files={"source": ("bob.flac", data)})

    assert "answered 404" in refusal(missing, "source")
    assert sent.status_code == 201, sent.text
    assert sent.json()["name"] == "bob"
    assert sent.json()["input"] == fetched["input"]
    assert [one["name"] for one in closed.client.get("/v1/inputs").json()["inputs"]] == [fetched["input"]]


def test_a_voice_of_a_song_outlives_the_songs_job(service: Service, song: JSON) -> None:
    """The song is copied: after its job's deletion, another job sings with the voice."""
    job = service.ended(service.submit(**SONG)["id"])

    made = name_it(service, "copied", f"job:{job['id']}")
    deleted = service.client.delete(f"/v1/jobs/{job['id']}")
    sung = service.ended(submit(service, voice="copied").json()["id"])

    assert made.json()["input"] == f"input:{job['audio'][0]['sha256']}"
    assert deleted.status_code == 204
    assert sung["state"] == "succeeded", sung
    assert "has 2 songs" in refusal(name_it(service, "copied", f"job:{song['id']}/2"), "source")


def test_a_song_with_a_missing_file_makes_no_voice(service: Service) -> None:
    """The error names the field."""
    job = service.ended(service.submit(**SONG)["id"])
    service.artifacts.delete([service.store.jobs.get(job["id"]).audio[0].key])

    answer = name_it(service, "lost", f"job:{job['id']}")

    assert "names a song that is missing" in refusal(answer, "source")


def test_a_job_keeps_the_voice_that_it_was_submitted_with(closed: Service) -> None:
    """The job's request names the input, which stays while the job is queued, whatever becomes of the voice."""
    first = upload(closed, 0.5)
    second = upload(closed, 0.6)
    name_it(closed, "anna", first)

    queued = submit(closed, voice="anna").json()
    name_it(closed, "anna", second)
    later = submit(closed, voice="anna").json()
    closed.client.delete("/v1/voices/anna")
    make_expire(closed, first, second)
    janitor.expire(closed.store, closed.artifacts, KEPT, always)

    assert [job["request"]["reference"] for job in (queued, later)] == [first, second]
    assert [job["request"]["voice"] for job in (queued, later)] == [None, None]
    assert closed.job(queued["id"])["request"] == queued["request"]
    for name in (first, second):
        found = closed.store.inputs.get("", name.removeprefix("input:"), even_expired=True)
        assert closed.artifacts.size(found.key) > 0


def test_a_submission_that_is_repeated_finds_its_job_after_the_voice_has_changed(closed: Service) -> None:
    """An idempotency key counts the voice's name; another voice is another request."""
    name_it(closed, "anna", upload(closed, 0.5))
    name_it(closed, "bob", upload(closed, 0.5))
    once = {"Idempotency-Key": "order-1"}

    def sent(voice: str) -> httpx.Response:
        return closed.client.post("/v1/jobs", json={**SONG, "voice": voice}, headers=once)

    first = sent("anna")
    name_it(closed, "anna", upload(closed, 0.6))
    again = sent("anna")
    other = sent("bob")

    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_the_recording_of_a_voice_does_not_expire(closed: Service) -> None:
    """The janitor leaves it, it can be named and listed, and it goes once the voice is deleted."""
    name = upload(closed)
    unnamed = upload(closed, 0.6)
    name_it(closed, "anna", name)
    make_expire(closed, name, unnamed)
    key = closed.store.inputs.get("", name.removeprefix("input:")).key

    janitor.expire(closed.store, closed.artifacts, KEPT, always)
    kept = closed.client.get("/v1/inputs").json()["inputs"]
    job = submit(closed, voice="anna")
    again = submit(closed, reference=name)
    for one in (job, again):
        closed.client.post(f"/v1/jobs/{one.json()['id']}/cancel")
    closed.client.delete("/v1/voices/anna")
    make_expire(closed, name)
    janitor.expire(closed.store, closed.artifacts, KEPT, always)

    assert [one["name"] for one in kept] == [name]
    assert (job.status_code, again.status_code) == (202, 202)
    assert closed.client.get("/v1/inputs").json()["inputs"] == []
    assert key not in {file.key for file in closed.artifacts.list()}


def test_the_recording_of_a_voice_cannot_be_deleted(closed: Service) -> None:
    """The error names the voice; without the voice, the recording can be deleted."""
    name = upload(closed)
    path = f"/v1/inputs/{name.removeprefix('input:')}"
    name_it(closed, "anna", name)

    kept = closed.client.delete(path)
    closed.client.delete("/v1/voices/anna")
    deleted = closed.client.delete(path)

    assert (kept.status_code, kept.json()["code"], deleted.status_code) == (409, "conflict", 204)
    assert "it is the voice 'anna'" in kept.json()["detail"]
    provoked("conflict", "deletion of an input that is a voice", kept.json()["detail"])


def test_a_key_may_have_only_so_many_voices(closed: Service) -> None:
    """A third one gets 429; changing one of the two does not, and /v1/usage tells the limit."""
    name = upload(closed)
    made = [name_it(closed, voice, name) for voice in ("one", "two", "three", "two")]

    usage = closed.client.get("/v1/usage").json()

    assert [answer.status_code for answer in made] == [201, 201, 429, 200]
    assert made[2].json()["code"] == "quota_exceeded"
    assert "inputs.voices_per_key" in made[2].json()["detail"]
    assert (usage["voices"], usage["max_voices"]) == (2, 2)
    provoked("quota_exceeded", "more voices than one API key may have", made[2].json()["detail"])


def test_nobody_else_sees_or_uses_a_voice(tmp_path: Path) -> None:
    """Another key gets 404, an empty list and 422, and may use the same name."""
    with running(tmp_path, workers=0, auth={"mode": "keys"}) as service:
        mine, yours = ({"Authorization": f"Bearer {service.store.keys.create(name)}"} for name in ("mine", "yours"))
        name = service.client.post("/v1/inputs", content=recording("wav"), headers=mine).json()["name"]
        body = {"name": "anna", "source": name}
        made = service.client.post("/v1/voices", json=body, headers=mine)
        seen = service.client.get("/v1/voices/anna", headers=yours)
        deleted = service.client.delete("/v1/voices/anna", headers=yours)
        listed = service.client.get("/v1/voices", headers=yours).json()
        used = service.client.post("/v1/jobs", json={**SONG, "voice": "anna"}, headers=yours)
        theirs = service.client.post("/v1/voices", json=body, headers=yours)
        anonymous = service.client.post("/v1/voices", data={"name": "x"}, files={"source": b"x"})

    assert (made.status_code, seen.status_code, deleted.status_code) == (201, 404, 404)
    assert listed == {"voices": []}
    assert "names no voice of yours" in refusal(used, "voice")
    assert "names no input of yours" in refusal(theirs, "source")
    assert anonymous.status_code == 401


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"voice": "nobody"}, "voice", "names no voice of yours"),
        ({"voice": "../x"}, "voice", "begin with a letter or digit"),
        ({"voice": "anna", "reference": f"input:{NOBODY}"}, "voice", "because the request has a `reference`"),
    ],
)
def test_a_request_with_a_wrong_voice_is_refused(closed: Service, fields: JSON, field: str, says: str) -> None:
    """It is unknown, has a name that none can have, or there is a reference as well."""
    assert says in refusal(submit(closed, **fields), field)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"name": "a b", "source": f"input:{NOBODY}"}, "name", "begin with a letter or digit"),
        ({"name": "anna", "source": f"input:{NOBODY}"}, "source", "names no input of yours"),
        ({"name": "anna", "source": "anna.wav"}, "source", "input:ID"),
        ({"name": "anna"}, "source", "is required"),
        ({"name": "anna", "source": f"input:{NOBODY}", "nmae": "x"}, "nmae", "the fields are name, source"),
    ],
)
def test_a_wrong_voice_is_refused(closed: Service, body: JSON, field: str, says: str) -> None:
    """The error names the field."""
    assert says in refusal(closed.client.post("/v1/voices", json=body), field)


def test_a_silent_recording_is_no_voice(closed: Service) -> None:
    """There is no sound to imitate."""
    silence = pcm(np.zeros((4800, 2), np.float32), 48_000)

    answer = closed.client.post("/v1/voices", data={"name": "anna"}, files={"source": silence})

    assert "silent" in refusal(answer, "source")
    assert closed.client.get("/v1/voices").json() == {"voices": []}


@pytest.mark.parametrize(
    ("parts", "code", "says"),
    [
        ({"source": ("a", b"?")}, "invalid_request", "'name'"),
        ({"name": (None, "anna")}, "invalid_request", "'source'"),
        ({"name": (None, "anna"), "source": (None, "input:1")}, "invalid_request", "a file as its part 'source'"),
        ({"name": (None, "anna"), "source": ("a", b"?")}, "unreadable_audio", "source: "),
        ({"name": (None, "a b"), "source": ("a", recording("wav"))}, "invalid_request", "name: "),
    ],
)
def test_a_multipart_voice_that_is_wrong_is_refused(closed: Service, parts: JSON, code: str, says: str) -> None:
    """The error tells which part."""
    problem = closed.client.post("/v1/voices", files=parts).json()
    assert problem["code"] == code, problem
    assert says in problem["detail"]
