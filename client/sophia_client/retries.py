"""When a call that failed is repeated, and after how long."""

import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sophia_client.errors import ApiError, ConnectionLost, SophiaError, TooManyRequests, Unavailable

_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How long failed calls are repeated.

    `for_s` is the most seconds from a call's first failure to its last repetition; 0 means never to repeat. A `Retry-After` of
    the service is kept to; one that ends after that time is not waited for. `on_retry` is called before each pause, with the error
    and the seconds of the pause.
    """

    for_s: float = 60.0
    on_retry: Callable[[SophiaError, float], None] | None = None


class Patience:
    """What is left of the time in which one call may be repeated."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._failures = 0
        self._ends_at = 0.0
        self._answer_lost = False

    def renew(self) -> None:
        """Begin anew after progress, such as a received part of a file."""
        self._failures = 0

    def pause_s(self, error: SophiaError) -> float:
        """The seconds to wait before the next try. Raises `error` if there is none."""
        now = time.monotonic()
        if not self._failures:
            self._ends_at = now + self._retries.for_s
        pause_s = self._wanted_s(error)
        if isinstance(error, ApiError):
            error.may_have_worked = self._answer_lost
        if pause_s is None or now + pause_s > self._ends_at:
            raise error
        self._failures += 1
        self._answer_lost = self._answer_lost or _may_have_worked(error)
        if self._retries.on_retry is not None:
            self._retries.on_retry(error, pause_s)
        return pause_s

    def _wanted_s(self, error: SophiaError) -> float | None:
        """The pause before the next try. None if the error would come again."""
        if isinstance(error, TooManyRequests | Unavailable) and error.retry_after_s is not None:
            return error.retry_after_s + random.uniform(0, _FIRST_WAIT_S)
        if isinstance(error, TooManyRequests | Unavailable) or _may_come_back(error):
            most = min(_FIRST_WAIT_S * 2 ** min(self._failures, 10), _LONGEST_WAIT_S)
            return random.uniform(most / 2, most)
        return None


def _may_have_worked(error: SophiaError) -> bool:
    """Whether the service may have done what was asked: it got the call, or a proxy before it lost the answer."""
    if isinstance(error, ConnectionLost):
        return error.was_sent
    return isinstance(error, ApiError) and error.status in (502, 504)


def _may_come_back(error: BaseException | None) -> bool:
    """Whether it is a broken connection, and not a certificate that will not become valid."""
    if not isinstance(error, ConnectionLost):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__ or cause.__context__
    return True
