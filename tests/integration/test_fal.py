"""fal's API as its documentation describes it; test_fal_package.py has the real clients."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.errors import BadAdapter
from tests.support.helpers import eventually
from tests.support.queue import claim
from tests.support.running import Service, running
from tests.support.songs import heard
from tests.support.webhooks import SECRET, Receiver

APP = "fal-ai/ace-step"
INPUT = {"tags": "lofi, piano", "lyrics": "[verse]\nRain", "duration": 2, "number_of_steps": 4, "seed": 7}
"""The input of fal's ACE-Step."""


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a worker."""
    with running(tmp_path_factory.mktemp("idle"), workers=0, api={"leave_grace_s": 0.2}) as service:
        yield service


def submit(service: Service, given: Any, app: str = APP, **options: Any) -> dict[str, Any]:
    answer = service.client.post(f"/fal/queue/{app}", json=given, **options)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def status(service: Service, queued: dict[str, Any], logs: int = 0) -> httpx.Response:
    return service.client.get(queued["status_url"], params={"logs": logs})


def test_a_synchronous_call_answers_with_the_song(service: Service) -> None:
    """The answer has the song's address, which decodes, has its length and is not silent; fal's names lead to the job's fields."""
    given = {**INPUT, "scheduler": "heun", "guidance_type": "cfg", "granularity_scale": 10, "format": "flac"}

    answer = service.client.post(f"/fal/run/{APP}", json=given)

    made = answer.json()
    assert heard(httpx.get(made["audio"]["url"]).content) == (2.0, False)
    assert (made["audio"]["content_type"], made["seed"], made["tags"]) == ("audio/flac", 7, "lofi, piano")
    job = service.job(answer.headers["x-fal-request-id"])
    asked = job["request"]
    assert (asked["steps"], asked["sampler"], asked["guidance_mode"]) == (4, "heun", "cfg")
    assert "granularity_scale is ignored: it cannot be honoured." in job["warnings"]


def test_a_prompt_alone_becomes_a_song(service: Service) -> None:
    """prompt-to-audio takes a prompt; `instrumental` means that nothing is sung."""
    given = {"prompt": "piano", "instrumental": True, "duration": 2, "format": "flac"}

    answer = service.client.post(f"/fal/run/{APP}/prompt-to-audio", json=given)

    assert heard(httpx.get(answer.json()["audio"]["url"]).content) == (2.0, False)
    assert answer.json()["lyrics"] == "[Instrumental]"


def test_a_queued_job_runs_to_its_songs(service: Service) -> None:
    """The queue's answers lead to each other: from IN_QUEUE to COMPLETED with figures, and to the result."""
    queued = submit(service, {**INPUT, "num_songs": 2})

    assert queued["status"] in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
    done = eventually(lambda: found if (found := status(service, queued, 1)).status_code == 200 else None).json()
    assert (done["status"], done["metrics"]["inference_time"] > 0, "error" in done) == ("COMPLETED", True, False)
    assert done["logs"][0]["message"].startswith("ace-step is simulated")
    made = service.client.get(done["response_url"])
    assert made.headers["x-fal-request-id"] == queued["request_id"]
    assert len(made.json()["audios"]) == 2


def test_a_waiting_job_has_its_place(idle: Service) -> None:
    """A waiting job is IN_QUEUE with its place, has no result yet, and is cancelled once."""
    first = submit(idle, INPUT)
    second = submit(idle, {**INPUT, "seed": 8}, headers={"x-fal-queue-priority": "low"})

    waiting = status(idle, second)

    assert (waiting.status_code, waiting.json()["status"], waiting.json()["queue_position"]) == (202, "IN_QUEUE", 1)
    assert idle.client.get(first["response_url"]).status_code == 400
    answers = [idle.client.put(each["cancel_url"]) for each in (first, second, second)]
    assert [answer.status_code for answer in answers] == [202, 202, 400]
    assert [answer.json()["status"] for answer in answers[1:]] == ["CANCELLATION_REQUESTED", "ALREADY_COMPLETED"]
    assert idle.job(second["request_id"])["request"]["priority"] == 0


def test_a_job_without_songs_is_completed_with_its_error(idle: Service) -> None:
    """A failed job is COMPLETED with `error`, and its result is that error; so is a cancelled one's."""
    failed = submit(idle, INPUT)
    idle.store.claims.fail(claim(idle.store, model="ace-step"), BadAdapter("it is broken"))
    cancelled = submit(idle, INPUT)
    idle.client.put(cancelled["cancel_url"])

    shown = [status(idle, each).json() for each in (failed, cancelled)]

    assert [each["status"] for each in shown] == ["COMPLETED", "COMPLETED"]
    assert "it is broken" in shown[0]["error"]
    results = [idle.client.get(each["response_url"]) for each in (failed, cancelled)]
    assert [result.status_code for result in results] == [500, 400]
    assert "it is broken" in results[0].json()["detail"]


