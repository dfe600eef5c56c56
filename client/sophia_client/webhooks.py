"""Checks webhooks as Standard Webhooks specifies (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md)."""

import base64
import binascii
import hmac
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from sophia_client.answer import Answer
from sophia_client.answers import Job
from sophia_client.errors import SophiaError

TOLERANCE_S: Final = 300.0
_ID: Final = "webhook-id"
_TIMESTAMP: Final = "webhook-timestamp"
_SIGNATURE: Final = "webhook-signature"


class WebhookRefused(SophiaError):
    """A request is not a webhook of the service, or is too old. Answer it with 400 or 401."""


class WebhookEvent(Answer):
    """The end of a job."""

    id: str
    """The same for every delivery of this event: remember it to handle an event once."""
    type: str
    """`job.` and the job's state."""
    timestamp: datetime
    """When the job ended."""
    job: Job
    """The job."""


class _Body(Answer):
    type: str
    timestamp: datetime
    data: Job


def read_webhook(
    secret: str | Iterable[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> WebhookEvent:
    """Check the signature of a webhook and return its event. Raises WebhookRefused.

    `secret` is what `sophia keys webhook-secret NAME` prints (`whsec_…`), or several of them while it changes. `headers` may have
    names in any case; `body` is the body as it was received. The webhook must have been sent within `tolerance_s` seconds of `now`
    (seconds since the epoch; the present without it). Raises ValueError for a secret that cannot be one.
    """
    keys = [_key(one) for one in ([secret] if isinstance(secret, str) else secret)]
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (_ID, _TIMESTAMP, _SIGNATURE) if not given.get(name)]
    if missing:
        raise WebhookRefused(f"The request has no header {missing[0]}")
    _check_age(given[_TIMESTAMP], time.time() if now is None else now, tolerance_s)
    content = f"{given[_ID]}.{given[_TIMESTAMP]}.".encode() + body
    if not any(_signs(key, content, given[_SIGNATURE]) for key in keys):
        raise WebhookRefused("The webhook's signature is not made with this secret, or its content was changed")
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as error:
        raise WebhookRefused("The webhook's body is not the end of a job") from error
    return WebhookEvent(id=given[_ID], type=found.type, timestamp=found.timestamp, job=found.data)


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("secret must be whsec_ and base64, as `sophia keys webhook-secret` prints it") from None


def _check_age(timestamp: str, now: float, tolerance_s: float) -> None:
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        raise WebhookRefused(f"The header {_TIMESTAMP} is not a number of seconds")
    if abs(now - int(timestamp)) > tolerance_s:
        raise WebhookRefused(
            f"The webhook was not sent within {tolerance_s:g} s of now: it may be a repetition by others"
        )


def _signs(key: bytes, content: bytes, signatures: str) -> bool:
    """Whether one of the signatures, separated by spaces, is the key's."""
    ours = f"v1,{base64.b64encode(hmac.digest(key, content, 'sha256')).decode()}".encode()
    return any(hmac.compare_digest(ours, one.encode()) for one in signatures.split())
