"""A job's songs in one zip file. It is written while it is sent, and the songs are not compressed, since they hardly shrink."""

import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from serve_app.api.file_names import file_name
from serve_app.artifacts import ArtifactStore
from serve_app.jobs import Job, StoredAudio

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Unsent(io.RawIOBase):
    """What `zipfile` has written and nobody has sent yet. It cannot seek, so `zipfile` writes a song's checksum after the song."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()
        self._position = 0

    def write(self, data: "ReadableBuffer", /) -> int:
        size = memoryview(data).nbytes
        self._data += data
        self._position += size
        return size

    def tell(self) -> int:
        return self._position

    def skip(self, size: int) -> None:
        """Go on as if `size` bytes had been written."""
        self._position += size

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._data)
        self._data.clear()
        return taken


def archive_bytes(job: Job) -> int:
    """The size of a job's zip file in bytes, found by writing it without the songs' contents."""
    unsent = _Unsent()
    with ZipFile(unsent, "w", ZIP_STORED) as archive:
        for file in job.audio:
            with archive.open(_entry(job, file), "w"):
                unsent.skip(file.bytes)
    return unsent.tell()


async def archive_chunks(job: Job, artifacts: ArtifactStore) -> AsyncIterator[bytes]:
    """A job's zip file in chunks of up to about 1 MiB.

    Raises NotFound and ArtifactsUnavailable, possibly in the middle.
    """
    unsent = _Unsent()
    with ZipFile(unsent, "w", ZIP_STORED) as archive:
        for file in job.audio:
            with archive.open(_entry(job, file), "w") as entry:
                async for chunk in artifacts.stream(file.key, 0, file.bytes):
                    entry.write(chunk)
                    yield unsent.take()
    yield unsent.take()


def _entry(job: Job, file: StoredAudio) -> ZipInfo:
    """The entry of one song, with the time at which its job ended."""
    ended = datetime.fromtimestamp(job.finished_at or job.created_at, UTC)
    return ZipInfo(file_name(job, file), ended.timetuple()[:6])
