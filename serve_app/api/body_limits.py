"""How large a request's body may be and how long it may take: more for recordings than for JSON."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from starlette.types import Scope

from serve_app.config import ApiArgs, InputArgs
from serve_app.errors import BodyTooLarge, BodyTooSlow

UPLOADS: Final = "/v1/inputs"
VOICES: Final = "/v1/voices"
_SUBMISSIONS: Final = ("/v1/jobs", "/v1/music")
"""The native routes whose multipart bodies may have recordings."""

_RECORDINGS: Final = 2
"""A multipart submission may have a source and a reference."""

_MULTIPART_BYTES: Final = 65_536
"""Room for the boundaries and headers of a multipart body."""

_RECORDINGS_IN_JSON: Final = 32_000_000
"""Room for them, in base64. JSON lies in memory as a whole, so it is less than a recording may have elsewhere."""

MULTIPART: Final = b"multipart/form-data"


class RecordingPaths:
    """The paths, native ones and those of families, whose bodies may have recordings, and so may be larger than others."""

    def __init__(self, multipart: Iterable[str], in_json: Iterable[str]) -> None:
        """`multipart` are the families' paths that take recordings as parts, `in_json` those that take them as base64."""
        self.multipart = frozenset({*_SUBMISSIONS, *multipart})
        self.in_json = frozenset(in_json)


class BodyLimit(NamedTuple):
    """The limits of one request's body, with the settings that set them."""

    bytes: int
    bytes_setting: str
    timeout_s: float
    timeout_setting: str

    def too_large(self) -> BodyTooLarge:
        """The error for a body beyond `bytes`."""
        return BodyTooLarge(f"The body is larger than {self.bytes} bytes, the maximum ({self.bytes_setting})")

    def too_slow(self) -> BodyTooSlow:
        """The error for a body that takes longer than `timeout_s`."""
        return BodyTooSlow(f"The body did not arrive within {self.timeout_s:g} s, the maximum ({self.timeout_setting})")


def body_limit(
    scope: Scope, headers: dict[bytes, bytes], api: ApiArgs, inputs: InputArgs, paths: RecordingPaths
) -> BodyLimit:
    """The limits for a request."""
    is_multipart = headers.get(b"content-type", b"").strip().lower().startswith(MULTIPART)
    takes_one = scope["path"] == UPLOADS or (scope["path"] == VOICES and is_multipart)
    if scope["method"] == "POST" and takes_one:
        return _for_recordings(inputs, inputs.max_bytes + _MULTIPART_BYTES * is_multipart)
    if scope["method"] == "POST" and scope["path"] in paths.multipart and is_multipart:
        return _for_recordings(inputs, _RECORDINGS * inputs.max_bytes + _MULTIPART_BYTES + api.max_body_bytes)
    is_short = headers.get(b"content-length", b"").isdigit() and int(headers[b"content-length"]) <= api.max_body_bytes
    if scope["method"] == "POST" and scope["path"] in paths.in_json and not is_short:
        return _for_recordings_in_json(inputs, api)
    return BodyLimit(api.max_body_bytes, "api.max_body_bytes", api.body_timeout_s, "api.body_timeout_s")


def _for_recordings_in_json(inputs: InputArgs, api: ApiArgs) -> BodyLimit:
    limit = _for_recordings(inputs, min(_RECORDINGS_IN_JSON, _RECORDINGS * inputs.max_bytes) + api.max_body_bytes)
    return limit._replace(bytes_setting=f"for recordings in JSON; POST {UPLOADS} takes larger ones")


def _for_recordings(inputs: InputArgs, size: int) -> BodyLimit:
    return BodyLimit(size, "inputs.max_bytes", inputs.upload_timeout_s, "inputs.upload_timeout_s")
