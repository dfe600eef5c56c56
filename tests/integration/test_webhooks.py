"""Webhooks, against real servers on this machine and on both databases."""

import base64
import json
import runpy
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from serve_app.background.receivers import receiver_at
from serve_app.background.webhook_sender import Sender, check_url, is_public, resolve, shown_secret, sign, signing_keys
from serve_app.config import AppArgs, QueueArgs
from serve_app.errors import BadAudio, GenerationError, InvalidRequest, QuotaExceeded, StoreUnavailable
from serve_app.jobs import Job, Status
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.store.migrations import versions
from serve_app.store.tables import jobs, webhook_deliveries
from serve_app.store.webhooks import Delivery
from tests.support.helpers import eventually
from tests.support.queue import stored_audio
from tests.support.running import running, simulated

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OLD_SECRET = "whsec_" + base64.b64encode(bytes(24)).decode()
SOON = [0.05, 0.05, 0.05]


# --- A receiver, and jobs to tell it of -------------------------------------------------------------------------------


@dataclass
class Received:
    """One request as the receiver saw it."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A real HTTP server that gives the answers it was told to, then 204."""

    port: int
    host: str = "127.0.0.1"
    received: list[Received] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    hold: threading.Event | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/hook"


@contextmanager
def receiving(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Receiver]:
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


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 204."""
    with receiving() as receiver:
        yield receiver


@contextmanager
def answering(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """The address of a server that does with each connection what `answer` does, until the event says that it is over."""
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
                except OSError:  # the sender has hung up
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
def sending(
    store: Store,
    retries_s: list[float] = SOON,
    timeout_s: float = 10,
    allow_private: bool = True,
    secret: str = SECRET,
    limits: dict[str, int] | None = None,
    **options: Any,
) -> Iterator[Sender]:
    webhooks = {"retries_s": retries_s, "timeout_s": timeout_s, "allow_private": allow_private, **(limits or {})}
    args = AppArgs.model_validate({"webhook_secret": secret, "webhooks": webhooks})
    sender = Sender(store, args, lambda job: {"id": job.id, "state": job.status.value}, **options)
    sender.start()
    try:
        yield sender
    finally:
        sender.close()


def submit(store: Store, url: str | None, owner: str = "") -> Job:
    request = MusicRequest(prompt="piano", model="m", seed=1, webhook_url=url)
    return store.jobs.submit(request, owner=owner, deadline_s=600, max_attempts=3)[0]


def claim(store: Store) -> Job:
    job = store.claims.take("w", "m", 60)
    assert job is not None
    return job


def finish(store: Store, job: Job) -> bool:
    return store.claims.publish(job, audio=[stored_audio()], timing={"gpu_s": 1.0}, warnings=[])


def succeeded(store: Store, url: str | None, owner: str = "") -> Job:
    job = submit(store, url, owner)
    assert finish(store, claim(store))
    return job


def told(store: Store, job: Job) -> Delivery:
    """The job's delivery, once it is neither under way nor to be tried again."""

    def ended() -> Delivery | None:
        latest = store.webhooks.latest(job.id)
        return latest if latest and latest.state != "pending" else None

    delivery = eventually(ended)
    assert delivery is not None
    return delivery


def tried(store: Store, job: Job) -> Delivery:
    """The job's delivery, once an attempt is on record."""

    def recorded() -> Delivery | None:
        latest = store.webhooks.latest(job.id)
        return latest if latest and latest.history else None

    delivery = eventually(recorded)
    assert delivery is not None
    return delivery


# --- Made with the state change ---------------------------------------------------------------------------------------


def _cancel(store: Store, job: Job) -> None:
    store.jobs.cancel(job.id)


def _fail(store: Store, job: Job) -> None:
    store.claims.fail(claim(store), GenerationError("no"))


def _finish(store: Store, job: Job) -> None:
    finish(store, claim(store))


def _expire(store: Store, job: Job) -> None:
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(deadline_at=0))
    store.time_limits.enforce(run_limit_s=3600)


