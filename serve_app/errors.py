"""Every error of Sophia: its HTTP status, stable code, whether trying again can help, and one sentence.

An error's own message says what was wrong *this* time and what to do; the class says what kind of thing it is.
All of them take one positional message, because that is what survives pickling between Ray processes, or say themselves how
they are made again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal


class SophiaError(Exception):
    """The root of all errors that Sophia raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    title: ClassVar[str] = "Something went wrong inside Sophia"

    retry_after_s: int | None = None
    """Seconds after which trying again can help, for `Retry-After`; an error may set its own. None: nobody can say."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Further headers of the HTTP answer."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.title)

    @property
    def message(self) -> str:
        """What was wrong this time."""
        return str(self.args[0])

    @property
    def public(self) -> str:
        """What was wrong this time, as far as everybody may read it."""
        return self.message


# --- Requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WrongField:
    """One invalid field of a request: its name, the given value, and what is allowed."""

    field: str
    value: str
    message: str


class InvalidRequest(SophiaError):
    """A field, header or query parameter is wrong; the message or the `errors` list names it."""

    status = 422
    code = "invalid_request"
    title = "The request is not valid"

    wrong_fields: tuple[WrongField, ...] = ()
    """The invalid fields, for the answer's `errors` list; an error may set its own."""


class MalformedBody(SophiaError):
    """The body is not JSON at all."""

    status = 400
    code = "malformed_body"
    title = "The body is not valid JSON"


class Unauthorized(SophiaError):
    """No API key, or one that is not known."""

    status = 401
    code = "unauthorized"
    title = "A valid API key is needed"


class WrongHost(SophiaError):
    """The Host header names no name of this machine, while nobody needs a key."""

    status = 421
    code = "wrong_host"
    title = "Sophia does not answer to this host name"


class CrossSite(SophiaError):
    """A web page of another site asks, while nobody needs a key."""

    status = 403
    code = "cross_site"
    title = "Pages of other sites may not ask here"


class BadRequest(SophiaError):
    """What HTTP itself does not allow, as the server found before any route."""

    status = 400
    code = "bad_request"
    title = "This is not a request that can be read"


class NotFound(SophiaError):
    """There is no such route, job or file."""

    status = 404
    code = "not_found"
    title = "There is nothing here"


class AudioExpired(SophiaError):
    """The job's files were removed, as the retention time asks for; the job itself is still known."""

    status = 410
    code = "audio_expired"
    title = "The audio was kept for as long as the service keeps it, and is gone"


class MethodNotAllowed(SophiaError):
    """The route exists, with other methods."""

    status = 405
    code = "method_not_allowed"
    title = "This route does not have this method"


class Conflict(SophiaError):
    """The job's state does not allow this."""

    status = 409
    code = "conflict"
    title = "The job's state does not allow this"


class IdempotencyConflict(SophiaError):
    """The same Idempotency-Key came with another request before."""

    status = 409
    code = "idempotency_conflict"
    title = "This Idempotency-Key was used for another request"


class BodyTooLarge(SophiaError):
    """The body is over the configured limit."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"


class BodyTooSlow(SophiaError):
    """The body did not come in time; meanwhile it held a place that others wait for."""

    status = 408
    code = "body_too_slow"
    retryable = True
    title = "The body did not come in time"


class UnsupportedMediaType(SophiaError):
    """The body's content type is not one that the route reads."""

    status = 415
    code = "unsupported_media_type"
    title = "This content type is not read here"


class RangeNotSatisfiable(SophiaError):
    """The Range header lies outside the file."""

    status = 416
    code = "range_not_satisfiable"
    title = "The range lies outside the file"


class TooManyRequests(SophiaError):
    """The caller has reached a limit of the configuration; the message names it."""

    status = 429
    code = "too_many_requests"
    retryable = True
    title = "A limit on your requests is reached; try again later"
    retry_after_s = 1


class QuotaExceeded(SophiaError):
    """The owner has as many jobs, or as much audio, in the queue, or webhooks on their way, as one API key may have."""

    status = 429
    code = "quota_exceeded"
    retryable = True
    title = "You have as much under way as one API key may have"
    retry_after_s = 30


