"""Replicate's predictions as its documentation describes them; test_replicate_package.py has the real clients."""

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

INPUT = {"caption": "lofi, piano", "lyrics": "[verse]\nRain", "duration": 2, "format": "flac"}
MODEL = "/replicate/v1/models/visoar/ace-step-1.5/predictions"


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a worker."""
    with running(tmp_path_factory.mktemp("idle"), workers=0) as service:
        yield service


def predict(
    service: Service, path: str = MODEL, headers: dict[str, str] | None = None, **fields: Any
) -> dict[str, Any]:
    answer = service.client.post(path, json={"input": INPUT, **fields}, headers=headers)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_a_prediction_waits_for_its_songs(service: Service) -> None:
    """With `Prefer: wait` the answer has the addresses of songs, which decode, have their length and are not silent."""
    made = predict(service, headers={"Prefer": "wait"}, input={**INPUT, "batch_size": 2})

    assert (made["status"], len(made["output"]), made["error"]) == ("succeeded", 2, None)
    assert heard(httpx.get(made["output"][0]).content) == (2.0, False)
    assert made["metrics"]["predict_time"] > 0
    assert service.job(made["id"])["request"]["prompt"] == "lofi, piano"
    assert service.client.get(made["urls"]["get"]).json()["status"] == "succeeded"


@pytest.mark.parametrize("version", ["ace-step", "visoar/ace-step", "visoar/ace-step:ace-step"])
def test_a_version_names_a_model(idle: Service, version: str) -> None:
    """The route without a model takes its name as the version; the version itself can be read."""
    made = predict(idle, "/replicate/v1/predictions", version=version)

    assert made["version"] == "ace-step"
    found = idle.client.get("/replicate/v1/models/visoar/ace-step/versions/ace-step").json()
    assert found["id"] == "ace-step"


def test_an_unfinished_prediction_is_starting(idle: Service) -> None:
    """The clients take every other state in the first answer for the end; later a running job is processing."""
    idle.store.foreign_clients.purge("ace-step", "")
    made = predict(idle, headers={"Prefer": "wait=1"})
    claim(idle.store, model="ace-step", lease_s=600)

    assert (made["status"], made["output"]) == ("starting", None)
    assert idle.client.get(made["urls"]["get"]).json()["status"] == "processing"
    assert idle.client.get("/replicate/v1/predictions").json()["results"][0]["id"] == made["id"]


def test_fields_without_effect_are_told(idle: Service) -> None:
    """What Sophia does not know beside `input` is named in the job's warnings and in the prediction's logs."""
    made = predict(idle, stream=True, webhok="https://example.com")

    assert idle.job(made["id"])["warnings"] == ["These fields have no effect: stream, webhok."]
    assert "stream, webhok" in made["logs"]


def test_a_prediction_is_cancelled(idle: Service) -> None:
    """Cancel answers `canceled`, also a second time."""
    made = predict(idle, headers={"Cancel-After": "1m30s"})
    assert idle.job(made["id"])["request"]["deadline_s"] == 90

    answers = [idle.client.post(made["urls"]["cancel"]).json()["status"] for _ in range(2)]

    assert answers == ["canceled", "canceled"]
    assert idle.job(made["id"])["state"] == "cancelled"


def test_a_failed_prediction_says_why(idle: Service) -> None:
    """`error` has the reason."""
    idle.store.foreign_clients.purge("ace-step", "")
    made = predict(idle)
    idle.store.claims.fail(claim(idle.store, model="ace-step"), BadAdapter("it is broken"))

    failed = idle.client.get(made["urls"]["get"]).json()

    assert (failed["status"], "it is broken" in failed["error"]) == ("failed", True)


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        ({"input": {**INPUT, "duration": 900}}, {}, "input.duration: must be less than or equal to 600"),
        ({"input": {**INPUT, "lyrcs": "x"}}, {}, "did you mean 'lyrics'?"),
        ({"input": INPUT, "webhook": "nonsense"}, {}, "webhook: must be a URL"),
        ({"input": INPUT, "webhook_events_filter": ["logs"]}, {}, "webhook_events_filter: must have 'completed'"),
        ({"input": INPUT}, {"Cancel-After": "soon"}, "Cancel-After: must be a time such as"),
        ({}, {}, "input: is required"),
    ],
)
def test_bad_input_is_refused_by_the_clients_own_names(
    idle: Service, body: Any, headers: dict[str, str], says: str
) -> None:
    """An error is 422 as problem details with the client's names."""
    answer = idle.client.post(MODEL, json=body, headers=headers)

    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert set(answer.json()) >= {"type", "title", "detail", "status"}


def test_what_is_not_there_is_not_found(idle: Service) -> None:
    """Unknown models, versions, predictions and routes get 404; a request without a version gets 422."""
    answers = [
        idle.client.post("/replicate/v1/models/black-forest/flux/predictions", json={"input": INPUT}),
        idle.client.post("/replicate/v1/predictions", json={"version": "0" * 64, "input": INPUT}),
        idle.client.get("/replicate/v1/predictions/nonsense"),
        idle.client.post("/replicate/v1/files"),
        idle.client.post("/replicate/v1/predictions", json={"input": INPUT}),
    ]

    assert [answer.status_code for answer in answers] == [404, 404, 404, 404, 422]


def test_songs_open_without_a_key(tmp_path: Path) -> None:
    """A wrong key gets 401, over a limit 429, and the addresses in an output need no key."""
    with running(tmp_path, queue={"max_owner_jobs": 1}) as service:
        service.use_key()

        made = predict(service, headers={"Prefer": "wait"})
        wrong = httpx.post(f"{service.url}{MODEL}", json={"input": INPUT}, headers={"Authorization": "Bearer wrong"})
        service.store.pauses.pause("ace-step", "test")
        predict(service)
        full = service.client.post(MODEL, json={"input": INPUT})

        assert heard(httpx.get(made["output"][0]).content) == (2.0, False)
        assert [answer.status_code for answer in (wrong, full)] == [401, 429]


def test_a_webhook_has_the_prediction(tmp_path: Path, receiver: Receiver) -> None:
    """It is POSTed when the prediction has ended, and signed as Replicate signs."""
    with running(tmp_path, webhook_secret=SECRET, webhooks={"allow_private": True}) as service:
        made = predict(service, webhook=receiver.url, webhook_events_filter=["completed"])
        eventually(lambda: len(receiver.received) == 1)

        body = json.loads(receiver.received[0].body)
        assert (body["id"], body["status"]) == (made["id"], "succeeded")
        assert body["output"] == [f"/v1/jobs/{made['id']}/audio/0"]