@pytest.mark.parametrize(
    ("end", "event"),
    [(_finish, "succeeded"), (_fail, "failed"), (_cancel, "cancelled"), (_expire, "expired")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_end_of_a_job_makes_a_delivery(store: Store, end: Callable[[Store, Job], None], event: str) -> None:
    """However a job with a webhook_url ends, one delivery is due, named after the state."""
    job = submit(store, "https://hooks.example/x")
    assert store.webhooks.latest(job.id) is None

    end(store, job)

    delivery = store.webhooks.latest(job.id)
    assert delivery is not None
    assert (delivery.event, delivery.state, delivery.attempts) == (f"job.{event}", "pending", 0)
    assert delivery.url == "https://hooks.example/x"


def test_jobs_that_do_not_end_or_name_no_url_make_none(store: Store) -> None:
    """An attempt that is tried again is no end, and a job without webhook_url tells nobody."""
    again = submit(store, "https://hooks.example/x")
    store.claims.fail(claim(store), BadAudio("NaN"))
    store.jobs.cancel(submit(store, None).id)

    assert store.jobs.get(again.id).status is Status.QUEUED
    with store.database.read() as connection:
        assert connection.execute(sa.select(webhook_deliveries)).all() == []


def test_a_state_is_never_kept_without_its_delivery(store: Store) -> None:
    """When the delivery cannot be written, the job has not ended either: they are one transaction."""
    submit(store, "https://hooks.example/x")
    job = claim(store)
    with store.database.write() as connection:
        webhook_deliveries.drop(connection)

    with pytest.raises(StoreUnavailable):
        finish(store, job)

    assert store.jobs.get(job.id).status is Status.RUNNING


def test_a_deleted_job_takes_its_deliveries_along(store: Store) -> None:
    """Nothing is sent about a job that its client has deleted."""
    job = succeeded(store, "https://hooks.example/x")
    store.jobs.delete(job.id)
    assert store.webhooks.latest(job.id) is None
    assert store.webhooks.claim(60) is None


# --- Claims -----------------------------------------------------------------------------------------------------------


def test_a_delivery_whose_sender_died_is_due_again(store: Store) -> None:
    """The end of the lease brings it back under its id, and the first sender's word no longer counts."""
    succeeded(store, "https://hooks.example/x")
    first = store.webhooks.claim(lease_s=0)
    again = store.webhooks.claim(lease_s=60)
    assert first is not None
    assert again is not None
    assert (again.id, again.attempts) == (first.id, 2)
    assert store.webhooks.claim(60) is None

    assert not store.webhooks.record(first, "failed", error="late")
    assert store.webhooks.record(again, "delivered", status=200)

    kept = store.webhooks.latest(again.job)
    assert kept is not None
    assert (kept.state, kept.history) == ("delivered", ({"at": again.claimed_at, "status": 200, "error": None},))


@pytest.mark.fault("B9")
def test_a_delivery_to_a_busy_host_is_passed_over(store: Store) -> None:
    """A claim leaves out the hosts that it is told, whatever is due there and at whatever port."""
    for slow in ("https://Slow.example/a", "https://slow.example:8001/", "https://SLOW.example.:8002/"):
        succeeded(store, slow)
    fast = succeeded(store, "https://fast.example/b")
    found = store.webhooks.claim(60, busy=["slow.example"])
    assert found is not None
    assert found.job == fast.id


def test_deliveries_of_an_earlier_version_get_their_owner(store: Store) -> None:
    """The migration gives a pending delivery the owner of its job."""
    succeeded(store, "https://hooks.example/x", "studio")
    [migration] = Path(versions.__path__[0]).glob("*_webhook_owners.py")
    upgrade = runpy.run_path(str(migration))["upgrade"]
    with store.database.write() as connection, Operations.context(MigrationContext.configure(connection)):
        connection.execute(sa.text("drop index webhook_deliveries_by_owner"))  # of a later migration
        connection.execute(sa.text("alter table webhook_deliveries drop column owner"))
        upgrade()
    delivery = store.webhooks.claim(60)
    assert delivery is not None
    assert delivery.owner == "studio"


# --- Sending ----------------------------------------------------------------------------------------------------------


def test_the_real_client_accepts_what_is_sent(store: Store, receiver: Receiver) -> None:
    """The Standard Webhooks library verifies the event, which has type, timestamp and the job as data."""
    job = succeeded(store, receiver.url)
    with sending(store):
        delivery = told(store, job)

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
    """The signature holds for these bytes only."""
    job = succeeded(store, receiver.url)
    with sending(store):
        told(store, job)
    [request] = receiver.received
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body.replace(b"succeeded", b"failed"), request.headers)


def test_signatures_are_those_of_the_real_library() -> None:
    """Ours and the library's signature of one message are the same."""
    moment = datetime.fromtimestamp(1_674_087_231, UTC)
    theirs = Webhook(SECRET).sign("msg_1", moment, '{"a":"ü"}')
    assert sign([bytes(range(32))], "msg_1", 1_674_087_231, '{"a":"ü"}'.encode()) == theirs


def test_two_secrets_both_sign(store: Store, receiver: Receiver) -> None:
    """While a secret is changed, receivers with the old and with the new one accept the event."""
    job = succeeded(store, receiver.url)
    with sending(store, secret=f"{SECRET} {OLD_SECRET}"):
        told(store, job)
    [request] = receiver.received
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(request.body, request.headers)["type"] == "job.succeeded"


def test_each_api_key_has_a_secret_of_its_own(store: Store, receiver: Receiver) -> None:
    """A client can verify its own webhooks and cannot make one that another would accept."""
    job = succeeded(store, receiver.url, owner="alice")
    with sending(store):
        told(store, job)
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
    """The configuration does not start with a secret that no receiver could use, and its error does not show it."""
    with pytest.raises(ValidationError) as caught:
        AppArgs(webhook_secret=secret)
    [error] = caught.value.errors(include_input=False)
    assert "24 to 64 random bytes" in error["msg"]
    assert secret in ("", "whsec_") or secret not in error["msg"]


def test_an_event_is_sent_until_it_is_accepted(store: Store, receiver: Receiver) -> None:
    """What is not 2xx is tried again, each time under the same id with a signature of its own; redirects are not followed."""
    receiver.answers = [(500, {}), (302, {"Location": "/elsewhere"}), (429, {})]
    job = succeeded(store, receiver.url)
    with sending(store):
        delivery = told(store, job)

    assert (delivery.state, delivery.attempts) == ("delivered", 4)
    assert [attempt["status"] for attempt in delivery.history] == [500, 302, 429, 204]
    assert delivery.history[1]["error"] == "answered 302; redirects are not followed"
    assert [attempt["at"] for attempt in delivery.history] == sorted({attempt["at"] for attempt in delivery.history})
    assert {request.path for request in receiver.received} == {"/hook"}
    assert {request.headers["webhook-id"] for request in receiver.received} == {delivery.id}
    for request in receiver.received:
        Webhook(SECRET).verify(request.body, request.headers)


def test_an_event_is_given_up_after_the_last_retry(store: Store, receiver: Receiver) -> None:
    """As many attempts as retries are configured, and one; then the delivery has failed, with its reasons."""
    receiver.answers = [(503, {})] * 10
    job = succeeded(store, receiver.url)
    with sending(store, retries_s=[0.01, 0.01]):
        delivery = told(store, job)
    assert (delivery.state, delivery.attempts, len(receiver.received)) == ("failed", 3, 3)
    assert delivery.history[-1]["error"] == "answered 503"


def test_gone_means_stop(store: Store, receiver: Receiver) -> None:
    """410 ends the delivery at once."""
    receiver.answers = [(410, {})]
    job = succeeded(store, receiver.url)
    with sending(store):
        delivery = told(store, job)
    assert (delivery.state, delivery.attempts, len(receiver.received)) == ("failed", 1, 1)


@pytest.mark.parametrize(
    ("asked", "at_least", "at_most"), [("600", 590, 600), ("99999999999", 86_000, 86_400), ("-5", 0, 2)]
)
def test_a_receiver_may_ask_for_time(
    store: Store, receiver: Receiver, asked: str, at_least: float, at_most: float
) -> None:
    """Retry-After of a busy receiver is heeded, up to a day; nonsense is not."""
    receiver.answers = [(503, {"Retry-After": asked})]
    job = succeeded(store, receiver.url)
    with sending(store, retries_s=[1.0]):
        delivery = tried(store, job)
    assert at_least <= delivery.due_at - float(delivery.history[0]["at"]) <= at_most + 5


def test_retries_come_slower_and_not_all_at_once(store: Store, receiver: Receiver) -> None:
    """The waits grow as configured, and jitter keeps ten events that failed together apart."""
    receiver.answers = [(500, {})] * 10
    made = [succeeded(store, receiver.url) for _ in range(10)]
    with sending(store, retries_s=[1000.0]):
        waits = [(delivery := tried(store, job)).due_at - float(delivery.history[0]["at"]) for job in made]
    assert all(1000 <= wait <= 1260 for wait in waits)
    assert len({round(wait) for wait in waits}) > 3


def test_many_senders_share_the_work(store: Store, receiver: Receiver, database_url: str) -> None:
    """Three senders send twenty events once each."""
    made = [succeeded(store, receiver.url) for _ in range(20)]
    others = [Store(database_url) for _ in range(2)]
    with sending(store), sending(others[0]), sending(others[1]):
        ids = {told(store, job).id for job in made}
    for other in others:
        other.close()
    assert sorted(request.headers["webhook-id"] for request in receiver.received) == sorted(ids)


def test_a_slow_receiver_does_not_hold_up_the_others(store: Store, receiver: Receiver) -> None:
    """While one host answers nothing, events to another arrive, and the slow one gets a few at a time only."""
    with receiving(host="127.0.0.2") as slow:
        slow.hold = threading.Event()
        stuck = [succeeded(store, slow.url) for _ in range(12)]
        quick = [succeeded(store, receiver.url) for _ in range(5)]
        with sending(store, timeout_s=60):
            assert {told(store, job).state for job in quick} == {"delivered"}
            assert len(slow.received) <= 2
            slow.hold.set()
            assert {told(store, job).state for job in stuck} == {"delivered"}


@pytest.mark.fault("B9")
def test_many_names_of_one_machine_are_one_receiver(store: Store, receiver: Receiver) -> None:
    """Twelve names lead to one slow machine: it takes two senders, the others go on, and what waited for it costs no attempt."""
    with receiving(host="127.0.0.2") as slow:
        slow.hold = threading.Event()
        stuck = [succeeded(store, f"http://n{number}.slow.example:{slow.port}/") for number in range(12)]
        quick = [succeeded(store, f"http://n{number}.quick.example:{receiver.port}/") for number in range(5)]
        found = {"slow": ["127.0.0.2"], "quick": ["127.0.0.1"]}
        with sending(store, timeout_s=60, resolve=lambda host, port: found[host.split(".")[1]]):
            assert {told(store, job).state for job in quick} == {"delivered"}
            assert len(slow.received) <= 2
            slow.hold.set()
            ended = [told(store, job) for job in stuck]
        assert {(delivery.state, delivery.attempts) for delivery in ended} == {("delivered", 1)}
        assert len(slow.received) == 12


@pytest.mark.fault("B9")
def test_one_owner_does_not_take_every_sender(store: Store, receiver: Receiver) -> None:
    """One owner has twelve slow machines: half of the senders are for others, and an owner with nothing under way comes first."""
    with receiving(host="0.0.0.0") as slow:  # noqa: S104  it is many machines
        slow.hold = threading.Event()
        stuck = [succeeded(store, f"http://127.0.1.{number}:{slow.port}/", "greedy") for number in range(1, 13)]
        quick = [succeeded(store, receiver.url, "modest") for _ in range(5)]
        with sending(store, timeout_s=60):
            assert {told(store, job).state for job in quick} == {"delivered"}
            assert len(slow.received) <= 4
            slow.hold.set()
            assert {told(store, job).state for job in stuck} == {"delivered"}


@pytest.mark.fault("B9")
def test_a_receiver_that_one_owner_floods_is_open_to_others(store: Store) -> None:
    """Somebody fills all places at another's receiver: the next place there is the other's, however long the first queue is."""
    with receiving(host="127.0.0.2") as shared:
        shared.hold = threading.Event()
        flood = [succeeded(store, f"{shared.url}/flood", "greedy") for _ in range(12)]
        late = succeeded(store, f"{shared.url}/late", "modest")
        with sending(store, timeout_s=60, limits={"per_receiver": 1}):
            eventually(lambda: shared.received)
            shared.hold.set()
            assert {told(store, job).state for job in [*flood, late]} == {"delivered"}
        assert [request.path for request in shared.received].index("/hook/late") <= 1


@pytest.mark.fault("B9")
def test_an_owner_may_have_so_many_webhooks_on_their_way(store: Store) -> None:
    """With so many, a job that names a URL is refused, with the reason; one without, another owner's, and one after a delivery
    are taken."""
    limits = QueueArgs(max_owner_webhooks=2)

    def ask(owner: str, url: str | None = "https://hooks.example/") -> Job:
        request = MusicRequest(prompt="piano", model="m", seed=1, webhook_url=url)
        return store.jobs.submit(request, owner=owner, deadline_s=600, max_attempts=3, limits=limits)[0]

    made = [ask("studio") for _ in range(2)]
    for job in made:
        store.jobs.cancel(job.id)
    with pytest.raises(
        QuotaExceeded, match=r"2 webhooks of your jobs are on their way, and queue\.max_owner_webhooks is 2"
    ):
        ask("studio")
    with pytest.raises(QuotaExceeded):
        store.jobs.retry(made[0].id, 3, limits=limits)
    ask("studio", url=None)
    ask("another")
    assert store.webhooks.pending("studio") == 2
    delivery = store.webhooks.claim(60)
    assert delivery is not None
    assert store.webhooks.record(delivery, "delivered", status=200)
    ask("studio")


def test_addresses_of_one_network_are_one_receiver() -> None:
    """An IPv4 address is a receiver, in whichever spelling; of IPv6, the network whose addresses all are one owner's."""
    assert receiver_at("192.0.2.1") == receiver_at("::ffff:192.0.2.1") == "192.0.2.1"
    assert receiver_at("2001:db8::1") == receiver_at("2001:db8::ffff:2") != receiver_at("2001:db8:0:1::1")


def test_an_event_is_sent_as_soon_as_its_job_has_ended(store: Store, receiver: Receiver) -> None:
    """A sender that waits is woken by the end of a job."""
    with sending(store):
        job = succeeded(store, receiver.url)
        assert told(store, job).state == "delivered"


def test_an_event_that_is_out_of_date_is_not_sent(store: Store, receiver: Receiver) -> None:
    """A job that was run again before its failure was told is told of when it ends again."""
    job = submit(store, receiver.url)
    store.claims.fail(claim(store), GenerationError("no"))
    store.jobs.retry(job.id, max_attempts=3)
    with sending(store):
        assert "run again" in told(store, job).history[0]["error"]
        finish(store, claim(store))
        eventually(lambda: receiver.received)
    assert [json.loads(request.body)["type"] for request in receiver.received] == ["job.succeeded"]


# --- Receivers that misbehave -----------------------------------------------------------------------------------------


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Store]:
    """A store on SQLite: the network is the same for both."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    store.migrate()
    yield store
    store.close()


def _read_request(connection: socket.socket) -> None:
    """All of it: closing a connection with something unread resets it, and takes what was answered along."""
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
    ("answer", "error"),
    [
        (_drip, "no answer within 0.5 s"),
        (_say_nothing, "no answer within 0.5 s"),
        (_endless_headers, "not HTTP"),
        (_not_http, "not HTTP"),
        (_hang_up, "not HTTP"),
    ],
)
def test_a_receiver_that_misbehaves_costs_one_bounded_attempt(
    lite: Store, answer: Callable[[socket.socket, threading.Event], None], error: str
) -> None:
    """Whatever a receiver does, the attempt ends, with a reason that repeats nothing of what it said."""
    with answering(answer) as url:
        job = succeeded(lite, url)
        with sending(lite, retries_s=[], timeout_s=0.5):
            delivery = told(lite, job)
    assert (delivery.state, delivery.attempts) == ("failed", 1)
    assert error in delivery.history[0]["error"]
    assert "secret" not in delivery.history[0]["error"]


def test_the_body_of_an_answer_is_not_waited_for(lite: Store) -> None:
    """An answer with 200 counts, even when its body never ends."""

    def endless(connection: socket.socket, over: threading.Event) -> None:
        _read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not over.is_set():
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    with answering(endless) as url:
        job = succeeded(lite, url)
        with sending(lite, retries_s=[]):
            assert told(lite, job).state == "delivered"


def test_nobody_listening_is_a_failed_attempt(lite: Store) -> None:
    """A connection that is refused says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    job = succeeded(lite, f"http://127.0.0.1:{port}/")
    with sending(lite, retries_s=[]):
        assert "refused" in told(lite, job).history[0]["error"]


