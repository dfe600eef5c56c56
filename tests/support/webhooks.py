"""Webhook receivers on this machine, and jobs whose ends are sent to them."""

import base64
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serve_app.background.webhook_sender import Sender
from serve_app.config import AppArgs
from serve_app.jobs import Job
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.store.webhooks import Delivery
from tests.support.helpers import eventually
from tests.support.queue import claim, finish

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
SOON = [0.05, 0.05, 0.05]
"""Seconds before each retry."""


@dataclass
class Received:
    """One request as the receiver saw it."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A real HTTP server that gives each of `answers` once, then 204. While `hold` is set to an event, it waits for that first."""

    port: int
    host: str = "127.0.0.1"
    received: list[Received] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    hold: threading.Event | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/hook"


@contextmanager
def running_receiver(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Receiver]:
    """A receiver on a free port, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            here.received.append(Received(self.path, dict(self.headers), body))
            if here.hold:
                here.hold.wait(60)
            status, headers = here.answers.pop(0) if here.answers else (204, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    here = Receiver(server.server_port, host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield here
    finally:
        if here.hold:
            here.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def raw_receiver(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """The URL of a server that passes each connection to `answer`, with an event that is set when the block ends."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                try:
                    answer(connection, over)
                except OSError:  # the sender has closed the connection
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    finally:
        over.set()
        thread.join()
        listener.close()


@contextmanager
def running_sender(
    store: Store,
    *,
    retries_s: list[float] = SOON,
    timeout_s: float = 10,
    allow_private: bool = True,
    secret: str = SECRET,
    limits: dict[str, int] | None = None,
    **options: Any,
) -> Iterator[Sender]:
    """A sender with these settings, until the block ends."""
    webhooks = {"retries_s": retries_s, "timeout_s": timeout_s, "allow_private": allow_private, **(limits or {})}
    args = AppArgs.model_validate({"webhook_secret": secret, "webhooks": webhooks})
    sender = Sender(store, args, lambda job: {"id": job.id, "state": job.status.value}, **options)
    sender.start()
    try:
        yield sender
    finally:
        sender.close()


def submit_with_webhook(store: Store, url: str | None, owner: str = "") -> Job:
    """Submits a job whose end is to be sent to `url`."""
    request = MusicRequest(prompt="piano", model="m", seed=1, webhook_url=url)
    return store.jobs.submit(request, owner=owner, deadline_s=600, max_attempts=3)[0]


def succeeded_with_webhook(store: Store, url: str | None, owner: str = "") -> Job:
    """Submits such a job and finishes it."""
    job = submit_with_webhook(store, url, owner)
    assert finish(store, claim(store))
    return job


def final_delivery(store: Store, job: Job) -> Delivery:
    """The job's delivery, as soon as it is no longer pending."""

    def ended() -> Delivery | None:
        latest = store.webhooks.latest(job.id)
        return latest if latest and latest.state != "pending" else None

    return eventually(ended)


def delivery_after_an_attempt(store: Store, job: Job) -> Delivery:
    """The job's delivery, as soon as one attempt is recorded."""

    def recorded() -> Delivery | None:
        latest = store.webhooks.latest(job.id)
        return latest if latest and latest.history else None

    return eventually(recorded)
