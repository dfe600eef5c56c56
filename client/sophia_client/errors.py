"""The exceptions of the client. No text of theirs contains the API key."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from sophia_client.answers import Job

_MAX_SHOWN = 200
"""Characters of an answer that is not the service's own, in an error's text."""


class SophiaError(Exception):
    """The base class of everything that the client raises on purpose, except ValueError for wrong arguments."""


class ConnectionLost(SophiaError):
    """The service could not be reached, or the connection broke, until the client gave up.

    `was_sent` is whether the service may have got the last try.
    """

    def __init__(self, message: str, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class UnexpectedAnswer(SophiaError):
    """The answer is not one of Sophia's: the address may be another service's."""


class DamagedDownload(SophiaError):
    """A downloaded file is not the song that the job names, by its SHA-256. It was deleted."""


class WaitTimeout(SophiaError, TimeoutError):
    """The job did not end in time. It goes on; `job` is its latest version, or None if none was seen."""

    def __init__(self, message: str, job: Job | None) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(SophiaError):
    """A job ended without a song: it failed, expired or was cancelled.

    `job` is the job; `code` the failure's code as in docs/FAILURES.md, or the job's state if it has none.
    """

    def __init__(self, job: Job) -> None:
        reason = f": {job.error.message}" if job.error else ""
        super().__init__(f"Job {job.id} is {job.state}{reason}")
        self.job = job
        self.code = job.error.code if job.error else job.state


class WrongField(NamedTuple):
    """One invalid field of a request: its path, the given value (None if it is missing), and what is allowed."""

    field: str
    value: str | None
    message: str


class ApiError(SophiaError):
    """The service refused a call. The attributes are the fields of its problem+json answer (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        """The HTTP status."""
        self.code = str(problem.get("code", ""))
        """The stable code, as listed in docs/FAILURES.md."""
        self.title = str(problem.get("title", ""))
        """The kind of error."""
        self.detail = str(problem.get("detail", ""))
        """What is wrong with this call, and what is allowed."""
        self.request_id = str(problem.get("request_id", ""))
        """The id under which the service's logs have this call."""
        self.fields = [_wrong_field(one) for one in problem.get("errors") or ()]
        """The invalid fields."""
        self.retry_after_s = retry_after_s
        """After how many seconds the service says that the call may be repeated; None if it does not say."""
        self.may_have_worked = False
        """Whether the answer to an earlier try of the same call was lost, so that that try may have had its effect."""
        super().__init__(f"{self.detail or self.title} [{status} {self.code}]".replace(" ]", "]"))


class InvalidRequest(ApiError):
    """The request has invalid fields, or the recording cannot be used (400, 413, 415, 416, 422). `fields` names them."""


class Unauthorized(ApiError):
    """The API key is missing or not valid, or the service refuses callers like this one (401, 403, 421)."""


class NotFound(ApiError):
    """There is no such job, song, recording or voice of yours (404)."""


class Conflict(ApiError):
    """The state of the job does not allow this, or the idempotency key was used for another request (409)."""


class AudioExpired(ApiError):
    """The job's songs were removed at the end of their retention time (410)."""


class TooManyRequests(ApiError):
    """A limit is reached (429): requests, queued jobs or the queue. `code` says which, `retry_after_s` when to come again."""


class Unavailable(ApiError):
    """The service cannot answer now (408, 502, 503, 504), or a proxy before it cannot reach it."""


_BY_STATUS: Mapping[int, type[ApiError]] = {
    **dict.fromkeys((400, 413, 415, 416, 422), InvalidRequest),
    **dict.fromkeys((401, 403, 421), Unauthorized),
    404: NotFound,
    409: Conflict,
    410: AudioExpired,
    429: TooManyRequests,
    **dict.fromkeys((408, 502, 503, 504), Unavailable),
}


def error_of(response: httpx.Response) -> ApiError:
    """The error of an answer whose body has been read."""
    status = response.status_code
    kind = _BY_STATUS.get(status, ApiError)
    if status in (404, 500) and response.headers.get("content-type", "").startswith("text/plain"):
        # Not Sophia's answer but Ray Serve's proxy's: it has just started and knows no routes yet, or its API process died.
        kind = Unavailable
    return kind(status, _problem(response), _retry_after_s(response))


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "detail" in problem:
        return problem
    return {"detail": f"The answer is not Sophia's: {response.text[:_MAX_SHOWN]!r}"}


def _retry_after_s(response: httpx.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    return float(given[:9]) if given.isascii() and given.isdecimal() else None


def _wrong_field(entry: Mapping[str, Any]) -> WrongField:
    return WrongField(str(entry.get("field", "")), entry.get("value"), str(entry.get("message", "")))
