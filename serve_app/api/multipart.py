"""Multipart submissions: the request as JSON, and its recordings as files beside it."""

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from serve_app.api.audio_names import keep_as
from serve_app.api.auth import identify_request
from serve_app.api.body_limits import MULTIPART
from serve_app.api.context import Context
from serve_app.api.field_errors import wrong_field
from serve_app.api.uploads import chunks_of, new_recording, receive
from serve_app.errors import InvalidRequest, MalformedBody, UnsupportedMediaType
from serve_app.music import AUDIO_FIELDS

_REQUEST: Final = "request"
_PARTS: Final = (_REQUEST, *AUDIO_FIELDS)


def multipart_body(schema: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes a request, whose schema has this name, as JSON or as multipart."""
    binary = {"type": "string", "format": "binary"}
    parts = {_REQUEST: {"$ref": f"#/components/schemas/{schema}"}} | dict.fromkeys(AUDIO_FIELDS, binary)
    encoding = {_REQUEST: {"contentType": "application/json"}} | {
        field: {"contentType": "audio/*"} for field in AUDIO_FIELDS
    }
    schema_of_parts = {
        "type": "object",
        "properties": parts,
        "required": [_REQUEST],
        "additionalProperties": False,
    }
    body = {"schema": schema_of_parts, "encoding": encoding}
    return {"requestBody": {"content": {MULTIPART.decode(): body}}}


def is_multipart(request: Request) -> bool:
    """Whether a request's body is multipart/form-data."""
    return request.headers.get("content-type", "").strip().lower().startswith(MULTIPART.decode())


def form_of(request: Request, **limits: int) -> AbstractAsyncContextManager[FormData]:
    """The multipart body of a request, with starlette's limits. Raises UnsupportedMediaType for text that is not in UTF-8.

    The parser decodes text as the client's `charset` says, and some of Python's codecs take minutes for a megabyte.
    """
    _, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(f"The multipart body has the charset {charset[:40]!r}: it must be utf-8")
    return request.form(**limits)


async def as_json(context: Context, request: Request) -> Request:
    """Keep the files of a multipart submission as inputs, and return the same submission with a body of JSON that names them.

    Raises the errors of authentication, before anything of the body is read; InvalidRequest, MalformedBody, UnusableAudio,
    QuotaExceeded, TooManyRequests, StoreUnavailable and ArtifactsUnavailable.
    """
    owner = await identify_request(request, context)
    with context.limits.uploads.hold(owner):
        async with form_of(
            request, max_files=len(_PARTS), max_fields=len(_PARTS), max_part_size=context.args.api.max_body_bytes
        ) as form:
            fields = await _request_of(form)
            for field in AUDIO_FIELDS:
                if field in form:
                    fields[field] = await _kept(context, fields, field, form, owner)
    return with_json(request, fields)


async def _request_of(form: FormData) -> dict[str, Any]:
    unknown = [name for name in form if name not in _PARTS]
    if unknown:
        raise InvalidRequest(f"{unknown[0][:100]!r} is not a known part; the parts are {', '.join(_PARTS)}")
    if len(form.multi_items()) > len(form):
        raise InvalidRequest("A multipart body must have each part only once")
    part = form.get(_REQUEST)
    if part is None:
        raise InvalidRequest(f"A multipart body must have the request, as JSON, in its part {_REQUEST!r}")
    text = await part.read() if isinstance(part, UploadFile) else part
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"The part {_REQUEST!r} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest(f"The part {_REQUEST!r} must be a JSON object")
    return fields


async def _kept(context: Context, fields: Mapping[str, Any], field: str, form: FormData, owner: str) -> str:
    """Keep one file of the form. Returns the input's name."""
    part = form[field]
    if not isinstance(part, UploadFile):
        raise wrong_field(field, part, "must be a file; a name such as 'input:…' belongs in the part 'request'")
    if fields.get(field) is not None:
        raise wrong_field(
            field, str(fields[field]), "must be left out of the request, because it is also sent as a file"
        )
    return await keep_part(field, context, part, owner)


async def keep_part(field: str, context: Context, part: UploadFile, owner: str) -> str:
    """Keep a file of a form as an input, and return the input's name.

    Raises UnusableAudio, which names `field`; QuotaExceeded, StoreUnavailable and ArtifactsUnavailable.
    """
    with new_recording(context) as recording:
        await receive(context, recording, chunks_of(part))
        stored = await keep_as(field, context, recording, owner)
    return f"input:{stored.sha256}"


def with_json(request: Request, fields: Mapping[str, Any]) -> Request:
    """The request with a body of JSON in place of its own."""
    body = json.dumps(fields).encode()
    replaced = (b"content-type", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in request.scope["headers"] if name not in replaced]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    unread = [body]

    async def receive_body() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await request.receive()

    return Request({**request.scope, "headers": headers}, receive_body, request._send)
