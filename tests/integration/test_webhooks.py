"""Webhooks in the API."""

from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.helpers import eventually
from tests.support.running import running, simulated
from tests.support.webhooks import SECRET, Receiver


def test_a_client_gets_a_webhook_and_can_see_its_delivery(tmp_path: Path, receiver: Receiver) -> None:
    """The webhook of a job carries the job's own view, and the job shows how the delivery went."""
    settings: dict[str, Any] = {"webhook_secret": SECRET, "webhooks": {"allow_private": True, "retries_s": [0.05]}}
    receiver.answers = [(500, {})]
    with running(tmp_path, {"ace-step": simulated()}, **settings) as service:
        submitted = service.submit(webhook_url=receiver.url)
        assert submitted["webhook"] is None
        view = eventually(lambda: job if _is_delivered(job := service.job(submitted["id"])) else None)

    assert (view["webhook"]["attempts"], view["webhook"]["last_status"], view["webhook"]["last_error"]) == (
        2,
        204,
        None,
    )
    assert view["webhook"]["next_attempt_at"] is None
    assert [attempt["status"] for attempt in view["webhook"]["history"]] == [500, 204]
    event = Webhook(SECRET).verify(receiver.received[-1].body, receiver.received[-1].headers)
    assert event["type"] == "job.succeeded"
    assert {key: event["data"][key] for key in ("id", "state", "audio", "request")} == {
        key: view[key] for key in ("id", "state", "audio", "request")
    }


def _is_delivered(job: dict[str, Any]) -> bool:
    return bool(job["webhook"]) and job["webhook"]["state"] == "delivered"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://user:x@hooks.example/", "ftp://hooks.example/", "http://0x7f.1/"]
)
def test_a_url_that_may_not_be_sent_to_is_refused_at_submission(tmp_path: Path, url: str) -> None:
    """A forbidden webhook_url gets a 422 that names the field, and no job is created."""
    with running(tmp_path, {"ace-step": simulated()}, workers=0, webhook_secret=SECRET) as service:
        answer = service.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": url})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert "webhook_url" in answer.text
        assert service.client.get("/v1/jobs").json()["jobs"] == []


def test_without_a_secret_there_are_no_webhooks(tmp_path: Path) -> None:
    """Without a signing secret the service refuses webhook_url, and its schema says so."""
    with running(tmp_path, {"ace-step": simulated()}, workers=0) as service:
        answer = service.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": "https://hooks.example/"})
        page = service.client.get("/openapi.json").json()
    assert answer.status_code == 422
    body = page["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    field = page["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]["webhook_url"]
    assert "webhook_secret" in field["description"]
    assert field["type"] == "null"
