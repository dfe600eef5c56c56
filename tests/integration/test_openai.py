"""OpenAI's speech route and list of models over plain HTTP; test_openai_package.py has the real clients."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.helpers import eventually
from tests.support.leaving import leave
from tests.support.running import Service, running, simulated
from tests.support.songs import heard


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one model that has a worker and one that has none, which cancels jobs soon after their caller has left."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    limits = {"max_owner_jobs": 3}
    with running(tmp_path_factory.mktemp("openai"), models, queue=limits, api={"leave_grace_s": 0.1}) as service:
        yield service


def speak(service: Service, **fields: Any) -> httpx.Response:
    """Asks for a song of two seconds."""
    body = {"model": "ace-step", "input": "warm piano", "voice": "default", "duration": 2, **fields}
    return service.client.post(
        "/v1/audio/speech", json={name: value for name, value in body.items() if value is not None}
    )


def request_of(service: Service, answer: httpx.Response) -> dict[str, Any]:
    """The request of the job whose song an answer has."""
    job = answer.headers["content-location"].split("/")[3]
    return dict(service.job(job)["request"])


def test_the_answer_is_the_song(service: Service) -> None:
    """The answer is an audio file with its type, of the asked length and not silent; the format is mp3 unless asked otherwise."""
    plain = speak(service)
    flac = speak(service, response_format="flac")

    assert (plain.status_code, plain.headers["content-type"]) == (200, "audio/mpeg")
    assert (flac.headers["content-type"], heard(flac.content)) == ("audio/flac", (2.0, False))


@pytest.mark.parametrize(
    ("fields", "prompt", "lyrics", "duration"),
    [
        ({"input": "warm piano"}, "warm piano", "", 2),
        ({"input": "[verse]\nla la", "instructions": "pop"}, "pop", "[verse]\nla la", 2),
        ({"input": "warm piano", "instructions": ""}, "warm piano", "", 2),
        (
            {"input": "[verse]\nla", "duration": None, "kwargs": '{"instruct": "rock", "duration": 3}'},
            "rock",
            "[verse]\nla",
            3,
        ),
        ({"input": "warm piano", "duration": None, "max_new_tokens": 100}, "warm piano", "", 4),
    ],
)
def test_input_has_lyrics_if_the_style_stands_elsewhere(
    service: Service, fields: dict[str, Any], prompt: str, lyrics: str, duration: float
) -> None:
    """`input` describes the song, or is sung if `instructions` or `kwargs` describe it; lengths have two names."""
    made = request_of(service, speak(service, **fields))

    assert (made["prompt"], made["lyrics"], made["duration"]) == (prompt, lyrics, duration)


def test_a_model_may_have_a_service_before_its_name(service: Service) -> None:
    """`openai/ace-step` is ace-step."""
    assert request_of(service, speak(service, model="openai/ace-step"))["model"] == "ace-step"


def test_a_voice_of_openai_is_reported_as_ignored(service: Service) -> None:
    """A voice that only OpenAI has changes nothing; a header and a warning of the job say so."""
    answer = speak(service, voice="alloy")
    job = service.job(answer.headers["content-location"].split("/")[3])

    assert answer.headers["x-ignored-fields"] == "voice"
    assert job["warnings"][0] == "Some fields are ignored, because they cannot be honoured: voice."
    assert "x-ignored-fields" not in speak(service, voice="").headers


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"input": None}, 400, "input", "is required"),
        ({"input": "  "}, 400, "input", "must not be blank"),
        ({"input": "x" * 5000}, 400, "input", "at most 4000"),
        ({"model": "tts-1"}, 404, "model", "must be a served model: 'ace-step' or 'asleep'"),
        ({"duration": 900}, 400, "duration", "less than or equal to 600"),
        ({"response_format": "pcm"}, 400, "response_format", "must be 'mp3'"),
        ({"speed": 2}, 400, "speed", "must be 1"),
        ({"stream_format": "sse"}, 400, "stream_format", "must be 'audio'"),
        ({"voice": "nobody"}, 400, "voice", "names no voice of yours"),
        ({"voice": {"id": "nobody"}}, 400, "voice", "names no voice of yours"),
        ({"n": 2}, 400, "n", "must ask for one song"),
        ({"lyrcs": "x"}, 400, "lyrcs", "did you mean 'lyrics'?"),
        ({"kwargs": "{"}, 400, "kwargs", "must be a JSON object"),
        ({"kwargs": {"duration": 3}}, 400, "kwargs.duration", "must be left out, because the body has it, too"),
        ({"instructions": "pop", "lyrics": "la"}, 400, "input", "means the same as"),
    ],
)
def test_bad_input_is_an_error_in_openais_shape(
    service: Service, fields: dict[str, Any], status: int, param: str, says: str
) -> None:
    """An error has OpenAI's status, names the field as the client does, and says what is allowed."""
    answer = speak(service, **fields)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert says in error["message"]
    assert error["param"] in (param, "lyrics")
    assert (error["code"] == "model_not_found") == (status == 404)
    assert "x-should-retry" not in answer.headers


