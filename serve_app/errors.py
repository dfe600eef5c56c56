"""All errors that Sophia raises on purpose, each with its HTTP status, stable code, retryability and title.

The title describes the kind of error. The message describes one occurrence: what is wrong and what to do.
Ray pickles errors between processes, which keeps only the positional arguments. So each class takes one positional message,
or defines `__reduce__`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal


class SophiaError(Exception):
    """The base class of all errors that Sophia raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    """Whether another attempt may succeed. A job that fails with a retryable error is queued again while it has attempts left."""
    title: ClassVar[str] = "Internal error"

    retry_after_s: int | None = None
    """Seconds for the `Retry-After` header. An instance may override it. None: unknown, so no header is sent."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Additional headers of the HTTP response."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.title)

    @property
    def message(self) -> str:
        """What went wrong in this occurrence, for operators and logs."""
        return str(self.args[0])

    @property
    def public(self) -> str:
        """The message for API clients, without internal details such as bucket names."""
        return self.message


# --- Requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WrongField:
    """One invalid field of a request: its name, the given value, and a message that states what is allowed."""

    field: str
    value: str
    message: str


class InvalidRequest(SophiaError):
    """A field, header or query parameter is invalid. The message or the `errors` list names it."""

    status = 422
    code = "invalid_request"
    title = "The request is invalid"

    wrong_fields: tuple[WrongField, ...] = ()
    """The first invalid fields, for the response's `errors` list. An instance may override it."""

    wrong_count: int = 0
    """How many invalid fields there are."""


class MalformedBody(SophiaError):
    """The request body cannot be parsed as JSON."""

    status = 400
    code = "malformed_body"
    title = "The request body is not valid JSON"


class Unauthorized(SophiaError):
    """The request has no API key, or an unknown one."""

    status = 401
    code = "unauthorized"
    title = "A valid API key is required"


class WrongHost(SophiaError):
    """The Host header is not one of this machine's names. Checked only when no API key is required."""

    status = 421
    code = "wrong_host"
    title = "The Host header is not allowed"


class CrossSite(SophiaError):
    """The request comes from another site's web page. Checked only when no API key is required."""

    status = 403
    code = "cross_site"
    title = "Cross-site requests are not allowed"


class BadRequest(SophiaError):
    """The request violates HTTP. The server rejects it before routing."""

    status = 400
    code = "bad_request"
    title = "The HTTP request is malformed"


class NotFound(SophiaError):
    """The route, job or file does not exist."""

    status = 404
    code = "not_found"
    title = "Not found"


class AudioExpired(SophiaError):
    """The job's audio files were deleted after the retention time. The job's record still exists."""

    status = 410
    code = "audio_expired"
    title = "The audio was deleted after its retention time"


class MethodNotAllowed(SophiaError):
    """The route exists but does not support this method."""

    status = 405
    code = "method_not_allowed"
    title = "This route does not support this method"


class Conflict(SophiaError):
    """The job's state does not allow this operation."""

    status = 409
    code = "conflict"
    title = "The job's state does not allow this operation"


class IdempotencyConflict(SophiaError):
    """The Idempotency-Key was already used for a different request."""

    status = 409
    code = "idempotency_conflict"
    title = "This Idempotency-Key was already used for a different request"


class BodyTooLarge(SophiaError):
    """The request body exceeds the configured limit."""

    status = 413
    code = "body_too_large"
    title = "The request body is too large"


class BodyTooSlow(SophiaError):
    """The request body did not arrive in time. Reading it occupies a slot that other requests wait for."""

    status = 408
    code = "body_too_slow"
    retryable = True
    title = "The request body did not arrive in time"


class UnsupportedMediaType(SophiaError):
    """The route does not accept the body's content type."""

    status = 415
    code = "unsupported_media_type"
    title = "This content type is not supported"


class UnusableAudio(SophiaError):
    """An uploaded file cannot be used as audio. The subclasses name the reason."""

    status = 422
    code = "unusable_audio"
    title = "The file cannot be used as audio"


class UnreadableAudio(UnusableAudio):
    """The file is not audio, or its format, codec, sample rate or number of channels is not supported."""

    code = "unreadable_audio"
    title = "The file is not audio in a supported format"


class DamagedAudio(UnusableAudio):
    """The file is truncated or damaged, or the codec crashed on it."""

    code = "damaged_audio"
    title = "The audio file is truncated or damaged"


class AudioTooLong(UnusableAudio):
    """The audio is longer than `inputs.max_seconds`. Found while decoding, whatever the file's header says."""

    code = "audio_too_long"
    title = "The audio is too long"


class DecoderLimit(UnusableAudio):
    """Decoding the file takes more time or memory than the settings allow."""

    code = "decoder_limit"
    title = "Decoding the file takes too much time or memory"


class RangeNotSatisfiable(SophiaError):
    """The Range header lies outside the file."""

    status = 416
    code = "range_not_satisfiable"
    title = "The requested range lies outside the file"


