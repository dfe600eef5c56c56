"""When a webhook is sent, retried and abandoned."""

import json
import time

import pytest
from standardwebhooks.webhooks import Webhook

from serve_app.errors import GenerationError
from serve_app.store import Store
from tests.support.helpers import eventually
from tests.support.queue import claim, finish
from tests.support.webhooks import (
    SECRET,
    Receiver,
    delivery_after_an_attempt,
    final_delivery,
    running_sender,
    submit_with_webhook,
    succeeded_with_webhook,
)


def test_an_event_is_sent_until_it_is_accepted(store: Store, receiver: Receiver) -> None:
    """Answers other than 2xx are retried under the same id with a new signature; redirects are not followed."""
    receiver.answers = [(500, {}), (302, {"Location": "/elsewhere"}), (429, {})]
    job = succeeded_with_webhook(store, receiver.url)
    with running_sender(store):
        delivery = final_delivery(store, job)

    assert (delivery.state, delivery.attempts) == ("delivered", 4)
    assert [attempt["status"] for attempt in delivery.history] == [500, 302, 429, 204]
    assert delivery.history[1]["error"] == "answered 302; redirects are not followed"
    assert [attempt["at"] for attempt in delivery.history] == sorted({attempt["at"] for attempt in delivery.history})
    assert {request.path for request in receiver.received} == {"/hook"}
    assert {request.headers["webhook-id"] for request in receiver.received} == {delivery.id}
    for request in receiver.received:
        Webhook(SECRET).verify(request.body, request.headers)


def test_an_event_is_given_up_after_the_last_retry(store: Store, receiver: Receiver) -> None:
    """After the configured retries the delivery has failed, with its reasons."""
    receiver.answers = [(503, {})] * 10
    job = succeeded_with_webhook(store, receiver.url)
    with running_sender(store, retries_s=[0.01, 0.01]):
        delivery = final_delivery(store, job)
    assert (delivery.state, delivery.attempts, len(receiver.received)) == ("failed", 3, 3)
    assert delivery.history[-1]["error"] == "answered 503"


def test_gone_means_stop(store: Store, receiver: Receiver) -> None:
    """A 410 ends the delivery at once."""
    receiver.answers = [(410, {})]
    job = succeeded_with_webhook(store, receiver.url)
    with running_sender(store):
        delivery = final_delivery(store, job)
    assert (delivery.state, delivery.attempts, len(receiver.received)) == ("failed", 1, 1)


@pytest.mark.parametrize(
    ("asked", "at_least", "at_most"), [("600", 590, 600), ("99999999999", 86_000, 86_400), ("-5", 0, 2)]
)
def test_a_receiver_may_ask_for_time(
    store: Store, receiver: Receiver, asked: str, at_least: float, at_most: float
) -> None:
    """Retry-After is honoured up to a day; invalid values are ignored."""
    receiver.answers = [(503, {"Retry-After": asked})]
    job = succeeded_with_webhook(store, receiver.url)
    with running_sender(store, retries_s=[1.0]):
        delivery = delivery_after_an_attempt(store, job)
    assert at_least <= delivery.due_at - float(delivery.history[0]["at"]) <= at_most + 5


def test_retries_come_slower_and_not_all_at_once(store: Store, receiver: Receiver) -> None:
    """Delays grow as configured, and jitter spreads ten events that failed together."""
    receiver.answers = [(500, {})] * 10
    made = [succeeded_with_webhook(store, receiver.url) for _ in range(10)]
    with running_sender(store, retries_s=[1000.0]):
        waits = [
            (delivery := delivery_after_an_attempt(store, job)).due_at - float(delivery.history[0]["at"])
            for job in made
        ]
    assert all(1000 <= wait <= 1260 for wait in waits)
    assert len({round(wait) for wait in waits}) > 3


def test_an_event_is_sent_as_soon_as_its_job_has_ended(store: Store, receiver: Receiver) -> None:
    """The end of a job wakes an idle sender."""
    with running_sender(store):
        job = succeeded_with_webhook(store, receiver.url)
        assert final_delivery(store, job).state == "delivered"


def test_an_event_that_is_out_of_date_is_not_sent(store: Store, receiver: Receiver) -> None:
    """If a job is retried before its failure was sent, only its next end is sent."""
    job = submit_with_webhook(store, receiver.url)
    store.claims.fail(claim(store), GenerationError("no"))
    store.jobs.retry(job.id, max_attempts=3)
    with running_sender(store):
        assert "run again" in final_delivery(store, job).history[0]["error"]
        finish(store, claim(store))
        eventually(lambda: receiver.received)
    assert [json.loads(request.body)["type"] for request in receiver.received] == ["job.succeeded"]


def test_a_sender_ends_without_waiting_for_what_is_not_due(store: Store) -> None:
    """Closing a sender that sends nothing returns at once, even if retries are pending."""
    job = succeeded_with_webhook(store, "http://127.0.0.1:9/")
    with running_sender(store, retries_s=[1000.0]):
        delivery_after_an_attempt(store, job)
    latest = store.webhooks.latest(job.id)
    assert latest is not None
    assert (latest.state, latest.due_at > time.time() + 500) == ("pending", True)
