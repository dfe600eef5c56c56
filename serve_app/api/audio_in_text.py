"""Songs as base64 inside a text answer, such as JSON. They are read while it is sent, so that none lies in memory as a whole."""

import base64
from collections.abc import AsyncIterator
from typing import Final

from fastapi import Response

from serve_app.api.context import Context
from serve_app.api.file_answer import FileStream, check_is_kept
from serve_app.api.inline_audio import base64_bytes
from serve_app.jobs import Job, StoredAudio, new_id

_END: Final = ";"


class AudioInText:
    """Puts the audio of a job's songs into texts."""

    def __init__(self, context: Context, job: Job) -> None:
        self._context = context
        self.job = job
        self._mark = f"{new_id()}:"  # random, so that nothing that a client has written contains it

    def place(self, number: int) -> str:
        """What stands in a text for the audio of song `number`."""
        return f"{self._mark}{number}{_END}"

    async def check(self) -> None:
        """Raises AudioExpired, NotFound and ArtifactsUnavailable if a song is not there: an answer that has begun cannot say so."""
        check_is_kept(self.job)
        await self._context.threads.run(self._check_files)

    def _check_files(self) -> None:
        for file in self.job.audio:
            self._context.artifacts.size(file.key)

    def size(self, text: str) -> int:
        """The bytes of a text with its songs."""
        first, *others = self._parts(text)
        return len(first) + sum(len(rest) + base64_bytes(self.job.audio[number].bytes) for number, rest in others)

    async def filled(self, text: str) -> AsyncIterator[bytes]:
        """The text with its songs. Raises NotFound and ArtifactsUnavailable, possibly in the middle."""
        first, *others = self._parts(text)
        yield first
        for number, rest in others:
            async for piece in base64_pieces(self._context, self.job.audio[number]):
                yield piece
            yield rest

    def _parts(self, text: str) -> tuple[bytes, *tuple[tuple[int, bytes], ...]]:
        """What comes before the first song, then for each song its number and what comes after it."""
        first, *others = text.split(self._mark)
        numbers = (part.partition(_END) for part in others)
        return first.encode(), *((int(number), rest.encode()) for number, _, rest in numbers)

    async def answer(self, text: str) -> Response:
        """A JSON answer of this text. Raises what `check` raises; TooManyRequests when it is sent."""
        await self.check()
        size = self.size(text)
        room = self._context.limits.downloads.hold(self.job.owner, size, f"/v1/jobs/{self.job.id}/audio")
        return FileStream(self.filled(text), room, 200, {"Content-Length": str(size)}, "application/json")


async def base64_pieces(context: Context, file: StoredAudio) -> AsyncIterator[bytes]:
    """A song as base64, in pieces of up to 1.4 MB that can be decoded one by one."""
    rest = b""
    async for chunk in context.artifacts.stream(file.key, 0, file.bytes):
        data = rest + chunk
        whole = len(data) - len(data) % 3
        rest = data[whole:]
        yield base64.b64encode(data[:whole])
    if rest:
        yield base64.b64encode(rest)