class TooManyRequests(SophiaError):
    """The client has reached a configured limit. The message names the setting."""

    status = 429
    code = "too_many_requests"
    retryable = True
    title = "Too many requests; try again later"
    retry_after_s = 1


class QuotaExceeded(SophiaError):
    """The owner has reached a per-key limit on queued jobs, queued audio or pending webhooks."""

    status = 429
    code = "quota_exceeded"
    retryable = True
    title = "This API key has reached its quota; try again later"
    retry_after_s = 30


class QueueFull(SophiaError):
    """The queue holds the configured maximum number of jobs."""

    status = 429
    code = "queue_full"
    retryable = True
    title = "The queue is full; try again later"
    retry_after_s = 30


class ServiceStopping(SophiaError):
    """The service is about to stop, so the caller cannot wait for the job any longer. The job is not affected."""

    status = 503
    code = "stopping"
    retryable = True
    title = "The service is stopping; the job goes on after its next start"
    retry_after_s = 30


class StoreUnavailable(SophiaError):
    """The database cannot be reached, or did not answer in time."""

    status = 503
    code = "store_unavailable"
    retryable = True
    title = "The job database is unavailable; try again shortly"
    retry_after_s = 5


class DatabaseTooNew(StoreUnavailable):
    """A newer version has migrated the database. This version does not know the schema, so it does not use the database."""

    code = "database_too_new"
    retryable = False
    title = "A newer version of Sophia has migrated the database"


ArtifactsCause = Literal["full", "missing", "refused", "read_only", "away"]
"""Why the audio store cannot be used: full, missing bucket or folder, access refused, read-only, or unreachable or failing."""

_IN_PUBLIC: Mapping[ArtifactsCause, str] = MappingProxyType(
    {
        "full": "the audio store is full",
        "missing": "the audio store's bucket or folder does not exist",
        "refused": "the audio store refuses access",
        "read_only": "the audio store is read-only",
        "away": "the audio store is unreachable or failing",
    }
)


class ArtifactsUnavailable(SophiaError):
    """The artifact store (disk or object store) cannot be read or written.

    `cause` is the kind of reason. `why` explains it to operators and may name the bucket. API clients get `public`.
    """

    status = 503
    code = "artifacts_unavailable"
    retryable = True
    title = "The audio store is unavailable; try again shortly"
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
        """The reason without internal details such as bucket names."""
        return _IN_PUBLIC[self.cause]


# --- Configuration --------------------------------------------------------------------------------------------------


class ConfigurationError(SophiaError):
    """The configuration is invalid. Sophia does not start until it is corrected."""

    code = "configuration_error"
    title = "The configuration is invalid"


class AuthNotConfigured(ConfigurationError):
    """Clients need an API key but none exists, so no client can use Sophia."""

    code = "auth_not_configured"
    title = "An API key is required, but none exists"


# --- Loading a model ------------------------------------------------------------------------------------------------


LoadCause = Literal["host", "model", "transient"]
"""What caused a failed load.

* `host`: this host's disk, device or packages.
* `model`: the model's repository or classes. The load fails on every host.
* `transient`: the network or the hub. A later attempt can succeed.
"""


class LoadError(SophiaError):
    """A worker cannot load its model. The subclasses name the cause.

    They must be direct subclasses: `load_cause` and `codes_not_caused_by_host` see no deeper ones.
    """

    cause: ClassVar[LoadCause] = "host"
    code = "load_failed"
    title = "The model could not be loaded"


class MissingFile(LoadError):
    """The checkpoint lacks a file that its index names."""

    code = "missing_file"
    title = "A file of the checkpoint is missing"


class CorruptFile(LoadError):
    """A file of the checkpoint is truncated or unreadable."""

    code = "corrupt_file"
    title = "A file of the checkpoint is truncated or unreadable"


class WrongLayout(LoadError):
    """The folder or repository is not an ACE-Step 1.5 checkpoint in a layout that Sophia reads."""

    cause = "model"
    code = "wrong_layout"
    title = "This is not an ACE-Step 1.5 checkpoint in a layout that Sophia reads"


class WrongTensors(LoadError):
    """A checkpoint cannot be converted: it lacks tensors of the model, or they have other shapes or are quantised."""

    cause = "model"
    code = "wrong_tensors"
    title = "The checkpoint's tensors are not those of ACE-Step 1.5"


class WrongClass(LoadError):
    """`model_index.json` names a pipeline or component class that is not ACE-Step's."""

    cause = "model"
    code = "wrong_class"
    title = "model_index.json names a class that is not ACE-Step's"


class WrongVocabulary(LoadError):
    """The language model of a planner has a tokenizer without audio codes or markers of a chat."""

    cause = "model"
    code = "wrong_vocabulary"
    title = "The planner's language model lacks the tokens that plans consist of"


class UnknownRepository(LoadError):
    """The repository does not exist on the hub, or it is private and no token was given."""

    cause = "model"
    code = "unknown_repository"
    title = "The repository does not exist on the hub, or it is private"


