"""Reads the body of a call, which may be JSON, a form or unnamed, and finds the caller, whose key may be a field of it."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from starlette.datastructures import UploadFile

from serve_app.api.auth import identify_request
from serve_app.api.context import Context, ContextDep
from serve_app.api.multipart import form_of, is_multipart
from serve_app.errors import InvalidRequest, MalformedBody, UnsupportedMediaType

_KEY: Final = "ai_token"
_MOST_KEY: Final = 200
_MOST_FIELDS: Final = 200
_MOST_FILES: Final = 4
_PART_BYTES: Final = 262_144
"""The most bytes of a field of a form; a song's audio codes have up to 65,000."""


class Call(NamedTuple):
    """A call whose body has been read."""

    request: Request
    owner: str
    body: Mapping[str, Any]
    """Its fields, without the key."""
    files: Mapping[str, UploadFile]


async def _call(request: Request, context: ContextDep) -> AsyncIterator[Call]:
    """Read a body, and identify the caller.

    A body with recordings is read only for a caller who is known; the key of any other may be in the body.

    Raises MalformedBody, InvalidRequest, UnsupportedMediaType, TooManyRequests and the errors of `identify_request`.
    """
    if not is_multipart(request):
        body = _body(_media_type(request), await request.body())
        yield Call(request, await _owner(request, context, body), body, {})
        return
    is_short = _is_short(request, context)
    async with AsyncExitStack() as stack:
        if not is_short:
            stack.enter_context(context.limits.uploads.hold(await identify_request(request, context)))
        limits = {"max_files": _MOST_FILES, "max_fields": _MOST_FIELDS, "max_part_size": _PART_BYTES}
        form = await stack.enter_async_context(form_of(request, **limits))
        parts = form.multi_items()
        body = _joined((name, part) for name, part in parts if isinstance(part, str))
        owner = await _owner(request, context, body)
        if is_short:
            stack.enter_context(context.limits.uploads.hold(owner))
        yield Call(request, owner, body, {name: part for name, part in parts if isinstance(part, UploadFile)})


CallDep = Annotated[Call, Depends(_call)]


def _is_short(request: Request, context: Context) -> bool:
    """Whether the body is short enough to be read before its caller is known, as JSON is."""
    length = request.headers.get("content-length", "")
    return length.isdecimal() and int(length) <= context.args.api.max_body_bytes


async def _owner(request: Request, context: Context, body: dict[str, Any]) -> str:
    """The caller, by the key in the header or the body. Takes the key out of the body."""
    key = body.pop(_KEY, None)
    if (
        isinstance(key, str)
        and key
        and len(key) <= _MOST_KEY
        and key.isascii()
        and "authorization" not in request.headers
    ):
        headers = [*request.scope["headers"], (b"authorization", b"Bearer " + key.encode())]
        request = Request({**request.scope, "headers": headers})
    return await identify_request(request, context)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _body(media_type: str, body: bytes) -> dict[str, Any]:
    """The fields of a body. One that names no type, or only curl's default, may be JSON as well as a form."""
    if media_type == "application/json" or media_type.endswith("+json"):
        return _json(body)
    if media_type in ("", "application/x-www-form-urlencoded"):
        return _json(body) if body.lstrip().startswith((b"{", b"[")) else _form(body)
    raise UnsupportedMediaType(
        f"The body has the type {media_type[:100]!r}: it must be application/json, multipart/form-data or "
        "application/x-www-form-urlencoded"
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"The body is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequest("The body must be a JSON object")
    return found


def _form(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode()
        return _joined(parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"))
    except ValueError as error:
        raise MalformedBody(f"The body is not a valid form: {error}") from error


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The fields of a form. One that is there several times has a list."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