# --- Where nothing may be sent ----------------------------------------------------------------------------------------

INSIDE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255",  # noqa: S104 - to refuse
    "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1",
    "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1", "fec0::1",
    "ff02::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00::1",
]


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside_are_known(address: str) -> None:
    """Private, loopback, link-local, shared, reserved, multicast, mapped and translated addresses are not public."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_known(address: str) -> None:
    """Addresses beside the special blocks are public."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", INSIDE)
def test_a_url_with_an_address_inside_is_refused_at_once(address: str) -> None:
    """A literal address inside needs no lookup to be refused, and is taken where the operator allows it."""
    url = f"http://[{address}]:8080/x" if ":" in address else f"http://{address}:8080/x"
    with pytest.raises(InvalidRequest, match="not a public address"):
        check_url(url, allow_private=False)
    check_url(url, allow_private=True)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "a.localhost"])
def test_names_of_this_machine_are_refused_at_once(name: str) -> None:
    """localhost and what is under it need no lookup either."""
    with pytest.raises(InvalidRequest, match="not a public address"):
        check_url(f"https://{name}/", allow_private=False)
    check_url(f"https://{name}/", allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/",
        "http://017700000001/", "http://127.0.0.1./", "http://1.2.3/", "http://[fe80::1%25eth0]/", "http://[::1%1]/",
        "http://user:secret@hooks.example/", "http://user@hooks.example/", "http://127.0.0.1\\@hooks.example/",
        "ftp://hooks.example/", "file:///etc/passwd", "gopher://hooks.example/", "//hooks.example/", "hooks.example", "",
        "http://", "http:///path", "http://?", "http://:80/", "http://hooks.example:0/", "http://hooks.example:65536/",
        "http://hooks.example:port/", "http://a..b/", "http://-a.example/", "http://a%2eb/", "http://exa mple/",
        "http://hooks.example/\r\nX: y", "http://" + "a" * 64 + ".example/", "http://１２７.0.0.1/", "http://[::1/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("allow_private", [False, True])
def test_urls_of_another_form_are_refused(url: str, allow_private: bool) -> None:
    """Addresses in disguise, credentials, other schemes and what is no URL are refused, whatever the operator allows."""
    with pytest.raises(InvalidRequest, match="webhook_url"):
        check_url(url, allow_private)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example", "http://hooks.example:8080/a/b?c=d&e=@f", "https://xn--bcher-kva.example/",
        "https://a_b.example/", "https://hooks.example./", "http://8.8.8.8/", "https://[2606:4700::1111]:8443/",
        "https://1e100.net/", "https://0xyz.example/", "https://hooks.example/#part",
    ],
)  # fmt: skip
def test_urls_of_the_outside_world_are_taken(url: str) -> None:
    """Names and public addresses pass, with port, path and query."""
    check_url(url, allow_private=False)
    assert MusicRequest(prompt="x", webhook_url=url.partition("#")[0]).webhook_url


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
    lite: Store, receiver: Receiver, answers: list[str]
) -> None:
    """One address inside among those of a name is enough to refuse it, before any connection."""
    job = succeeded(lite, f"http://hooks.example:{receiver.port}/")
    with sending(lite, retries_s=[], allow_private=False, resolve=lambda host, port: answers):
        delivery = told(lite, job)
    assert delivery.history[0]["error"] == "hooks.example is not a public address"
    assert receiver.received == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"])
