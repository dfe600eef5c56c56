"""A chat answer as a stream of events that begins when the job is queued, and ends with its songs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Final

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve_app.api.compat.chat.answers import Chunk, Shape, Songs
from serve_app.api.compat.song_call import SongCall, made_song
from serve_app.api.context import Context
from serve_app.api.file_answer import wait_until_read
from serve_app.api.inline_audio import base64_bytes
from serve_app.errors import SophiaError
from serve_app.jobs import Job

_DOT_S: Final = 2.0
"""A stream has a dot whenever nothing was sent for so many seconds, as that of ACE-Step's server has."""

_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # stops nginx from buffering
)


class ChatStream(Response):
    """A stream. Errors of the submission are answers of their own; later ones are told in the stream."""

    def __init__(self, context: Context, owner: str, call: SongCall, shape: Shape, chunk: Chunk) -> None:
        super().__init__()
        self._context = context
        self._owner = owner
        self._call = call
        self._shape = shape
        self._chunk = chunk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit the job, and send events until its songs are sent or its caller has left."""
        request = Request(scope, receive)
        submitted = asyncio.Event()
        making = asyncio.create_task(made_song(request, self._context, self._owner, self._call, submitted))
        beginning = asyncio.create_task(submitted.wait())
        try:
            await asyncio.wait((making, beginning), return_when=asyncio.FIRST_COMPLETED)
            if not submitted.is_set():
                making.result()
            await self._send(request, making, send)
        finally:
            beginning.cancel()
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)  # so that the job is marked as left

    async def _send(self, request: Request, making: asyncio.Task[Job], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        with ExitStack() as room:
            async for event in self._events(making, room):
                await send({"type": "http.response.body", "body": event, "more_body": True})
                if making.done() and await request.is_disconnected():
                    return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            await wait_until_read(request.receive)

    async def _events(self, making: asyncio.Task[Job], room: ExitStack) -> AsyncIterator[bytes]:
        """The events. The songs count as a download as long as `room` is open."""
        yield self._chunk.event({"role": "assistant", "content": ""})
        while not making.done():
            await asyncio.wait((making,), timeout=_DOT_S)
            if not making.done():
                yield self._chunk.event({"content": "."})
        try:
            songs = await self._songs(making.result(), room)
            async for event in self._shape.stream(songs, self._chunk):
                yield event
        except ClientDisconnect:
            return
        except SophiaError as error:
            yield self._chunk.event({"content": error.public})
            yield self._chunk.event({}, finish_reason="error")
        yield b"data: [DONE]\n\n"

    async def _songs(self, job: Job, room: ExitStack) -> Songs:
        """The songs of the job. Raises TooManyRequests if they have no room, and what `AudioInText.check` raises."""
        songs = await self._context.threads.run(Songs.of, self._context, job)
        await songs.audio.check()
        size = sum(base64_bytes(file.bytes) for file in job.audio)
        room.enter_context(self._context.limits.downloads.hold(job.owner, size, f"/v1/jobs/{job.id}/audio"))
        return songs
