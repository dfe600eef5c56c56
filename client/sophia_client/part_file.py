"""A file that is being downloaded. It lies beside its destination, and a later download of the same song goes on with it."""

import hashlib
import os
from pathlib import Path
from typing import Final

from sophia_client.errors import DamagedDownload

_READ_BYTES: Final = 1024 * 1024


class PartFile:
    """The part of a song that is here already. `sha256` (in hex) and `size` (in bytes) are the whole file's."""

    def __init__(self, destination: Path, sha256: str, size: int) -> None:
        self._destination = destination
        self._sha256 = sha256
        self._size = size
        self._path = destination.with_name(f".{destination.name}.{sha256[:16]}.part")

    def received(self) -> int:
        """The bytes that are here already; 0 if there are more than the whole file has."""
        try:
            found = self._path.stat().st_size
        except FileNotFoundError:
            return 0
        return found if found <= self._size else 0

    def write(self, content: bytes, start: int) -> None:
        """Write bytes at an offset. What was behind them is removed."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.seek(start)
            file.truncate()
            file.write(content)

    def finish(self) -> None:
        """Put the file in its place. Raises DamagedDownload."""
        if self._digest() != self._sha256:
            self._path.unlink()
            raise DamagedDownload(f"What was downloaded for {self._destination} is not the job's song; try again")
        os.replace(self._path, self._destination)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while content := file.read(_READ_BYTES):
                digest.update(content)
        return digest.hexdigest()