def test_spellings_of_loopback_are_seen_through_when_sending(lite: Store, receiver: Receiver, host: str) -> None:
    """What the system's resolver makes of a host counts: no spelling of loopback is connected to."""
    job = succeeded(lite, f"http://hooks.example:{receiver.port}/")
    with sending(lite, retries_s=[], allow_private=False, resolve=lambda _, port: resolve(host, port)):
        assert told(lite, job).history[0]["error"] == "hooks.example is not a public address"
    assert receiver.received == []


def test_a_url_that_is_no_longer_allowed_is_not_sent_to(lite: Store, receiver: Receiver) -> None:
    """Once the operator no longer allows addresses inside, deliveries that are due there end."""
    job = succeeded(lite, receiver.url)
    with sending(lite, allow_private=False):
        delivery = told(lite, job)
    assert (delivery.state, delivery.attempts, receiver.received) == ("failed", 1, [])
    assert "127.0.0.1 is not a public address" in delivery.history[0]["error"]


def test_the_connection_goes_to_the_address_that_was_checked(lite: Store, receiver: Receiver) -> None:
    """A name is looked up once an attempt and connected to by that answer, so a second answer is never used."""
    answers = [["127.0.0.1"], ["127.0.0.9"]]
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers.pop(0)

    job = succeeded(lite, f"http://hooks.example:{receiver.port}/x?y=z")
    with sending(lite, resolve=rebinding):
        assert told(lite, job).state == "delivered"
    assert asked == [("hooks.example", receiver.port)]
    [request] = receiver.received
    assert (request.path, request.headers["Host"]) == ("/x?y=z", f"hooks.example:{receiver.port}")


