"""The errors that routes declare in the OpenAPI page."""

from typing import Any, Final

from serve_app import errors
from serve_app.errors import SophiaError

AUTHENTICATED: Final = (
    errors.Unauthorized,
    errors.WrongHost,
    errors.CrossSite,
    errors.TooManyRequests,
    errors.StoreUnavailable,
)
"""Errors of every route that identifies its caller."""

WITH_PARAMETERS: Final = (*AUTHENTICATED, errors.InvalidRequest)
"""Errors of every such route that takes parameters."""

QUOTA: Final = (errors.QuotaExceeded, errors.QueueFull)
"""Errors of every route that adds a job to the queue."""

AUDIO: Final = (errors.UnreadableAudio, errors.DamagedAudio, errors.AudioTooLong, errors.DecoderLimit)
"""Errors of every route that takes a recording."""

SUBMISSION: Final = (
    *WITH_PARAMETERS,
    *QUOTA,
    *AUDIO,
    errors.ArtifactsUnavailable,
    errors.BadRequest,
    errors.MalformedBody,
    errors.BodyTooLarge,
    errors.BodyTooSlow,
    errors.UnsupportedMediaType,
    errors.IdempotencyConflict,
)
"""Errors of every route that submits a job."""

UPLOAD: Final = (
    *WITH_PARAMETERS,
    *AUDIO,
    errors.QuotaExceeded,
    errors.BadRequest,
    errors.NotFound,
    errors.BodyTooLarge,
    errors.BodyTooSlow,
    errors.UnsupportedMediaType,
    errors.ArtifactsUnavailable,
)
"""Errors of the route that uploads a recording."""

_CONTENT: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def error_responses(*kinds: type[SophiaError]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that can answer with these errors."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in dict.fromkeys(kind.status for kind in kinds):
        described = [f"{kind.title} (`{kind.code}`)" for kind in kinds if kind.status == status]
        found[status] = {"description": "; ".join(described), "content": _CONTENT}
    return found
