"""Telling a client's server that its job has ended.

Signed as Standard Webhooks has it (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md), tried again from
the store until it is answered with 2xx, and never sent to an address inside a network unless the operator allows that: the host
is looked up here, all its addresses are checked, and the connection goes to one of those very addresses, so that a name whose
answer changes between check and connection gains nothing.
"""

import base64
import hmac
import json
import logging
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

import httpcore
import httpx

from serve_app import __version__
from serve_app.background.receivers import Receivers, receiver_at
from serve_app.config import AppArgs
from serve_app.errors import InvalidRequest, NotFound, StoreUnavailable
from serve_app.jobs import Job
from serve_app.store import Store
from serve_app.store.webhooks import Delivery, DeliveryState
from serve_app.supervision import PeriodicThread

logger = logging.getLogger("ray.serve.sophia")

Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host, for a port. Raises OSError when there are none."""

CONNECT_S: Final = 5.0
AT_ONCE: Final = 8
"""Attempts under way in one process."""

_LEASE_S: Final = 180.0  # above any `timeout_s`, and a resolver's own patience, which nothing here can shorten
_LOOK_S: Final = 1.0
_JITTER: Final = 0.25
_BUSY_S: Final = 1.0
"""What a delivery waits at least when its receiver is busy."""
_MAX_WAIT_S: Final = 86_400  # what a Retry-After may ask for
_CHUNK_BYTES: Final = 16_384
_GONE: Final = 410
_BUSY: Final = (429, 502, 503, 504)  # where the specification has Retry-After heeded

_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,254}}$)({_LABEL}\.)*(?![0-9]+\.?$|0[xX]){_LABEL}\.?")
"""A host name. Its last label is no number: that is how an address in disguise ends (0x7f.1, 2130706433, 0177.0.0.1)."""

_UNICAST: Final = IPv6Network(
    "2000::/3"
)  # everything else in IPv6 is no public unicast address, mapped IPv4 and NAT64 included
_SPECIAL: Final = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
"""What IANA's special-purpose registries (RFC 6890) hold back. Python's own `is_global` differs from one version to the next."""


# --- At submission ----------------------------------------------------------------------------------------------------


def check_url(url: str, allow_private: bool) -> None:
    """Refuse a `webhook_url` that can never be sent to. Looks at the text only; names are looked up when it is sent.

    Raises InvalidRequest.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"webhook_url: {error}") from error
    if parsed.scheme not in ("http", "https"):
        raise InvalidRequest("webhook_url: must begin with https:// or http://")
    if parsed.userinfo:
        raise InvalidRequest("webhook_url: must not hold a user name or password; check the signature instead")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidRequest(f"webhook_url: a port is 1 to 65535, got {parsed.port}")
    _check_host(parsed.raw_host.decode("ascii"), allow_private)


def _check_host(host: str, allow_private: bool) -> None:
    address = _address(host)
    if address is None and not _NAME.fullmatch(host):
        raise InvalidRequest(f"webhook_url: {host!r} is neither a host name nor an IP address in its usual spelling")
    inside = is_loopback_name(host) if address is None else not is_public(address)
    if inside and not allow_private:
        raise InvalidRequest(f"webhook_url: {host} is not a public address")


def is_loopback_name(host: str) -> bool:
    """Whether a name always means this machine (RFC 6761, 6.3)."""
    return f".{host.rstrip('.').lower()}".endswith(".localhost")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the public internet, and of a single machine there."""
    if address.version == 6 and address not in _UNICAST:
        return False
    return not any(address in block for block in _SPECIAL)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return None if "%" in host else ip_address(host)  # no zones: they name an interface of this machine
    except ValueError:
        return None


# --- Sending ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of an attempt: `status` where there was an answer, `error` where it did not count."""

    status: int | None = None
    error: str | None = None
    final: bool = False
    wait_s: float = 0.0


