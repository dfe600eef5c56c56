"""A recording that arrives from a client or from an address, in a temporary file."""

import hashlib
import tempfile
from typing import IO

from serve_app.errors import BodyTooLarge


class Recording:
    """A recording in a temporary file, with its size and hash. The file is gone when the recording is closed."""

    def __init__(self, limit: int) -> None:
        """`limit`: the most bytes."""
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self.size = 0
        self._limit = limit
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the bytes so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append to the file. Raises BodyTooLarge."""
        self.size += len(data)
        if self.size > self._limit:
            raise BodyTooLarge(f"The file is larger than {self._limit} bytes, the maximum (inputs.max_bytes)")
        self._hash.update(data)
        self.file.write(data)

    def close(self) -> None:
        """Delete the file."""
        self.file.close()
