"""Webhook receivers that misbehave."""

import socket
import threading
from collections.abc import Callable

import pytest

from serve_app.store import Store
from tests.support.webhooks import final_delivery, raw_receiver, running_sender, succeeded_with_webhook


def _read_request(connection: socket.socket) -> None:
    """Reads the whole request: closing a connection with unread data resets it and loses the answer."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65_536)
    head, _, body = head.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65_536)


def _drip(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not over.wait(0.02):
        connection.sendall(b"x")


def _say_nothing(connection: socket.socket, over: threading.Event) -> None:
    connection.setblocking(False)
    while not over.wait(0.02):
        connection.send(b"")
        if _hung_up(connection):
            return


def _hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(65_536) == b""
    except BlockingIOError:
        return False


def _endless_headers(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not over.is_set():
        connection.sendall(b"X-More: " + b"x" * 8000 + b"\r\n")


def _not_http(connection: socket.socket, over: threading.Event) -> None:
    _read_request(connection)
    connection.sendall(b"SSH-2.0-internal-secret\r\n" * 10)


def _hang_up(connection: socket.socket, over: threading.Event) -> None:
    _read_request(connection)


@pytest.mark.parametrize(
    ("answer", "timeout_s", "error"),
    [
        (_drip, 0.5, "no answer within 0.5 s"),
        (_say_nothing, 0.5, "no answer within 0.5 s"),
        (_endless_headers, 30, "not HTTP"),
        (_not_http, 30, "not HTTP"),
        (_hang_up, 30, "not HTTP"),
    ],
)
def test_a_receiver_that_misbehaves_costs_one_bounded_attempt(
    sqlite_store: Store, answer: Callable[[socket.socket, threading.Event], None], timeout_s: float, error: str
) -> None:
    """Every attempt ends within its bound, with a reason that repeats nothing of the answer."""
    with raw_receiver(answer) as url:
        job = succeeded_with_webhook(sqlite_store, url)
        with running_sender(sqlite_store, retries_s=[], timeout_s=timeout_s):
            delivery = final_delivery(sqlite_store, job)
    assert (delivery.state, delivery.attempts) == ("failed", 1)
    assert error in delivery.history[0]["error"]
    assert "secret" not in delivery.history[0]["error"]


def test_the_body_of_an_answer_is_not_waited_for(sqlite_store: Store) -> None:
    """A 200 counts even if its body never ends."""

    def endless(connection: socket.socket, over: threading.Event) -> None:
        _read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not over.is_set():
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    with raw_receiver(endless) as url:
        job = succeeded_with_webhook(sqlite_store, url)
        with running_sender(sqlite_store, retries_s=[]):
            assert final_delivery(sqlite_store, job).state == "delivered"


def test_nobody_listening_is_a_failed_attempt(sqlite_store: Store) -> None:
    """A refused connection is a failed attempt with that reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    job = succeeded_with_webhook(sqlite_store, f"http://127.0.0.1:{port}/")
    with running_sender(sqlite_store, retries_s=[]):
        assert "refused" in final_delivery(sqlite_store, job).history[0]["error"]