def resolve(host: str, port: int) -> list[str]:
    """The addresses that this machine finds for a host."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Sender:
    """Sends what is due, in every API process; the store shares the work out.

    `render` gives the event's data: the job as its client sees it, in JSON's types.
    """

    def __init__(
        self, store: Store, args: AppArgs, render: Callable[[Job], dict[str, Any]], resolve: Resolve = resolve
    ) -> None:
        self._store = store
        self._args = args.webhooks
        self._render = render
        self._resolve = resolve
        self._keys = args.webhook_keys
        self._tls = httpx.create_ssl_context()
        self._under_way = Receivers(self._args.per_receiver, self._args.per_owner)
        self._room = threading.Semaphore(AT_ONCE)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")
        self._ended = store.notifications.waiter("ended")
        self._thread = PeriodicThread(store.supervisor, "webhooks", self._step)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the attempts under way, which takes `timeout_s` at most."""
        self._thread.stopping.set()
        self._ended.wake()
        self._thread.join()
        self._pool.shutdown()

    def _step(self) -> None:
        seen = self._ended.count()
        if not self._room.acquire(timeout=_LOOK_S):
            return
        begun = False
        try:
            begun = self._begin()
        finally:
            if not begun:
                self._room.release()
        if not begun:
            self._ended.wait(seen, _LOOK_S)

    def _begin(self) -> bool:
        """Start one attempt; it gives its room back. False when none is due."""
        delivery = self._claim(self._under_way.owners()) or self._claim(self._under_way.busy_owners())
        if delivery is None:
            return False
        self._under_way.begin(delivery)
        self._pool.submit(self._deliver, delivery)
        return True

    def _claim(self, without: Sequence[str]) -> Delivery | None:
        return self._store.webhooks.claim(_LEASE_S, self._under_way.busy(), without)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            self._record(delivery, self._attempt(delivery))
        except _Busy as busy:
            self._store.webhooks.postpone(delivery, busy.receiver, random.uniform(_BUSY_S, 2 * _BUSY_S))
        except NotFound:
            logger.info("webhook %s: job %s was deleted", delivery.id, delivery.job)
        except StoreUnavailable as error:  # the lease brings it back
            logger.warning("webhook %s is tried again later: %s", delivery.id, error)
        except Exception:  # nobody looks at what this thread of the pool raises; the lease brings it back, too
            logger.exception("webhook %s is tried again later", delivery.id)
        finally:
            self._under_way.end(delivery)
            self._room.release()
            self._ended.wake()

    def _attempt(self, delivery: Delivery) -> _Outcome:  # noqa: PLR0911 - one return for each way an attempt ends
        job = self._store.jobs.get(delivery.job)
        if delivery.event != f"job.{job.status}":
            return _Outcome(error=f"the job was run again before {delivery.event} arrived", final=True)
        if delivery.attempts > len(self._args.retries_s) + 1:
            return _Outcome(error="every sender died while it tried", final=True)
        try:
            check_url(delivery.url, self._args.allow_private)
            body = self._body(delivery, job)
            return self._outcome(*self._post(delivery, body, signing_keys(self._keys, job.owner)))
        except InvalidRequest as error:  # it was allowed when the job was submitted
            return _Outcome(error=error.message, final=True)
        except httpcore.TimeoutException:
            return _Outcome(error=f"no answer within {self._args.timeout_s:g} s")
        except httpcore.ProtocolError:  # its text repeats what was answered, which may not be the client's to read
            return _Outcome(error="the answer was not HTTP")
        except httpcore.NetworkError as error:
            return _Outcome(error=str(error)[:200] or type(error).__name__)
        except _Busy:
            raise
        except Exception as error:  # whatever it is, it is an attempt that failed: one is never made without end
            logger.exception("webhook %s could not be sent", delivery.id)
            return _Outcome(error=type(error).__name__)

    def _body(self, delivery: Delivery, job: Job) -> bytes:
        moment = datetime.fromtimestamp(delivery.created_at, UTC).isoformat(timespec="milliseconds")
        event = {"type": delivery.event, "timestamp": moment.replace("+00:00", "Z"), "data": self._render(job)}
        return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()

    def _post(self, delivery: Delivery, body: bytes, keys: Sequence[bytes]) -> tuple[int, str | None]:
        """Status and Retry-After of the answer. Its body, which may have no end, stays unread."""
        timestamp = int(time.time())
        url = httpx.URL(delivery.url)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "User-Agent": f"Sophia/{__version__}",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(keys, delivery.id, timestamp, body),
        }
        deadline = time.monotonic() + self._args.timeout_s
        admit = partial(self._under_way.admit, delivery)
        network = _Network(self._resolve, admit, self._args.allow_private, deadline)
        with (
            httpcore.ConnectionPool(ssl_context=self._tls, network_backend=network) as http,
            http.stream("POST", target, headers=list(headers.items()), content=body) as answer,
        ):
            found = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
            return answer.status, found.get(b"retry-after")

    def _outcome(self, status: int, retry_after: str | None) -> _Outcome:
        if 200 <= status < 300:
            return _Outcome(status)
        heeded = status in _BUSY and retry_after is not None and retry_after.isascii() and retry_after.isdecimal()
        wait_s = min(int(str(retry_after)[:9]), _MAX_WAIT_S) if heeded else 0
        redirected = "; redirects are not followed" if 300 <= status < 400 else ""
        return _Outcome(status, f"answered {status}{redirected}", final=status == _GONE, wait_s=wait_s)

    def _record(self, delivery: Delivery, outcome: _Outcome) -> None:
        last = delivery.attempts > len(self._args.retries_s)
        state: DeliveryState = (
            "delivered" if outcome.error is None else "failed" if outcome.final or last else "pending"
        )
        delay_s = self._args.retries_s[delivery.attempts - 1] * random.uniform(1, 1 + _JITTER) if not last else 0
        recorded = self._store.webhooks.record(
            delivery,
            state,
            status=outcome.status,
            error=outcome.error,
            retry_in_s=max(delay_s, outcome.wait_s) if state == "pending" else 0,
        )
        logger.info(
            "webhook %s of job %s, attempt %s: %s%s",
            delivery.id,
            delivery.job,
            delivery.attempts,
            outcome.error or state,
            "" if recorded else ", too late",
        )