class QueueFull(SophiaError):
    """The queue holds as many jobs as the operator lets it."""

    status = 429
    code = "queue_full"
    retryable = True
    title = "The queue is full; try again later"
    retry_after_s = 30


class StoreUnavailable(SophiaError):
    """The database cannot be reached, or did not answer in time."""

    status = 503
    code = "store_unavailable"
    retryable = True
    title = "The job database is away; try again shortly"
    retry_after_s = 5


class DatabaseTooNew(StoreUnavailable):
    """A newer version has migrated the database; this one does not know what it means, and leaves it alone."""

    code = "database_too_new"
    retryable = False
    title = "A newer version of Sophia has migrated the database"


ArtifactsCause = Literal["full", "missing", "refused", "read_only", "away"]
"""Why the audio store cannot be used: no room, no such bucket or folder, no right, read-only, or no (good) answer."""

_IN_PUBLIC: Mapping[ArtifactsCause, str] = MappingProxyType(
    {
        "full": "the audio store is full",
        "missing": "the audio store's bucket or folder does not exist",
        "refused": "the audio store does not let Sophia in",
        "read_only": "the audio store is read-only",
        "away": "the audio store cannot be reached, or fails",
    }
)


class ArtifactsUnavailable(SophiaError):
    """The artifact store (disk or object store) cannot be read or written.

    `cause` is the kind of reason and `why` a sentence about it for operators, which may name the bucket; strangers read `public`.
    """

    status = 503
    code = "artifacts_unavailable"
    retryable = True
    title = "The audio store is away; try again shortly"
    retry_after_s = 5

    def __init__(self, action: str = "be used", cause: ArtifactsCause = "away", why: str = "") -> None:
        self.action = action
        self.cause: ArtifactsCause = cause
        self.why = why or _IN_PUBLIC[cause]
        super().__init__(f"The audio store could not {action}: {self.why}")

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), (self.action, self.cause, self.why)

    @property
    def public(self) -> str:
        return f"The audio store could not {self.action}: {self.public_why}; try again later"

    @property
    def public_why(self) -> str:
        """The kind of reason in words that name nothing."""
        return _IN_PUBLIC[self.cause]


# --- Configuration --------------------------------------------------------------------------------------------------


class ConfigurationError(SophiaError):
    """The configuration cannot work; nothing starts until it is changed."""

    code = "configuration_error"
    title = "The configuration cannot work"


class AuthNotConfigured(ConfigurationError):
    """Callers need an API key and there is none, so nobody can use Sophia."""

    code = "auth_not_configured"
    title = "Callers need an API key, and there is none"


# --- Loading a model ------------------------------------------------------------------------------------------------


LoadCause = Literal["host", "model", "transient"]
"""Whose fault a failed load is: this host's (its disk, device, packages), the model's own (its repository, its classes), so that it
fails everywhere, or something that passes by itself (the network, the hub)."""


class LoadError(SophiaError):
    """A worker cannot load its model. Its subclasses name the cause."""

    cause: ClassVar[LoadCause] = "host"
    code = "load_failed"
    title = "The model could not be loaded"


class MissingFile(LoadError):
    """A file that the checkpoint's index names is not there."""

    code = "missing_file"
    title = "The checkpoint lacks a file"


class CorruptFile(LoadError):
    """A file of the checkpoint is truncated or unreadable."""

    code = "corrupt_file"
    title = "A file of the checkpoint is truncated or unreadable"


class WrongLayout(LoadError):
    """The folder or repository is not an AceStepPipeline checkpoint in the diffusers layout."""

    cause = "model"
    code = "wrong_layout"
    title = "This is not an ACE-Step checkpoint in the diffusers layout"


class WrongClass(LoadError):
    """`model_index.json` names a pipeline or component class that is not ACE-Step's."""

    cause = "model"
    code = "wrong_class"
    title = "model_index.json names another class"


class UnknownRepository(LoadError):
    """The hub knows no such repository, or it is private and no token was given."""

    cause = "model"
    code = "unknown_repository"
    title = "The hub knows no such repository"


class UnknownRevision(LoadError):
    """The repository has no such revision."""

    cause = "model"
    code = "unknown_revision"
    title = "The repository has no such revision"