def test_the_next_address_is_tried_when_one_is_dead(lite: Store, receiver: Receiver) -> None:
    """A name with several addresses is reached by the one that listens."""
    job = succeeded(lite, f"http://hooks.example:{receiver.port}/")
    with sending(lite, retries_s=[], resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"]):
        assert told(lite, job).state == "delivered"


def test_a_name_without_an_address_is_a_failed_attempt(lite: Store) -> None:
    """A lookup that fails is written down like any other failure."""
    job = succeeded(lite, "https://hooks.example/")

    def nothing(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with sending(lite, retries_s=[], resolve=nothing):
        assert told(lite, job).history[0]["error"] == "hooks.example has no address"


def test_the_system_resolver_is_what_is_used() -> None:
    """Without another one given, names are looked up as everywhere on this machine."""
    assert set(resolve("localhost", 80)) <= {"127.0.0.1", "::1"}


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS context for the name hooks.example, trusted through SSL_CERT_FILE as an operator's own CA would be."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "cert.pem"
    secret = tmp_path / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return context


@pytest.mark.parametrize(("host", "state"), [("hooks.example", "delivered"), ("other.example", "failed")])
def test_the_certificate_is_that_of_the_name(lite: Store, certificate: ssl.SSLContext, host: str, state: str) -> None:
    """Over TLS the certificate must be for the URL's name, although the connection is made to an address."""
    with receiving(certificate) as receiver:
        job = succeeded(lite, f"https://{host}:{receiver.port}/")
        with sending(lite, retries_s=[], resolve=lambda host, port: ["127.0.0.1"]):
            delivery = told(lite, job)
        assert delivery.state == state
        assert len(receiver.received) == (state == "delivered")
    if state == "failed":
        assert "certificate is not valid for 'other.example'" in delivery.history[0]["error"]


# --- Through the API --------------------------------------------------------------------------------------------------


def test_a_client_is_told_and_can_see_that_it_was(tmp_path: Path, receiver: Receiver) -> None:
    """A job submitted with webhook_url tells it the job's own view, and shows how the delivery went."""
    settings: dict[str, Any] = {"webhook_secret": SECRET, "webhooks": {"allow_private": True, "retries_s": [0.05]}}
    receiver.answers = [(500, {})]
    with running(tmp_path, {"ace-step": simulated()}, **settings) as service:
        submitted = service.submit(webhook_url=receiver.url)
        assert submitted["webhook"] is None
        view = eventually(lambda: job if _is_told(job := service.job(submitted["id"])) else None)

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


def _is_told(job: dict[str, Any]) -> bool:
    return bool(job["webhook"]) and job["webhook"]["state"] == "delivered"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://user:x@hooks.example/", "ftp://hooks.example/", "http://0x7f.1/"]
)
def test_a_url_that_may_not_be_sent_to_is_refused_at_submission(tmp_path: Path, url: str) -> None:
    """422 names the field, and no job is made."""
    with running(tmp_path, {"ace-step": simulated()}, workers=0, webhook_secret=SECRET) as service:
        answer = service.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": url})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert "webhook_url" in answer.text
        assert service.client.get("/v1/jobs").json()["jobs"] == []


def test_without_a_secret_there_are_no_webhooks(tmp_path: Path) -> None:
    """A service that cannot sign takes no webhook_url, and its schema says so."""
    with running(tmp_path, {"ace-step": simulated()}, workers=0) as service:
        answer = service.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": "https://hooks.example/"})
        page = service.client.get("/openapi.json").json()
    assert answer.status_code == 422
    body = page["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    field = page["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]["webhook_url"]
    assert "webhook_secret" in field["description"]
    assert field["type"] == "null"


def test_a_sender_ends_without_waiting_for_what_is_not_due(store: Store) -> None:
    """Closing a sender that has nothing under way returns, whatever is still to be tried again."""
    job = succeeded(store, "http://127.0.0.1:9/")
    with sending(store, retries_s=[1000.0]):
        tried(store, job)
    latest = store.webhooks.latest(job.id)
    assert latest is not None
    assert (latest.state, latest.due_at > time.time() + 500) == ("pending", True)
