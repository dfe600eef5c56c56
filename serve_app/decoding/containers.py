"""Recognises a file by its first bytes, and finds out whether the end of a WAV or Ogg file is missing.

The codecs read such a truncated file without an error, as if it were shorter.
"""

import os
import struct
from typing import BinaryIO, Final

_RIFF_HEADER: Final = 12
_CHUNK_HEADER: Final = struct.Struct("<4sI")
_UNKNOWN_SIZES: Final = (0, 0xFFFFFFFF)
"""Sizes in files that were written to a pipe, whose writer could not go back to fill in the real size."""

_OGG_PAGE: Final = b"OggS"
_OGG_HEADER: Final = 27
_LARGEST_OGG_PAGE: Final = 65_307


def container_of(file: BinaryIO) -> str | None:
    """The container that the file's first bytes announce, None for anything that is no known audio file."""
    file.seek(0)
    head = file.read(16)
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] in (b"ftyp", b"moov", b"mdat"):
        return "mp4"
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    return _frames_of(head)


_MAGIC: Final = {
    b"fLaC": "flac",
    _OGG_PAGE: "ogg",
    b"ID3": "mp3",
    b"caff": "caf",
    b"riff": "w64",
    b".snd": "au",
    b"#!AMR": "amr",
    b"\x1a\x45\xdf\xa3": "webm",
}


def _frames_of(head: bytes) -> str | None:
    """The format of a file that begins with a frame: ADTS (AAC) has layer 0, MP3 the layers 1 to 3 (ISO 11172-3, 2.4.2.3)."""
    if len(head) < 2 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "aac"
    return "mp3" if head[1] & 0x06 else None


def is_truncated(file: BinaryIO, container: str) -> bool:
    """Whether the end of a WAV or Ogg file is missing. False for other containers."""
    size = file.seek(0, os.SEEK_END)
    if container == "wav":
        return _is_wav_truncated(file, size)
    return container == "ogg" and _is_ogg_truncated(file, size)


def _is_wav_truncated(file: BinaryIO, size: int) -> bool:
    """Whether the chunk `data` is longer than the rest of the file."""
    file.seek(0)
    if file.read(4) != b"RIFF":  # RF64 has the size in another chunk, RIFX in another byte order
        return False
    position = _RIFF_HEADER
    while position + _CHUNK_HEADER.size <= size:
        file.seek(position)
        name, length = _CHUNK_HEADER.unpack(file.read(_CHUNK_HEADER.size))
        position += _CHUNK_HEADER.size
        if name == b"data":
            return length not in _UNKNOWN_SIZES and position + length > size
        position += length + length % 2
    return False


def _is_ogg_truncated(file: BinaryIO, size: int) -> bool:
    """Whether the last page is incomplete (RFC 3533, 6: a header of 27 bytes, the table of segment lengths, the segments)."""
    start = max(0, size - _LARGEST_OGG_PAGE)
    file.seek(start)
    tail = file.read(_LARGEST_OGG_PAGE)
    last = tail.rfind(_OGG_PAGE)
    if last < 0:
        return True
    page = tail[last:]
    if len(page) < _OGG_HEADER:
        return True
    segments = page[26]
    table = page[_OGG_HEADER : _OGG_HEADER + segments]
    return len(page) < _OGG_HEADER + segments + sum(table)