class HubTokenRefused(LoadError):
    """The hub does not accept this node's token: it has expired, was revoked or is mistyped."""

    code = "hub_token_refused"
    title = "The hub refuses this node's token"


class HubUnreachable(LoadError):
    """The hub cannot be reached, or cannot serve just now, and the checkpoint is not in the cache."""

    cause = "transient"
    code = "hub_unreachable"
    retryable = True
    title = "The hub cannot be reached and nothing is cached"


class DiskFull(LoadError):
    """There is not enough disk space for the checkpoint."""

    code = "disk_full"
    retryable = True
    title = "There is not enough disk space"


class DeviceUnavailable(LoadError):
    """The configured device does not exist on this node."""

    code = "device_unavailable"
    title = "The configured device is not on this node"


class DeviceMemory(LoadError):
    """The device has too little free memory for the model."""

    code = "device_memory"
    retryable = True
    title = "The device has too little free memory"


class PackageMissing(LoadError):
    """A Python package that loading needs is not installed."""

    code = "package_missing"
    title = "A Python package is missing"


class PackageMismatch(LoadError):
    """Installed packages do not fit each other (say, a CUDA torchaudio beside a CPU torch)."""

    code = "package_mismatch"
    title = "Installed packages do not fit each other"


class SelfTestFailed(LoadError):
    """The loaded model's first short song was not finite, silent, or of the wrong length."""

    code = "self_test_failed"
    title = "The loaded model failed its self-test"


class LoadCrashed(LoadError):
    """The process died while it loaded the model: killed for memory, or a fault in native code."""

    code = "load_crashed"
    title = (
        "The worker's process died while it loaded the model. Was it memory? Ray's memory monitor ends workers when a node is "
        "nearly full (`ray logs raylet.out` on that node names them, RAY_memory_usage_threshold sets the limit), the kernel's "
        "out-of-memory killer does, too (dmesg): give the node more. Else look for a fault in a driver or native library"
    )


def load_cause(code: str) -> LoadCause:
    """Whose fault a failed load with this code was. A code that is not known is taken for the host's."""
    kinds: list[type[LoadError]] = [LoadError, *LoadError.__subclasses__()]
    return next((kind.cause for kind in kinds if kind.code == code), "host")


def codes_not_caused_by_host() -> list[str]:
    """Codes of failed loads whose cause is not the host on which they failed."""
    return [kind.code for kind in LoadError.__subclasses__() if kind.cause != "host"]


# --- Running a job --------------------------------------------------------------------------------------------------


class GenerationError(SophiaError):
    """A job failed while it ran. Its subclasses name the cause."""

    code = "generation_failed"
    title = "The song could not be generated"


class BadAudio(GenerationError):
    """The model gave NaN, infinity or silence."""

    code = "bad_audio"
    retryable = True
    title = "The model gave no usable audio"


class OutOfDeviceMemory(GenerationError):
    """The request does not fit into the device's memory."""

    code = "out_of_device_memory"
    title = "The request does not fit into the device's memory"


class EncodingFailed(GenerationError):
    """The codec failed on the song, or its process died twice over it."""

    code = "encoding_failed"
    retryable = True
    title = "The song could not be made into a file"


class WorkerLost(GenerationError):
    """The worker died or lost contact while it ran the job, as often as the job may be tried."""

    code = "worker_lost"
    retryable = True
    title = "The worker that ran the job was lost"


class DeviceLost(GenerationError):
    """The device failed under the job; its worker is replaced and the job runs elsewhere."""

    code = "device_lost"
    retryable = True
    title = "The device failed"


class RunLimitExceeded(GenerationError):
    """One attempt ran longer than `queue.run_limit_s`."""

    code = "run_limit_exceeded"
    title = "The job ran longer than one attempt may (queue.run_limit_s)"


class DeadlineExceeded(SophiaError):
    """The job did not end before its deadline (queue and run together)."""

    status = 504
    code = "deadline_exceeded"
    title = "The job's deadline (deadline_s) passed before it ended"


class Stopped(Exception):
    """Raised inside a generation, between two steps, when the worker no longer holds the job."""
