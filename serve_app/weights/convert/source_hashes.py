"""Compares the files of a source with their listed hashes, although only parts of them were kept.

A file of the original layout is spread over several files of the converted checkpoint. Its hash is computed from these; the few
bytes that were not kept, such as its header, are read from the source again.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serve_app import errors
from serve_app.weights.cache import Remote
from serve_app.weights.convert.content import Content, Stored, size_of
from serve_app.weights.layout import AGAIN

_BLOCK_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class _Kept:
    """Bytes of a source's file that are in a file of the converted checkpoint."""

    stored: Stored
    target: str
    at: int
    """Where they begin in `target`."""


def check_sources(folder: Path, contents: Mapping[str, Content]) -> None:
    """Checks every source file whose hash is listed and of which `contents` has pieces. Whole copies were checked already.

    Raises:
        CorruptFile: a file has another hash. What was made from it is deleted, so that the next try fetches it again.
        Interrupted, LoadError: the source cannot be read.
    """
    for kept in _by_file(contents).values():
        source = kept[0].stored.source
        name = kept[0].stored.file
        expected = source.files[name].sha256
        if expected is None:
            continue
        found = hashlib.sha256()
        for block in _blocks(folder, source, name, kept):
            found.update(block)
        if found.hexdigest() != expected:
            for target in {piece.target for piece in kept}:
                (folder / target).unlink()
            raise errors.CorruptFile(
                f"{name} of {source.title} arrived with sha256 {found.hexdigest()}, expected {expected}. A proxy may have "
                f"changed it. What was made from it was deleted: start again."
            )


def _by_file(contents: Mapping[str, Content]) -> dict[tuple[int, str], list[_Kept]]:
    """Groups the pieces of all contents by source and file, in the order of the file."""
    grouped: dict[tuple[int, str], list[_Kept]] = {}
    for target, content in contents.items():
        at = 0
        for piece in content.pieces:
            if isinstance(piece, Stored) and content.sha256 is None:
                grouped.setdefault((id(piece.source), piece.file), []).append(_Kept(piece, target, at))
            at += size_of(piece)
    return {key: sorted(kept, key=lambda piece: piece.stored.start) for key, kept in grouped.items()}


def _blocks(folder: Path, source: Remote, name: str, kept: list[_Kept]) -> Iterator[bytes]:
    """Yields the content of a source's file: from the converted files where they have it, else from the source."""
    at = 0
    for piece in kept:
        if piece.stored.start > at:
            yield from Stored(source, name, at, piece.stored.start - at).read()
        yield from _range(folder / piece.target, piece.at, piece.stored.size)
        at = piece.stored.start + piece.stored.size
    yield from Stored(source, name, at, source.files[name].size - at).read()


def _range(file: Path, start: int, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(start)
        while size:
            block = stream.read(min(size, _BLOCK_BYTES))
            if not block:
                raise errors.CorruptFile(f"{file} is too short: {AGAIN}")
            yield block
            size -= len(block)
