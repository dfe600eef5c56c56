"""Which address a webhook is sent to, and which certificate it must show."""

import socket
import ssl
from pathlib import Path

import pytest

from serve_app.background.webhook_sender import resolve
from serve_app.store import Store
from tests.support.certificates import self_signed
from tests.support.webhooks import Receiver, final_delivery, running_receiver, running_sender, succeeded_with_webhook


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["::1"],
        ["8.8.8.8", "127.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%1"],
        ["junk"],
    ],
)
def test_a_name_with_any_address_inside_is_not_connected_to(
    sqlite_store: Store, receiver: Receiver, answers: list[str]
) -> None:
    """A name with one private address among others is refused before any connection."""
    job = succeeded_with_webhook(sqlite_store, f"http://hooks.example:{receiver.port}/")
    with running_sender(sqlite_store, retries_s=[], allow_private=False, resolve=lambda host, port: answers):
        delivery = final_delivery(sqlite_store, job)
    assert delivery.history[0]["error"] == "hooks.example is not a public address"
    assert receiver.received == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"])
def test_spellings_of_loopback_are_seen_through_when_sending(
    sqlite_store: Store, receiver: Receiver, host: str
) -> None:
    """Every spelling of loopback is refused, because the resolved address is checked."""
    job = succeeded_with_webhook(sqlite_store, f"http://hooks.example:{receiver.port}/")
    with running_sender(sqlite_store, retries_s=[], allow_private=False, resolve=lambda _, port: resolve(host, port)):
        assert final_delivery(sqlite_store, job).history[0]["error"] == "hooks.example is not a public address"
    assert receiver.received == []


def test_a_url_that_is_no_longer_allowed_is_not_sent_to(sqlite_store: Store, receiver: Receiver) -> None:
    """Deliveries to private addresses end once the operator no longer allows them."""
    job = succeeded_with_webhook(sqlite_store, receiver.url)
    with running_sender(sqlite_store, allow_private=False):
        delivery = final_delivery(sqlite_store, job)
    assert (delivery.state, delivery.attempts, receiver.received) == ("failed", 1, [])
    assert "127.0.0.1 is not a public address" in delivery.history[0]["error"]


def test_the_connection_goes_to_the_address_that_was_checked(sqlite_store: Store, receiver: Receiver) -> None:
    """A name is resolved once for each attempt, and the connection uses that checked address."""
    answers = [["127.0.0.1"], ["127.0.0.9"]]
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers.pop(0)

    job = succeeded_with_webhook(sqlite_store, f"http://hooks.example:{receiver.port}/x?y=z")
    with running_sender(sqlite_store, resolve=rebinding):
        assert final_delivery(sqlite_store, job).state == "delivered"
    assert asked == [("hooks.example", receiver.port)]
    [request] = receiver.received
    assert (request.path, request.headers["Host"]) == ("/x?y=z", f"hooks.example:{receiver.port}")


def test_the_next_address_is_tried_when_one_is_dead(sqlite_store: Store, receiver: Receiver) -> None:
    """If one address of a name is dead, the next is tried."""
    job = succeeded_with_webhook(sqlite_store, f"http://hooks.example:{receiver.port}/")
    with running_sender(sqlite_store, retries_s=[], resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"]):
        assert final_delivery(sqlite_store, job).state == "delivered"


def test_a_name_without_an_address_is_a_failed_attempt(sqlite_store: Store) -> None:
    """A failed lookup is recorded like any other failure."""
    job = succeeded_with_webhook(sqlite_store, "https://hooks.example/")

    def nothing(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with running_sender(sqlite_store, retries_s=[], resolve=nothing):
        assert final_delivery(sqlite_store, job).history[0]["error"] == "hooks.example has no address"


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS context for hooks.example, trusted through SSL_CERT_FILE as an operator's own CA would be."""
    file, context = self_signed(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return context


@pytest.mark.parametrize(("host", "state"), [("hooks.example", "delivered"), ("other.example", "failed")])
def test_the_certificate_is_that_of_the_name(
    sqlite_store: Store, certificate: ssl.SSLContext, host: str, state: str
) -> None:
    """The certificate must match the URL's name, although the connection goes to an address."""
    with running_receiver(certificate) as receiver:
        job = succeeded_with_webhook(sqlite_store, f"https://{host}:{receiver.port}/")
        with running_sender(sqlite_store, retries_s=[], resolve=lambda host, port: ["127.0.0.1"]):
            delivery = final_delivery(sqlite_store, job)
        assert delivery.state == state
        assert len(receiver.received) == (state == "delivered")
    if state == "failed":
        assert "certificate is not valid for 'other.example'" in delivery.history[0]["error"]