class UnknownRevision(LoadError):
    """The revision does not exist in the repository."""

    cause = "model"
    code = "unknown_revision"
    title = "The revision does not exist in the repository"


class HubTokenRefused(LoadError):
    """The hub rejects this node's token, which is expired, revoked or mistyped."""

    code = "hub_token_refused"
    title = "The hub rejects this node's token"


class HubUnreachable(LoadError):
    """The hub is unreachable or temporarily unavailable, and the checkpoint is not in the cache."""

    cause = "transient"
    code = "hub_unreachable"
    retryable = True
    title = "The hub is unreachable and the checkpoint is not cached"


class DiskFull(LoadError):
    """There is not enough disk space for the checkpoint."""

    code = "disk_full"
    retryable = True
    title = "There is not enough disk space"


class DeviceUnavailable(LoadError):
    """The configured device does not exist on this node."""

    code = "device_unavailable"
    title = "The configured device does not exist on this node"


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
    """Installed packages are incompatible (for example a CUDA torchaudio with a CPU torch)."""

    code = "package_mismatch"
    title = "Installed packages are incompatible"


class SelfTestFailed(LoadError):
    """The short test song of the loaded model has non-finite samples, is silent, or has the wrong length."""

    code = "self_test_failed"
    title = "The loaded model failed its self-test"


class LoadCrashed(LoadError):
    """The worker's process died while it loaded the model: killed for lack of memory, or crashed in native code."""

    code = "load_crashed"
    title = (
        "The worker's process died while it loaded the model. Check whether Ray's memory monitor killed it (`ray logs raylet.out` "
        "on that node lists the workers killed, RAY_memory_usage_threshold sets the limit) or the kernel's out-of-memory killer "
        "did (`dmesg`): if so, give the node more memory. Otherwise, look for a crash in a driver or native library"
    )


def load_cause(code: str) -> LoadCause:
    """Returns the cause of a failed load with this code, `host` for an unknown code."""
    kinds: list[type[LoadError]] = [LoadError, *LoadError.__subclasses__()]
    return next((kind.cause for kind in kinds if kind.code == code), "host")


def codes_not_caused_by_host() -> list[str]:
    """Returns the codes of load errors whose cause is not the host."""
    return [kind.code for kind in LoadError.__subclasses__() if kind.cause != "host"]


# --- Running a job --------------------------------------------------------------------------------------------------


class GenerationError(SophiaError):
    """A job failed while it ran. The subclasses name the cause."""

    code = "generation_failed"
    title = "The song could not be generated"


class BadAudio(GenerationError):
    """The model produced NaN, infinity or silence."""

    code = "bad_audio"
    retryable = True
    title = "The model produced no usable audio"


class BadAdapter(GenerationError):
    """An adapter that the request names no longer exists, cannot be read, or was made for another base model."""

    code = "bad_adapter"
    title = "An adapter cannot be used with this model"


class PlanTooLong(GenerationError):
    """The planner's prompt and what it is to write are longer than its context."""

    status = 422
    code = "plan_too_long"
    title = "The song is too long for the planner"


class PlanningFailed(GenerationError):
    """The planner failed on the song for an unknown reason."""

    code = "planning_failed"
    title = "The song could not be planned"


class OutOfDeviceMemory(GenerationError):
    """The request does not fit into the device's memory."""

    code = "out_of_device_memory"
    title = "The request does not fit into the device's memory"


class EncodingFailed(GenerationError):
    """The encoder failed on the song, or its process died twice while encoding it."""

    code = "encoding_failed"
    retryable = True
    title = "The song could not be encoded"


class InputLost(GenerationError):
    """A recording that the job names was deleted or damaged after the submission."""

    code = "input_lost"
    title = "A recording that the job names is gone"


class DecodingFailed(GenerationError):
    """Decoding a recording that the job names took too much time or memory, although it did not when it was uploaded."""

    code = "decoding_failed"
    retryable = True
    title = "A recording could not be decoded"


class WorkerLost(GenerationError):
    """The worker died or its lease expired at each of the job's allowed attempts."""

    code = "worker_lost"
    retryable = True
    title = "The worker that ran the job was lost"


class DeviceLost(GenerationError):
    """The device failed during the job. The worker is replaced and the job runs on another one."""

    code = "device_lost"
    retryable = True
    title = "The device failed"


class RunLimitExceeded(GenerationError):
    """One attempt ran longer than the request's `run_limit_s` or `queue.run_limit_s`."""

    code = "run_limit_exceeded"
    title = "The attempt exceeded its time limit (run_limit_s, queue.run_limit_s)"


class DeadlineExceeded(SophiaError):
    """The job did not finish before its deadline, which covers both queueing and running."""

    status = 504
    code = "deadline_exceeded"
    title = "The job did not finish before its deadline (deadline_s)"


class Stopped(Exception):
    """The worker no longer holds the job's claim.

    Raised between two denoising steps, between two decoding tiles, and while finished songs wait to be stored or published.
    """