def test_a_status_stream_ends_with_the_job(service: Service) -> None:
    """Its events have the same views; a warning is in one of them only."""
    queued = submit(service, INPUT)

    stream = service.client.get(f"{queued['status_url']}/stream", params={"logs": 1})

    assert stream.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in stream.text.splitlines() if line]
    assert events[-1]["status"] == "COMPLETED"
    assert len([log for event in events for log in event["logs"]]) == 1


@pytest.mark.parametrize(
    ("given", "loc", "says"),
    [
        ({**INPUT, "duration": 900}, ["body", "duration"], "must be less than or equal to 600"),
        ({**INPUT, "number_of_steps": 0}, ["body", "number_of_steps"], "must be greater than or equal to 1"),
        ({**INPUT, "lyrcs": "x"}, ["body", "lyrcs"], "did you mean 'lyrics'?"),
        ({**INPUT, "tags": " "}, ["body", "tags"], "must not be blank"),
        ({**INPUT, "audio_url": "nonsense"}, ["body", "audio_url"], "https:// address"),
        ({"prompt": "x", "instrumental": "maybe"}, ["body", "instrumental"], "must be true or false"),
    ],
)
def test_bad_input_is_refused_by_the_clients_own_names(idle: Service, given: Any, loc: list[str], says: str) -> None:
    """An error is 422 with one entry for each wrong field."""
    answers = [idle.client.post(f"/fal/{way}/{APP}", json=given) for way in ("run", "queue")]

    for answer in answers:
        [entry] = answer.json()["detail"]
        assert (answer.status_code, entry["loc"], says in entry["msg"]) == (422, loc, True)


def test_what_is_not_there_is_not_found(idle: Service) -> None:
    """Unknown apps, ways to call them, and requests get 404 with a text."""
    nowhere = f"/fal/queue/{APP}/requests/{'0' * 8}-0000-0000-0000-{'0' * 12}"
    answers = [
        idle.client.post("/fal/run/fal-ai/flux", json=INPUT),
        idle.client.post(f"/fal/queue/{APP}/audio-inpaint", json=INPUT),
        idle.client.get(f"{nowhere}/status"),
        idle.client.get(f"/fal/queue/{APP}/requests/nonsense/status"),
        idle.client.put(f"{nowhere}/cancel"),
        idle.client.get("/fal/nothing"),
    ]

    assert [answer.status_code for answer in answers] == [404] * 6
    assert answers[0].json()["detail"] == "There is no app fal-ai/flux. Use 'fal-ai/ace-step'"
    assert answers[4].json()["status"] == "NOT_FOUND"


def test_who_leaves_cancels_the_song(idle: Service) -> None:
    """A caller of the synchronous route who disconnects has its job cancelled after the grace."""
    with pytest.raises(httpx.ReadTimeout):
        idle.client.post(f"/fal/run/{APP}", json={**INPUT, "title": "left"}, timeout=0.5)

    job = next(job for job in idle.client.get("/v1/jobs").json()["jobs"] if job["request"].get("title") == "left")
    eventually(lambda: idle.job(job["id"])["state"] == "cancelled")


def test_songs_open_without_a_key(tmp_path: Path) -> None:
    """`Key …` is accepted, a wrong key gets 401, over a limit 429, and the addresses in a result need no key."""
    with running(tmp_path, queue={"max_owner_jobs": 1}) as service:
        service.client.headers["Authorization"] = f"Key {service.store.keys.create('studio')}"
        eventually(lambda: service.client.get("/v1/jobs").status_code == 200)

        made = service.client.post(f"/fal/run/{APP}", json={**INPUT, "format": "flac"}).json()
        wrong = httpx.post(f"{service.url}/fal/run/{APP}", json=INPUT, headers={"Authorization": "Key wrong"})
        service.store.pauses.pause("ace-step", "test")
        submit(service, INPUT)
        full = service.client.post(f"/fal/queue/{APP}", json={**INPUT, "seed": 8})

        assert heard(httpx.get(made["audio"]["url"]).content) == (2.0, False)
        assert (wrong.status_code, wrong.json()["error_type"]) == (401, "unauthorized")
        assert (full.status_code, full.json()["error_type"]) == (429, "quota_exceeded")


def test_a_webhook_has_fals_body(tmp_path: Path, receiver: Receiver) -> None:
    """The songs are POSTed to the address in `fal_webhook`, and the error of a job that was cancelled."""
    with running(tmp_path, webhook_secret=SECRET, webhooks={"allow_private": True}) as service:
        made = submit(service, INPUT, params={"fal_webhook": receiver.url})
        eventually(lambda: len(receiver.received) == 1)
        service.store.pauses.pause("ace-step", "test")
        cancelled = submit(service, INPUT, params={"fal_webhook": receiver.url})
        service.client.put(cancelled["cancel_url"])
        eventually(lambda: len(receiver.received) == 2)

        ok, error = (json.loads(received.body) for received in receiver.received)
        assert (ok["request_id"], ok["status"], ok["error"]) == (made["request_id"], "OK", None)
        assert ok["payload"]["audio"]["url"] == f"/v1/jobs/{made['request_id']}/audio/0"
        assert (error["request_id"], error["status"]) == (cancelled["request_id"], "ERROR")
        assert "was cancelled" in error["payload"]["detail"]
