"""Answering with a finished file: media type, length, `Range`, `ETag`."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.context import Context
from serve_app.api.explanations import why_no_songs
from serve_app.api.file_names import content_disposition
from serve_app.errors import AudioExpired, Conflict, NotFound, RangeNotSatisfiable
from serve_app.jobs import Job, Status, StoredAudio
from serve_app.music import MEDIA_TYPES
from serve_app.plurals import counted

_BYTE_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

_AUDIO: Final[dict[str, Any]] = {
    media_type.partition(";")[0]: {"schema": {"type": "string", "format": "binary"}}
    for media_type in MEDIA_TYPES.values()
}
FILE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The audio file", "content": _AUDIO},
    206: {"description": "The part of the file that `Range` asks for", "content": _AUDIO},
    304: {"description": "The client's copy, named by `If-None-Match`, is current"},
}


def check_has_songs(job: Job) -> Job:
    """Return the job if it has succeeded. Otherwise raises Conflict, which says why the job has no songs."""
    if job.status is not Status.SUCCEEDED:
        raise Conflict(f"Job {job.id} has no songs: {why_no_songs(job)}")
    return job


async def answer_file(
    request: Request, context: Context, job: Job, index: int, range_header: str | None = None
) -> Response:
    """The file of one variation of a job that has succeeded.

    Raises NotFound, AudioExpired, RangeNotSatisfiable and ArtifactsUnavailable; TooManyRequests when the response is sent.
    """
    check_is_kept(job)
    file = file_of(job, index)
    size = file.bytes
    headers = _headers(job, index)
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    byte_range = _byte_range(request, range_header, headers["ETag"], size)
    start, end = byte_range or (0, size)
    status = 200 if byte_range is None else 206
    headers["Content-Length"] = str(end - start)
    if byte_range is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    media_type = MEDIA_TYPES[file.format]
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    chunks = context.artifacts.stream(file.key, start, end)
    first = await anext(chunks)  # so that a missing file gets an error answer instead of a truncated body
    room = context.limits.downloads.hold(job.owner, end - start, headers["Content-Location"])
    return FileStream(joined(first, chunks), room, status, headers, media_type)


def check_is_kept(job: Job) -> None:
    """Raise AudioExpired if the job's songs were removed."""
    if job.audio_gone_at is not None:
        raise AudioExpired(
            f"The audio of job {job.id} was removed at the end of its retention time. To generate the same song again, POST the "
            "job's `request`, which contains the seed"
        )


def file_of(job: Job, index: int) -> StoredAudio:
    """A file of a job that has succeeded. Raises NotFound."""
    if index >= len(job.audio):
        raise NotFound(f"Job {job.id} has {counted(len(job.audio), 'file')}, numbered from 0; there is no file {index}")
    return job.audio[index]


def _headers(job: Job, index: int) -> dict[str, str]:
    file = job.audio[index]
    return {
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": content_disposition(job, file),
        "Content-Location": f"/v1/jobs/{job.id}/audio/{index}",
        "X-Seed": str(file.seed),
    }


class FileStream(StreamingResponse):
    """A streamed file. It counts as a download until the client has read it or has disconnected."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        room: AbstractContextManager[None],
        status_code: int,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        """`room` is held while the file is sent; an error that entering it raises is the answer instead of the file."""
        super().__init__(chunks, status_code, headers, media_type)
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, then wait until the client has read it or is gone."""
        with self._room:
            await super().__call__(scope, receive, send)
            await wait_until_read(receive)


async def wait_until_read(receive: Receive) -> None:
    """Wait until the client has read an answer that was sent, or is gone: the server sends `http.disconnect` for both."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The first chunk, which was read to see whether the file is there, and those after it."""
    yield first
    async for chunk in rest:
        yield chunk


def _byte_range(request: Request, range_header: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last, or None if the request has no single byte range.

    Any other `Range` is ignored, as RFC 9110 (14.2) allows. Raises RangeNotSatisfiable.
    """
    found = _BYTE_RANGE.fullmatch((range_header or "").replace(" ", ""))
    if found is None or request.method != "GET" or request.headers.get("if-range", etag) != etag:
        return None
    first, last = found.groups()
    if first == last == "":
        return None
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if first and last and int(last) < start:
        return None
    if start >= size:
        error = RangeNotSatisfiable(f"The range begins at byte {start}, but the file has only {size} bytes")
        error.headers = {"Content-Range": f"bytes */{size}"}  # RFC 9110, 15.5.17
        raise error
    return start, end


def _matches(if_none_match: str | None, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given or given == ["*"]
