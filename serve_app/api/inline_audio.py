"""Finished audio inside a JSON answer, as clients of some other services expect it.

Unlike a file, which is streamed, such an answer lies in the memory of the API process as a whole, until its client has read it. So
the audio that all of them may have is limited. Where there is no room, the answer names the songs' addresses alone.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from typing import Any, Final

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.context import Context
from serve_app.api.file_answer import wait_until_read
from serve_app.errors import TooManyRequests
from serve_app.jobs import Job

NO_SONGS: Final[frozenset[int]] = frozenset()
_PIECE: Final = 1 << 20


def base64_bytes(size: int) -> int:
    """The length of the base64 text of `size` bytes."""
    return 4 * ((size + 2) // 3)


def songs_that_fit(job: Job, most_bytes: int) -> frozenset[int]:
    """The numbers of a job's songs whose base64 text has at most `most_bytes` together, taken in their order."""
    fitting: set[int] = set()
    if job.audio_gone_at is None:
        for number, file in enumerate(job.audio):
            size = base64_bytes(file.bytes)
            if size <= most_bytes:
                fitting.add(number)
                most_bytes -= size
    return frozenset(fitting)


class InlineAudioAnswer(Response):
    """A JSON answer with the audio of a job's songs. Its audio counts in `limits.inline_audio` until the client has read it."""

    media_type = "application/json"

    def __init__(self, context: Context, job: Job, most_bytes: int, render: Callable[[frozenset[int]], bytes]) -> None:
        """`render` returns the JSON with the audio of the songs whose numbers it gets. It runs in a thread of the API process."""
        super().__init__()
        self._context = context
        self._job = job
        self._songs = songs_that_fit(job, most_bytes)
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Render and send the answer, then wait until the client has read it or is gone."""
        with ExitStack() as room:
            songs = self._with_room(room)
            body = await self._context.threads.run(self._render, songs)
            headers = {"Content-Length": str(len(body))}
            await StreamingResponse(_pieces(body), 200, headers, self.media_type)(scope, receive, send)
            if songs:
                await wait_until_read(receive)

    def _with_room(self, room: ExitStack) -> frozenset[int]:
        """The songs to send, for which `room` holds a part of the limit; none if there is no room for them."""
        size = sum(base64_bytes(self._job.audio[number].bytes) for number in self._songs)
        held: Any = self._context.limits.inline_audio.hold(self._job.owner, size, f"/v1/jobs/{self._job.id}/audio")
        with suppress(TooManyRequests):
            room.enter_context(held)
            return self._songs
        return NO_SONGS


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """The body in pieces: the server waits between them for a client that reads slowly."""
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
