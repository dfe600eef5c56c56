"""Where finished audio lives: a local folder, S3, Google Cloud Storage or Azure, through one interface (obstore).

A file is there whole or not at all: a folder's files are written beside their name and moved, and an object store shows
an upload when it is complete. Keys are made by Sophia and checked all the same, so that none can leave the folder.
"""

import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from serve_app.errors import ArtifactsUnavailable, ConfigurationError, NotFound

_SCHEMES: Final = ("file", "s3", "gs", "az", "memory")
_CLAIM: Final = r"[0-9]{1,9}(-[0-9a-z-]{0,12})?"
"""The folder of one claim, `jobs.artifact_folder`; files of the first version lie in folders named by the attempt alone."""

_KEY: Final = re.compile(rf"[0-9a-z-]{{1,64}}/{_CLAIM}/[0-9]{{1,9}}\.[0-9a-z]{{1,8}}")
_PREFIX: Final = re.compile(rf"([0-9a-z-]{{1,64}}(/{_CLAIM})?/?)?")
_MARK: Final = ".sophia-store.json"
"""The file that says whose audio store it is. It is no artifact, so no listing shows it."""

_LEFTOVER: Final = re.compile(r"[0-9]{1,9}\.[0-9a-z]{1,8}#[0-9]+")
"""How object_store names a file that it is still writing to a folder: its own name, `#` and a number."""

_CHUNK_BYTES: Final = 1024 * 1024
_PAGE_KEYS: Final = 1000
_RETRY_S: Final = 30
"""object_store tries for three minutes by default: too long for a client that waits."""


class StoredFile(NamedTuple):
    """A file as the store lists it: size in bytes, and when it was written, in seconds since the epoch by the store's clock."""

    key: str
    size: int
    written_at: float


class Artifacts:
    """The store of finished files, by keys of the form `{job_id}/{attempt}/{n}.{ext}`.

    `url` is `file:///folder` (made when it is not there), `s3://bucket/prefix`, `gs://…`, `az://…`, or `memory://`, which
    lives and dies with its process. Credentials come from the environment, under the provider's usual names.

    Every method raises `ValueError` for a key of another form and `ArtifactsUnavailable` when the store fails. The
    methods block, `stream` excepted: from an event loop, call them in a thread.
    """

    def __init__(self, url: str):
        self._store = _open_store(url)
        self._folder = self._store.prefix if isinstance(self._store, LocalStore) else None

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Keep `data` under `key`, whole or not at all; on return it survives a power cut."""
        _check(key)
        with _failures(f"write {key}"):
            obstore.put(self._store, key, data)
            if self._folder is not None:
                _flush(self._folder, key)

    def get(self, key: str) -> bytes:
        """The whole file. Raises `NotFound` when there is none."""
        _check(key)
        with _reading(key):
            return bytes(obstore.get(self._store, key).bytes())

    def size(self, key: str) -> int:
        """The file's size in bytes. Raises `NotFound` when there is none."""
        _check(key)
        with _reading(key):
            return obstore.head(self._store, key)["size"]

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` to `end` (exclusive; 0 <= start <= end <= size) in chunks of up to 1 MiB.

        Each chunk is a request of its own: one long response would be cut off by the store's client after 30 s, and a
        listener may take longer. Raises `NotFound`, also in the middle if the file is deleted meanwhile.
        """
        _check(key)
        for at in range(start, end, _CHUNK_BYTES):
            with _reading(key):
                chunk = await obstore.get_range_async(self._store, key, start=at, end=min(at + _CHUNK_BYTES, end))
            yield bytes(chunk)

    def delete(self, keys: Iterable[str]) -> None:
        """Forget files; one that is not there is as good as deleted."""
        for key in keys:
            _check(key)
            with _failures(f"delete {key}"), suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """Every file under `prefix` (`""`, a job's id, or id/attempt), a page at a time.

        Other people's files in the same folder or bucket are passed over.
        """
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"not a prefix of artifact keys: {prefix!r}")
        with _failures(f"list {prefix or 'files'}"):
            for page in obstore.list(self._store, prefix, chunk_size=_PAGE_KEYS):
                yield from (
                    StoredFile(item["path"], item["size"], item["last_modified"].timestamp())
                    for item in page
                    if _KEY.fullmatch(item["path"])
                )

    def mark(self) -> str | None:
        """The id of the database whose store it is; None where none has marked it, empty where the mark cannot be read."""
        try:
            with _reading(_MARK):
                text = bytes(obstore.get(self._store, _MARK).bytes())
            return str(json.loads(text)["database"])
        except NotFound:
            return None
        except (ValueError, KeyError, TypeError):
            return ""

    def set_mark(self, database: str, replace: bool = False) -> None:
        """Say that the store belongs to the database of this id. A mark that is there stays, unless `replace`."""
        text = json.dumps({"database": database, "meaning": "Sophia's database of this id may delete audio here."})
        with _failures("mark its owner"), suppress(AlreadyExistsError):
            obstore.put(
                self._store, _MARK, text.encode(), mode="overwrite" if replace else "create", use_multipart=False
            )

    def sweep_leftovers(self, older_than_s: float) -> int:
        """Delete what killed writers left in a local folder, and say how many files that were.

        Only files that nothing was written to for `older_than_s` seconds go: a younger one may be in the making. In an
        object store unfinished uploads are the bucket's lifecycle rule's business (AbortIncompleteMultipartUpload).
        """
        if self._folder is None:
            return 0
        with _failures("sweep leftovers"):
            return sum(_remove_if_old(file, older_than_s) for file in self._folder.glob("*/*/*#*"))


def _open_store(url: str) -> ObjectStore:
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        raise ConfigurationError(f"artifacts_url must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
    try:
        if scheme == "file":
            # automatic_cleanup: a job's folders go with its last file.
            return LocalStore.from_url(url, mkdir=True, automatic_cleanup=True)
        return from_url(url, retry_config={"retry_timeout": timedelta(seconds=_RETRY_S)})
    except (BaseError, OSError, ValueError) as error:
        # The URL itself stays out of the message: some people put credentials into it.
        raise ConfigurationError(
            f"artifacts_url ({scheme}://) cannot be used ({type(error).__name__}): check its spelling, that the folder may "
            f"be written, and the provider's variables in the environment"
        ) from error


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an artifact key: {key!r}")


@contextmanager
def _failures(action: str) -> Iterator[None]:
    """Turn a failure of the store into ours. Its own text stays in the cause: it can hold signed addresses."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise ArtifactsUnavailable(
            f"The audio store could not {action} ({type(error).__name__}): check that it can be reached, its credentials and "
            f"its free space, then try again"
        ) from error


@contextmanager
def _reading(key: str) -> Iterator[None]:
    with _failures(f"read {key}"):
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"There is no audio file {key}: it was deleted, or never finished") from error


def _flush(folder: Path, key: str) -> None:
    """Write a file and the folders down to it to the disk itself (object_store only hands them to the kernel)."""
    path = folder / key
    for part in (path, *path.parents[:3]):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_if_old(file: Path, older_than_s: float) -> bool:
    """Whether `file` was a leftover, and is gone now."""
    with suppress(FileNotFoundError):  # its writer was alive, and has just moved it to its name
        if _LEFTOVER.fullmatch(file.name) and time.time() - file.stat().st_mtime > older_than_s:
            file.unlink()
            return True
    return False
