"""Bodies of JSON that may contain recordings as base64, which makes them much larger than other JSON."""

import base64
import binascii
import json
import re
from contextlib import nullcontext
from typing import Any, Final

from fastapi import Request

from serve_app.api.audio_names import keep_as
from serve_app.api.context import Context
from serve_app.api.field_errors import wrong_field
from serve_app.api.uploads import new_recording
from serve_app.errors import BodyTooLarge, InvalidRequest, MalformedBody

_RECORDING: Final = re.compile(rb"[A-Za-z0-9+/=\\]{4096,}")
"""A recording as base64, as it stands in JSON."""


async def json_object(request: Request, context: Context, owner: str) -> dict[str, Any]:
    """The JSON object in a body. One that may be large counts as an upload while it is read.

    Raises MalformedBody, InvalidRequest, TooManyRequests, BodyTooLarge and BodyTooSlow.
    """
    length = request.headers.get("content-length", "")
    is_small = length.isdigit() and int(length) <= context.args.api.max_body_bytes
    with nullcontext() if is_small else context.limits.uploads.hold(owner):
        body = bytearray()
        # Unlike `request.body()`, this keeps nothing while the caller waits for the song.
        async for chunk in request.stream():
            body += chunk
        await context.threads.run(_check_the_rest, body, context.args.api.max_body_bytes)
        try:
            value = await context.threads.run(json.loads, body)
        except (ValueError, RecursionError) as error:
            raise MalformedBody(f"The request body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object")
    return value


def _check_the_rest(body: bytearray, most_bytes: int) -> None:
    """Raise BodyTooLarge if what is no recording is larger than another body may be: parsing it blocks all other calls."""
    if len(body) > most_bytes and len(_RECORDING.sub(b"", body)) > most_bytes:
        raise BodyTooLarge(
            f"Without its recordings, the body is larger than {most_bytes} bytes, the maximum (api.max_body_bytes)"
        )


async def kept_recording(context: Context, field: str, data: str, owner: str) -> str:
    """Keep a file that a field has as base64, as an input. Returns its name, `input:ID`.

    Raises InvalidRequest, UnusableAudio, QuotaExceeded, TooManyRequests, BodyTooLarge, StoreUnavailable and ArtifactsUnavailable.
    """
    with context.limits.uploads.hold(owner), new_recording(context) as recording:
        try:
            content = await context.threads.run(base64.b64decode, data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise wrong_field(field, "", f"must have the file as base64: {error}") from error
        await context.threads.run(recording.write, content)
        stored = await keep_as(field, context, recording, owner)
    return f"input:{stored.sha256}"
