"""Client of Sophia, a service that makes songs: `Client` blocks, `AsyncClient` is for asyncio."""

from sophia_client.aio.client import AsyncClient
from sophia_client.answers import (
    AudioFile,
    Health,
    Input,
    Job,
    JobCodes,
    Lyrics,
    Model,
    ModelList,
    Progress,
    SignedLinks,
    Usage,
    Voice,
)
from sophia_client.errors import (
    ApiError,
    AudioExpired,
    Conflict,
    ConnectionLost,
    DamagedDownload,
    InvalidRequest,
    JobFailed,
    NotFound,
    SophiaError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
    WaitTimeout,
    WrongField,
)
from sophia_client.retries import Retries
from sophia_client.song_fields import LoraUse, SongFields
from sophia_client.sync.client import Client
from sophia_client.version import VERSION as __version__
from sophia_client.webhooks import WebhookEvent, WebhookRefused, read_webhook

__all__ = [
    "ApiError",
    "AsyncClient",
    "AudioExpired",
    "AudioFile",
    "Client",
    "Conflict",
    "ConnectionLost",
    "DamagedDownload",
    "Health",
    "Input",
    "InvalidRequest",
    "Job",
    "JobCodes",
    "JobFailed",
    "LoraUse",
    "Lyrics",
    "Model",
    "ModelList",
    "NotFound",
    "Progress",
    "Retries",
    "SignedLinks",
    "SongFields",
    "SophiaError",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "Usage",
    "Voice",
    "WaitTimeout",
    "WebhookEvent",
    "WebhookRefused",
    "WrongField",
    "__version__",
    "read_webhook",
]
