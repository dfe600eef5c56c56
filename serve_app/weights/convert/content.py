"""The content of a file that does not exist yet, as pieces of other files and of memory."""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from serve_app import errors
from serve_app.weights.cache import Interrupted, Remote
from serve_app.weights.layout import AGAIN

_ATTEMPTS: Final = 4
"""How often a small piece is asked for before the interruption is reported. The pauses take 3.5 s."""


@dataclass(frozen=True)
class Stored:
    """`size` bytes of a file of `source`, from byte `start`."""

    source: Remote
    file: str
    start: int
    size: int

    def read(self, skipped: int = 0) -> Iterator[bytes]:
        """Yields the bytes, without the first `skipped` ones.

        Raises:
            CorruptFile: the file is shorter.
            Interrupted, LoadError: the source's `read` raised it.
        """
        left = self.size - skipped
        if left == 0:
            return
        # Closed early, so that a connection does not go on sending the rest of the file.
        stream = cast("Generator[bytes]", self.source.read(self.file, self.start + skipped))
        with contextlib.closing(stream) as blocks:
            for block in blocks:
                yield block[:left]
                left -= min(len(block), left)
                if left == 0:
                    return
        raise errors.CorruptFile(f"{self.file} of {self.source.title} ended {left} bytes too early: {AGAIN}")

    def content(self) -> bytes:
        """Returns all the bytes, for small pieces only. Connects again after an interruption. Raises as `read` does."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return b"".join(self.read())
            except Interrupted:
                time.sleep(0.5 * 2**attempt)
        return b"".join(self.read())


Piece = Stored | bytes


def size_of(piece: Piece) -> int:
    """Returns the number of bytes of a piece."""
    return piece.size if isinstance(piece, Stored) else len(piece)


@dataclass(frozen=True)
class Content:
    """A file that consists of `pieces`, one after another. Nothing is read before `read`."""

    pieces: Sequence[Piece]
    sha256: str | None = None
    """The expected SHA-256 (hex), if it is known."""

    @property
    def size(self) -> int:
        """The size in bytes."""
        return sum(size_of(piece) for piece in self.pieces)

    def read(self, start: int) -> Iterator[bytes]:
        """Yields the content from byte `start`, in blocks. Raises as `Stored.read` does."""
        for piece in merged(self.pieces):
            size = size_of(piece)
            skipped = min(start, size)
            start -= skipped
            if skipped == size:
                continue
            if isinstance(piece, Stored):
                yield from piece.read(skipped)
            else:
                yield piece[skipped:]


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Returns the pieces with neighbours joined that are neighbours in their file, too: each needs one request instead of many."""
    joined: list[Piece] = []
    for piece in pieces:
        before = joined[-1] if joined else None
        if isinstance(piece, Stored) and isinstance(before, Stored) and _follows(before, piece):
            joined[-1] = Stored(before.source, before.file, before.start, before.size + piece.size)
        else:
            joined.append(piece)
    return joined


def _follows(before: Stored, piece: Stored) -> bool:
    same_file = before.source is piece.source and before.file == piece.file
    return same_file and before.start + before.size == piece.start
