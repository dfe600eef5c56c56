"""Receives a recording, checks it by decoding all of it, and keeps it as an input."""

import mmap
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import IO, Final

from starlette.datastructures import UploadFile

from serve_app.api.context import Context
from serve_app.api.recording import Recording
from serve_app.artifacts import ArtifactStore
from serve_app.decoding import DecodingLimits, inspect
from serve_app.errors import NotFound, UnreadableAudio
from serve_app.jobs import new_id
from serve_app.store.inputs import NewInput, StoredInput

_BATCH_BYTES: Final = 1024 * 1024
"""Bytes that are written in one call of a thread."""


@contextmanager
def new_recording(context: Context) -> Iterator[Recording]:
    """An empty recording for one file, which is deleted at the end."""
    recording = Recording(context.args.inputs.max_bytes)
    try:
        yield recording
    finally:
        recording.close()


async def receive(context: Context, recording: Recording, chunks: AsyncIterator[bytes]) -> None:
    """Write a body to a recording, without keeping it in memory. Raises BodyTooLarge."""
    batch = bytearray()
    async for chunk in chunks:
        batch += chunk
        if len(batch) >= _BATCH_BYTES:
            await context.threads.run(recording.write, bytes(batch))
            batch.clear()
    await context.threads.run(recording.write, bytes(batch))


async def chunks_of(part: UploadFile) -> AsyncIterator[bytes]:
    """The content of a multipart body's file."""
    while chunk := await part.read(_BATCH_BYTES):
        yield chunk


async def keep(context: Context, recording: Recording, owner: str) -> tuple[StoredInput, bool]:
    """Keep a recording as an input of the owner. Returns the input, and whether it is new: the owner may have it already.

    Raises UnusableAudio, QuotaExceeded, StoreUnavailable and ArtifactsUnavailable.
    """
    ttl_s = context.args.inputs.ttl_s
    earlier = await context.threads.run(context.store.inputs.renew, owner, recording.sha256, ttl_s)
    if earlier is not None:
        await context.threads.run(_replace_lost, context, recording, earlier)
        return earlier, False
    return await context.decoders.run(_check_and_store, context, recording, owner)


def _replace_lost(context: Context, recording: Recording, earlier: StoredInput) -> None:
    """Store the file again if the audio store has lost it, for example with a disk."""
    try:
        context.artifacts.size(earlier.key)
    except NotFound:
        recording.file.flush()
        _put(context.artifacts, earlier.key, recording.file)


def _check_and_store(context: Context, recording: Recording, owner: str) -> tuple[StoredInput, bool]:
    """Decode the recording, store its file and then its row."""
    if recording.size == 0:
        raise UnreadableAudio("The file is empty")
    args = context.args.inputs
    recording.file.flush()
    facts = inspect(recording.file.fileno(), DecodingLimits.of(args))
    new = NewInput(
        owner=owner,
        sha256=recording.sha256,
        upload=new_id(),
        bytes=recording.size,
        format=facts.format,
        seconds=facts.seconds,
        sample_rate=facts.sample_rate,
        channels=facts.channels,
        silent=facts.silent,
    )
    _put(context.artifacts, new.key, recording.file)
    is_new = False
    try:
        stored, is_new = context.store.inputs.add(new, args.ttl_s, args.max_owner_bytes)
    finally:
        if not is_new:
            context.artifacts.delete([new.key])
    return stored, is_new


def _put(artifacts: ArtifactStore, key: str, file: IO[bytes]) -> None:
    """Store a file without reading it into memory."""
    size = os.fstat(file.fileno()).st_size
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as memory, memoryview(memory) as data:
        artifacts.put(key, data)
