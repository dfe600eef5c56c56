"""The signatures of webhooks, checked with the Standard Webhooks library."""

import base64
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from serve_app.background.webhook_sender import shown_secret, sign, signing_keys
from serve_app.config import AppArgs
from serve_app.store import Store
from tests.support.webhooks import SECRET, Receiver, final_delivery, running_sender, succeeded_with_webhook

OLD_SECRET = "whsec_" + base64.b64encode(bytes(24)).decode()


def test_the_real_client_accepts_what_is_sent(store: Store, receiver: Receiver) -> None:
    """The Standard Webhooks library verifies the event, which has type, timestamp and the job as data."""
    job = succeeded_with_webhook(store, receiver.url)
    with running_sender(store):
        delivery = final_delivery(store, job)

    [request] = receiver.received
    event = Webhook(SECRET).verify(request.body, request.headers)
    assert event["type"] == "job.succeeded"
    assert event["data"] == {"id": job.id, "state": "succeeded"}
    assert datetime.fromisoformat(event["timestamp"]).timestamp() == pytest.approx(delivery.created_at, abs=0.01)
    assert (request.path, request.headers["Content-Type"]) == ("/hook", "application/json")
    assert request.headers["webhook-id"] == delivery.id
    assert (delivery.state, delivery.attempts) == ("delivered", 1)
    assert [(attempt["status"], attempt["error"]) for attempt in delivery.history] == [(204, None)]


def test_a_changed_body_is_noticed(store: Store, receiver: Receiver) -> None:
    """The signature is valid for these bytes only."""
    job = succeeded_with_webhook(store, receiver.url)
    with running_sender(store):
        final_delivery(store, job)
    [request] = receiver.received
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body.replace(b"succeeded", b"failed"), request.headers)


def test_signatures_are_those_of_the_real_library() -> None:
    """Our signature of a message equals the library's."""
    moment = datetime.fromtimestamp(1_674_087_231, UTC)
    theirs = Webhook(SECRET).sign("msg_1", moment, '{"a":"ü"}')
    assert sign([bytes(range(32))], "msg_1", 1_674_087_231, '{"a":"ü"}'.encode()) == theirs


def test_two_secrets_both_sign(store: Store, receiver: Receiver) -> None:
    """While a secret is rotated, receivers with the old and the new one accept the event."""
    job = succeeded_with_webhook(store, receiver.url)
    with running_sender(store, secret=f"{SECRET} {OLD_SECRET}"):
        final_delivery(store, job)
    [request] = receiver.received
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(request.body, request.headers)["type"] == "job.succeeded"


def test_each_api_key_has_a_secret_of_its_own(store: Store, receiver: Receiver) -> None:
    """A client can verify its own webhooks but cannot sign one that another client would accept."""
    job = succeeded_with_webhook(store, receiver.url, owner="alice")
    with running_sender(store):
        final_delivery(store, job)
    [request] = receiver.received
    keys = {name: signing_keys([bytes(range(32))], name)[0] for name in ("alice", "bob")}
    assert Webhook(shown_secret(keys["alice"])).verify(request.body, request.headers)["data"]["id"] == job.id
    for wrong in (SECRET, shown_secret(keys["bob"])):
        with pytest.raises(WebhookVerificationError):
            Webhook(wrong).verify(request.body, request.headers)


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_c2hvcnQ=", "whsec_no base64!", "plain", "whsec_" + base64.b64encode(bytes(65)).decode()],
)
def test_a_secret_of_another_form_is_refused_and_not_repeated(secret: str) -> None:
    """The service refuses to start with a malformed secret, and the error does not contain it."""
    with pytest.raises(ValidationError) as caught:
        AppArgs(webhook_secret=secret)
    [error] = caught.value.errors(include_input=False)
    assert "24 to 64 random bytes" in error["msg"]
    assert secret in ("", "whsec_") or secret not in error["msg"]
