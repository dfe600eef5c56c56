# `python -m tests.support.sync_client` writes this file from sophia_client/aio/downloads.py.
"""Downloads songs into files, and goes on where a connection broke."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from sophia_client.answers import AudioFile
from sophia_client.calls import Call
from sophia_client.errors import SophiaError
from sophia_client.part_file import PartFile
from sophia_client.sync.runtime import in_thread, pause
from sophia_client.sync.transport import Transport

_CHUNK_BYTES: Final = 256 * 1024

OnBytes = Callable[[int, int], None]
"""Is called with the bytes that are here and those of the whole file."""


def download(transport: Transport, file: AudioFile, destination: Path, on_bytes: OnBytes | None) -> None:
    """Download a song to a file. Raises DamagedDownload, ConnectionLost, AudioExpired and other ApiErrors, and OSError."""
    part = PartFile(destination, file.sha256, file.bytes)
    patience = transport.patience()
    while (have := in_thread(part.received)) < file.bytes:
        try:
            _receive(transport, file, part, have, on_bytes)
        except SophiaError as error:
            if in_thread(part.received) > have:
                patience.renew()
            pause(patience.pause_s(error))
    in_thread(part.finish)


def _receive(transport: Transport, file: AudioFile, part: PartFile, have: int, on_bytes: OnBytes | None) -> None:
    """Receive as much as one connection brings of what is behind the first `have` bytes."""
    call = Call("GET", file.url, headers={"Range": f"bytes={have}-", "If-Range": f'"{file.sha256}"'} if have else {})
    with transport.stream(call) as response:
        at = have if response.status_code == httpx.codes.PARTIAL_CONTENT else 0
        for content in response.iter_raw(_CHUNK_BYTES):
            in_thread(part.write, content, at)
            at += len(content)
            if on_bytes is not None:
                on_bytes(at, file.bytes)
    if at < file.bytes:
        raise transport.lost(call)