# --- Signing ----------------------------------------------------------------------------------------------------------


def signing_keys(keys: Iterable[bytes], owner: str) -> tuple[bytes, ...]:
    """The keys for one client's webhooks: each API key has its own, or one client could forge webhooks to another.

    Where nobody needs an API key (`owner` is empty) they are the configured keys themselves.
    """
    return tuple(hmac.digest(key, owner.encode(), "sha256") if owner else key for key in keys)


def shown_secret(key: bytes) -> str:
    """A key as its receiver configures it."""
    return f"whsec_{base64.b64encode(key).decode()}"


def sign(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature header: HMAC-SHA256 over id, timestamp (seconds since the epoch) and body, by each key."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, content, 'sha256')).decode()}" for key in keys)


# --- The way there ----------------------------------------------------------------------------------------------------


class _Busy(Exception):
    """As many attempts as may be are under way to the address that a host name has."""

    def __init__(self, receiver: str) -> None:
        super().__init__(receiver)
        self.receiver = receiver


class _Network(httpcore.SyncBackend):
    """Connects to checked addresses only, and ends everything by a deadline on the monotonic clock.

    A network backend is httpcore's documented place for DNS of one's own; host name and certificate are checked as always,
    since the URL keeps its name.
    """

    def __init__(self, resolve: Resolve, admit: Callable[[str], bool], allow_private: bool, deadline: float) -> None:
        self._resolve = resolve
        self._admit = admit
        self._allow_private = allow_private
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        busy: _Busy | None = None
        for address in self._addresses(host, port):
            if not self._admit(address):
                busy = _Busy(receiver_at(address))
                continue
            try:
                seconds = min(CONNECT_S, _left(self._deadline))
                stream = super().connect_tcp(address, port, seconds, local_address, socket_options)
                return _Stream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise busy or failed

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address") from error
        inside = [text for text in found if (address := _address(text)) is None or not is_public(address)]
        if inside and not self._allow_private:
            raise httpcore.ConnectError(f"{host} is not a public address")
        return found


class _Stream(httpcore.NetworkStream):
    """A connection whose reads and writes all end by one deadline: a byte now and then does not buy more time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _CHUNK_BYTES):
            self._stream.write(buffer[start : start + _CHUNK_BYTES], _left(self._deadline))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = min(CONNECT_S, _left(self._deadline))
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._deadline)

    def close(self) -> None:
        with suppress(OSError):
            self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("no answer in time")
    return left
