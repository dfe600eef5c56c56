"""What the API, the workers and the background threads need of a store for audio files."""

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import NamedTuple, Protocol


class StoredFile(NamedTuple):
    """A file in a listing."""

    key: str
    size: int
    """In bytes."""
    written_at: float
    """In seconds since the epoch, on the store's clock."""


class ArtifactStore(Protocol):
    """A store of files. `Artifacts` is the implementation for folders and for every object store that obstore supports.

    A key has the form `{job_id}/{claim}/{n}.{ext}`, where `jobs.artifact_folder` names the claim's folder, or
    `inputs/{upload}/{sha256}` for an uploaded recording (`jobs.input_key`). A method that takes a key or
    a prefix raises `ValueError` for one of another form. Every method raises `ArtifactsUnavailable` when the store fails.

    All methods block, except `stream`. Code on an event loop must call them in a thread.
    """

    def probe(self) -> None:
        """Write, read and delete a small file, to find a fault before a song has to be stored."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store `data` under `key`, replacing what was there. Readers see the whole file or none of it.

        When this returns, the file survives a power cut.
        """

    def get(self, key: str) -> bytes:
        """Return the whole file. Raises `NotFound` if there is no such file."""

    def size(self, key: str) -> int:
        """Return the file's size in bytes. Raises `NotFound` if there is no such file."""

    def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end` in chunks of up to 1 MiB. `end` is exclusive; 0 <= start <= end <= size.

        Raises `NotFound` if there is no such file, or if the file is deleted between two chunks.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files. Ignores keys that have no file."""

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """Yield every file under a prefix: `""`, a job's id, or `{job_id}/{claim}`. Skips files that Sophia did not write."""

    def mark(self) -> str | None:
        """Return the id of the database that owns this store: None if there is no mark, `""` if the mark is not valid."""

    def set_mark(self, database: str, replace: bool = False) -> None:
        """Mark the store as owned by the database with this id. Keeps an existing mark unless `replace` is set."""

    def sweep_leftovers(self, older_than_s: float) -> int:
        """Delete unfinished files that have not been written to for `older_than_s` seconds. Returns how many were deleted."""
