"""One attempt to deliver a webhook: the event, its HTTP request, and what the answer means."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import httpcore
import httpx

from serve_app import __version__
from serve_app.background.webhook_sender.addresses import Resolve, check_url
from serve_app.background.webhook_sender.network import CheckedNetwork, ReceiverBusy
from serve_app.background.webhook_sender.receivers import Receivers
from serve_app.background.webhook_sender.signing import sign, signing_keys
from serve_app.config import AppArgs
from serve_app.errors import InvalidRequest
from serve_app.jobs import Job
from serve_app.store.webhooks import Delivery

logger = logging.getLogger("ray.serve.sophia")

_GONE: Final = 410
_RETRY_AFTER_STATUSES: Final = (429, 502, 503, 504)
"""The statuses with which Standard Webhooks honours a Retry-After header."""

_MAX_RETRY_AFTER_S: Final = 86_400
_MAX_ERROR_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an attempt: success when `error` is None."""

    status: int | None = None
    """The HTTP status, when the receiver answered."""
    error: str | None = None
    """Why the attempt failed. The client reads it."""
    final: bool = False
    """Whether a retry is pointless."""
    retry_after_s: float = 0.0
    """The shortest wait before a retry that the receiver asked for."""


@dataclass(frozen=True, slots=True)
class WebhookForm:
    """How the webhooks of a foreign API's jobs differ from native ones."""

    render: Callable[[Job], Any]
    """Returns the body, in JSON's types."""
    is_accepted: Callable[[int], bool]
    """Whether a status of the receiver's answer means that it has the webhook."""
    retries_s: Sequence[float]
    """Seconds to wait before each retry."""


class Attempts:
    """Makes attempts. Thread-safe.

    `render` returns the data of an event, in JSON's types: the job as its client sees it. `forms` has the forms of foreign APIs.
    """

    def __init__(
        self,
        args: AppArgs,
        render: Callable[[Job], dict[str, Any]],
        resolve: Resolve,
        receivers: Receivers,
        forms: Mapping[str, WebhookForm],
    ) -> None:
        self._args = args.webhooks
        self._keys = args.webhook_keys
        self._render = render
        self._forms = forms
        self._resolve = resolve
        self._receivers = receivers
        self._tls = httpx.create_ssl_context()

    def make(self, delivery: Delivery, job: Job) -> Outcome:
        """Send the event once. Raises ReceiverBusy when the receiver has too many attempts in progress."""
        if delivery.event != f"job.{job.status}":
            return Outcome(error=f"the job was run again before {delivery.event} was delivered", final=True)
        if delivery.attempts > len(self.retries_s(job)) + 1:
            return Outcome(error="the sender died during every attempt", final=True)
        try:
            check_url(delivery.url, self._args.allow_private)
            return self._send(delivery, job)
        except ReceiverBusy:
            raise
        except Exception as error:
            return self._failure(delivery, error)

    def retries_s(self, job: Job) -> Sequence[float]:
        """Seconds to wait before each retry of a job's webhook."""
        form = self._forms.get(job.family)
        return self._args.retries_s if form is None else form.retries_s

    def _send(self, delivery: Delivery, job: Job) -> Outcome:
        form = self._forms.get(job.family)
        body = _event(delivery, self._render(job)) if form is None else form.render(job)
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        outcome = self._post(delivery, text, signing_keys(self._keys, job.owner))
        if form is None or outcome.status is None or outcome.error is not None or form.is_accepted(outcome.status):
            return outcome
        return Outcome(outcome.status, f"answered {outcome.status}")

    def _failure(self, delivery: Delivery, error: Exception) -> Outcome:
        match error:
            case InvalidRequest():  # the URL was allowed when the job was submitted
                return Outcome(error=error.message, final=True)
            case httpcore.TimeoutException():
                return Outcome(error=f"no answer within {self._args.timeout_s:g} s")
            case httpcore.ProtocolError():  # its text quotes the answer, which the client may have no right to read
                return Outcome(error="the answer was not HTTP")
            case httpcore.NetworkError():
                return Outcome(error=str(error)[:_MAX_ERROR_CHARACTERS] or type(error).__name__)
        # Every other error counts as a failed attempt, too, so that the retries come to an end.
        logger.error("webhook %s could not be sent", delivery.id, exc_info=error)
        return Outcome(error=type(error).__name__)

    def _post(self, delivery: Delivery, body: bytes, keys: Sequence[bytes]) -> Outcome:
        """Send the request. The body of the answer, which may be endless, is not read."""
        url = httpx.URL(delivery.url)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = _headers(url, delivery, body, keys)
        deadline = time.monotonic() + self._args.timeout_s
        admit = partial(self._receivers.admit, delivery)
        network = CheckedNetwork(self._resolve, admit, self._args.allow_private, deadline)
        with (
            httpcore.ConnectionPool(ssl_context=self._tls, network_backend=network) as http,
            http.stream("POST", target, headers=list(headers.items()), content=body) as answer,
        ):
            received = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
            return _outcome(answer.status, received.get(b"retry-after", ""))


def _event(delivery: Delivery, data: dict[str, Any]) -> dict[str, Any]:
    moment = datetime.fromtimestamp(delivery.created_at, UTC).isoformat(timespec="milliseconds")
    return {"type": delivery.event, "timestamp": moment.replace("+00:00", "Z"), "data": data}


def _headers(url: httpx.URL, delivery: Delivery, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    timestamp = int(time.time())
    return {
        "Host": url.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "User-Agent": f"Sophia/{__version__}",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(keys, delivery.id, timestamp, body),
    }


def _outcome(status: int, retry_after: str) -> Outcome:
    if 200 <= status < 300:
        return Outcome(status)
    redirect = "; redirects are not followed" if 300 <= status < 400 else ""
    retry_after_s = _retry_after_s(retry_after) if status in _RETRY_AFTER_STATUSES else 0
    return Outcome(status, f"answered {status}{redirect}", final=status == _GONE, retry_after_s=retry_after_s)


def _retry_after_s(retry_after: str) -> int:
    """The seconds of a Retry-After header, at most a day; 0 for a header without a number of seconds."""
    if not (retry_after.isascii() and retry_after.isdecimal()):
        return 0
    return min(int(retry_after[:9]), _MAX_RETRY_AFTER_S)