def test_an_error_after_the_job_has_begun_is_not_to_be_repeated(service: Service) -> None:
    """A job that is cancelled while its caller waits is an error that SDKs do not repeat; one before the job may be repeated."""
    with ThreadPoolExecutor() as callers:
        waiting = callers.submit(speak, service, model="asleep")
        [job] = eventually(lambda: service.client.get("/v1/jobs", params={"state": "queued"}).json()["jobs"])
        service.client.post(f"/v1/jobs/{job['id']}/cancel")
        answer = waiting.result()

    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert "was cancelled" in answer.json()["error"]["message"]


def test_a_full_queue_may_be_tried_again(service: Service) -> None:
    """A limit is OpenAI's rate limit error with a time to wait, and does not forbid a repetition."""
    queued = [service.submit(model="asleep")["id"] for _ in range(3)]

    answer = speak(service)
    for job in queued:
        service.client.post(f"/v1/jobs/{job}/cancel")

    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(answer.headers["retry-after"]) > 0
    assert "x-should-retry" not in answer.headers


def test_a_caller_who_leaves_cancels_the_job(service: Service) -> None:
    """Who hangs up gets no song made."""
    job = leave(service, "/v1/audio/speech", {"model": "asleep", "input": "left"}, "left")

    eventually(lambda: service.job(job)["state"] == "cancelled")


def test_models_are_listed_for_openais_clients_and_native_ones(service: Service) -> None:
    """One answer has `data` in OpenAI's shape and `models` as before; a model is found by its name, also after a `/`."""
    listed = service.client.get("/v1/models").json()
    one = service.client.get("/v1/models/acemusic/ace-step").json()
    unknown = service.client.get("/v1/models/dead")

    assert (listed["object"], [entry["id"] for entry in listed["data"]]) == ("list", ["ace-step", "asleep"])
    assert [model["name"] for model in listed["models"]] == ["ace-step", "asleep"]
    assert one == listed["data"][0]
    assert {"id", "object", "created", "owned_by"} <= set(one)
    assert unknown.status_code == 404
    assert "'ace-step' or 'asleep'" in unknown.json()["detail"]


def test_errors_of_other_speech_routes_have_openais_shape(service: Service) -> None:
    """An unknown route, a wrong method and a body that is not JSON are errors in OpenAI's shape."""
    answers = [
        service.client.post("/v1/audio/transcriptions"),
        service.client.get("/v1/audio/speech"),
        service.client.post("/v1/audio/speech", content=b"{", headers={"content-type": "application/json"}),
        service.client.post("/v1/audio/speech", json=[]),
    ]

    assert [answer.status_code for answer in answers] == [404, 405, 400, 400]
    assert all(answer.json()["error"]["message"] for answer in answers)
