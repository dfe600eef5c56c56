"""Answering with a finished file: type, length, `Range`, `ETag`."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.context import Context
from serve_app.api.names import content_disposition
from serve_app.errors import AudioExpired, NotFound, RangeNotSatisfiable
from serve_app.jobs import Job
from serve_app.music import MEDIA_TYPES

_ONE_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

_AUDIO: Final[dict[str, Any]] = {
    media_type.partition(";")[0]: {"schema": {"type": "string", "format": "binary"}}
    for media_type in MEDIA_TYPES.values()
}
FILE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The audio file", "content": _AUDIO},
    206: {"description": "The part of the file that `Range` names", "content": _AUDIO},
    304: {"description": "The file is the one that `If-None-Match` names"},
}


async def answer_file(request: Request, parts: Context, job: Job, index: int) -> Response:
    """The file of one variation of a job that succeeded.

    Raises NotFound, AudioExpired, RangeNotSatisfiable, ArtifactsUnavailable; TooManyRequests when it is sent.
    """
    if job.audio_gone_at is not None:
        raise AudioExpired(
            f"The audio of job {job.id} is no longer kept; POST the same request again for the same song"
        )
    if index >= len(job.audio):
        raise NotFound(f"Job {job.id} has {len(job.audio)} file(s), numbered from 0; there is no {index}")
    file = job.audio[index]
    etag = f'"{file.sha256}"'
    size = file.bytes
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": content_disposition(job, file.seed, file.format),
        "Content-Location": f"/v1/jobs/{job.id}/audio/{index}",
        "X-Seed": str(file.seed),
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    asked = _range(request, etag, size)
    part = asked is not None
    start, end = asked or (0, size)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    media_type = MEDIA_TYPES[file.format]
    if request.method == "HEAD":
        return Response(status_code=206 if part else 200, headers=headers, media_type=media_type)
    chunks = parts.artifacts.stream(file.key, start, end)
    first = await anext(chunks)  # a file that is gone is an answer of its own, not a body that breaks off
    room = parts.limits.downloads.under_way(job.owner, end - start, headers["Content-Location"])
    return FileStream(_joined(first, chunks), room, 206 if part else 200, headers, media_type)


class FileStream(StreamingResponse):
    """A file, or a part of one, on its way until its reader has it."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        room: AbstractContextManager[None],
        status_code: int,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(chunks, status_code, headers, media_type)
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and come back when the reader has it or is gone, which the server says by `http.disconnect`."""
        with self._room:
            await super().__call__(scope, receive, send)
            while (await receive())["type"] != "http.disconnect":
                pass


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last, also of a range that is the whole file.

    None for what is no single byte range, which is ignored, as RFC 9110 (14.2) allows.
    """
    asked = _ONE_RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if (
        request.method != "GET"
        or asked is None
        or request.headers.get("if-range", etag) != etag
        or asked[1] == asked[2] == ""
    ):
        return None
    start = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
    end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
    if asked[1] and asked[2] and int(asked[2]) < start:
        return None
    if start >= size:
        error = RangeNotSatisfiable(f"The file has {size} bytes; the range begins at {start}")
        error.headers = {"Content-Range": f"bytes */{size}"}  # RFC 9110, 15.5.17
        raise error
    return start, end


def _matches(header: str | None, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in given or given == ["*"]
