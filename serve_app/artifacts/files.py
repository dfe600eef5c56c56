"""Audio files in a local folder, S3, Google Cloud Storage or Azure, through obstore.

Readers see a whole file or none. In a folder, a file is written under a temporary name and then renamed. An object store shows an
upload only once it is complete. Every key is checked, although Sophia makes them all, so that no path can leave the folder.
"""

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from serve_app.artifacts.causes import Place, explain, is_missing_bucket
from serve_app.artifacts.protocol import StoredFile
from serve_app.errors import ArtifactsUnavailable, ConfigurationError, NotFound

logger = logging.getLogger("ray.serve.sophia")

_SCHEMES: Final = ("file", "s3", "gs", "az", "memory")
_CLAIM: Final = r"[0-9]{1,9}(-[0-9a-z-]{0,12})?"
"""The folder of one claim; see `jobs.artifact_folder`. The first version named the folder by the attempt alone."""

_INPUT: Final = r"inputs/[0-9a-f-]{36}/[0-9a-f]{64}"
"""An uploaded recording; see `jobs.input_key`."""

_KEY: Final = re.compile(rf"[0-9a-z-]{{1,64}}/{_CLAIM}/[0-9]{{1,9}}\.[0-9a-z]{{1,8}}|{_INPUT}")
_PREFIX: Final = re.compile(rf"([0-9a-z-]{{1,64}}(/{_CLAIM})?/?)?")
_MARK: Final = ".sophia-store.json"
"""The file that names the store's owner. Its name is no artifact key, so listings skip it."""

_PROBES: Final = ".sophia-probe"
"""The folder of the files that probes write. Listings skip it, too."""

_PROBE_BYTES: Final = 1024 * 1024
"""Too large to fit into the last free block of a full disk."""

_LEFTOVER: Final = re.compile(r"([0-9]{1,9}\.[0-9a-z]{1,8}|[0-9a-f]{64})#[0-9]+")
"""The temporary name of a file that object_store is writing to a folder: the final name, `#` and a number."""

_CHUNK_BYTES: Final = 1024 * 1024
_PAGE_KEYS: Final = 1000
_RETRY_S: Final = 30
"""object_store retries for three minutes by default. That is too long for a client that is waiting."""


class Artifacts:
    """An `ArtifactStore` in a folder or an object store.

    `url` is `file:///folder` (created if it does not exist), `s3://bucket/prefix`, `gs://…`, `az://…`, or `memory://`, which
    lasts as long as its process. Credentials come from the environment, under the provider's usual names.

    The constructor raises `ConfigurationError` for an address that can never work. If the folder cannot be created because the
    disk is full or read-only, each use tries again.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._place = Place(_folder(url), urlsplit(url).netloc.rpartition("@")[2])
        self._opened: ObjectStore | None = None
        self._probe = f"{_PROBES}/{secrets.token_hex(8)}"
        self._probing = threading.Lock()
        try:
            self._open()
        except ArtifactsUnavailable as error:
            if error.cause == "missing":  # a file stands in its way
                raise ConfigurationError(f"artifacts_url (file://) cannot be used: {error.why}") from error
            logger.warning("%s", error)

    @property
    def _store(self) -> ObjectStore:
        return self._opened or self._open()

    def _open(self) -> ObjectStore:
        with self._failures("make its folder"):
            self._opened = _open_store(self._url)
        return self._opened

    @property
    def _folder(self) -> Path | None:
        return self._place.folder

    def probe(self) -> None:
        """Write, read and delete a small file, to find a fault before a song has to be stored.

        A process uses the same file name for all its probes, so that files do not pile up where deleting fails. A lock keeps two
        threads from probing at once: one would delete the file that the other is about to read.
        """
        with self._probing:
            self._write_read_and_delete()

    def _write_read_and_delete(self) -> None:
        data = os.urandom(_PROBE_BYTES if self._folder else 16)
        with self._failures("be written to"):
            obstore.put(self._store, self._probe, data, use_multipart=False)
        with self._failures("be read"):
            same = bytes(obstore.get(self._store, self._probe).bytes()) == data
        with self._failures("delete a file"):
            obstore.delete(self._store, self._probe)
        if not same:
            raise ArtifactsUnavailable("be read", why="it returned other bytes than Sophia had written")

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store `data` under `key`, replacing what was there. When this returns, the file survives a power cut."""
        _check(key)
        with self._failures(f"write {key}"):
            obstore.put(self._store, key, data)
            if self._folder is not None:
                _flush(self._folder, key)

    def get(self, key: str) -> bytes:
        """Return the whole file. Raises `NotFound` if there is no such file."""
        _check(key)
        with self._reading(key):
            return bytes(obstore.get(self._store, key).bytes())

    def size(self, key: str) -> int:
        """Return the file's size in bytes. Raises `NotFound` if there is no such file."""
        _check(key)
        with self._reading(key):
            try:
                return obstore.head(self._store, key)["size"]
            except (
                FileNotFoundError
            ):  # a HEAD response has no body, so only a GET tells a missing bucket from a missing file
                return len(obstore.get(self._store, key).bytes())

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end` in chunks of up to 1 MiB. `end` is exclusive; 0 <= start <= end <= size.

        Each chunk is a separate request, because object_store cuts off a response after 30 s and a slow client may take longer.
        Raises `NotFound` if there is no such file, or if the file is deleted between two chunks.
        """
        _check(key)
        for offset in range(start, end, _CHUNK_BYTES):
            with self._reading(key):
                chunk = await obstore.get_range_async(
                    self._store, key, start=offset, end=min(offset + _CHUNK_BYTES, end)
                )
            yield bytes(chunk)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files. Ignores keys that have no file."""
        for key in keys:
            _check(key)
            with self._failures(f"delete {key}"):
                self._delete(key)

    def _delete(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """Yield every file under a prefix: `""`, a job's id, or `{job_id}/{claim}`. Skips files that Sophia did not write."""
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"not a prefix of artifact keys: {prefix!r}")
        with self._failures(f"list {prefix or 'files'}"):
            for page in obstore.list(self._store, prefix, chunk_size=_PAGE_KEYS):
                yield from (
                    StoredFile(item["path"], item["size"], item["last_modified"].timestamp())
                    for item in page
                    if _KEY.fullmatch(item["path"])
                )

    def mark(self) -> str | None:
        """Return the id of the database that owns this store: None if there is no mark, `""` if the mark is not valid."""
        try:
            with self._reading(_MARK):
                text = bytes(obstore.get(self._store, _MARK).bytes())
            return str(json.loads(text)["database"])
        except NotFound:
            return None
        except (ValueError, KeyError, TypeError):
            return ""

    def set_mark(self, database: str, replace: bool = False) -> None:
        """Mark the store as owned by the database with this id. Keeps an existing mark unless `replace` is set."""
        text = json.dumps({"database": database, "meaning": "Sophia's database of this id may delete audio here."})
        with self._failures("mark its owner"), suppress(AlreadyExistsError):
            obstore.put(
                self._store, _MARK, text.encode(), mode="overwrite" if replace else "create", use_multipart=False
            )

    def sweep_leftovers(self, older_than_s: float) -> int:
        """Delete the files that killed writers left in a local folder. Returns how many were deleted.

        Keeps files written to in the last `older_than_s` seconds, because their writer may still be alive. Does nothing for an
        object store: there the bucket's lifecycle rule (AbortIncompleteMultipartUpload) removes unfinished uploads.
        """
        if self._folder is None:
            return 0
        with self._failures("sweep leftovers"):
            return sum(
                _remove_if_old(file, older_than_s)
                for pattern in ("*/*/*#*", f"{_PROBES}/*")
                for file in self._folder.glob(pattern)
            )

    @contextmanager
    def _failures(self, action: str) -> Iterator[None]:
        """Turn a failure of the store into ArtifactsUnavailable.

        The original text stays out of the message, because it can contain signed addresses.
        """
        try:
            yield
        except (BaseError, OSError) as error:
            raise ArtifactsUnavailable(action, *explain(error, self._place)) from error

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        with self._failures(f"read {key}"):
            try:
                yield
            except FileNotFoundError as error:
                if is_missing_bucket(error):
                    raise
                raise NotFound(f"There is no audio file {key}: it was deleted, or never finished") from error


def _open_store(url: str) -> ObjectStore:
    """Raises ConfigurationError, or OSError if the folder cannot be created."""
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        raise ConfigurationError(f"artifacts_url must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
    try:
        if scheme == "file":
            # automatic_cleanup deletes the folders of a job or an upload with its last file.
            return LocalStore.from_url(url, mkdir=True, automatic_cleanup=True)
        return from_url(url, retry_config={"retry_timeout": timedelta(seconds=_RETRY_S)})
    except (BaseError, ValueError) as error:
        # The message omits the URL, because some people put credentials into it.
        raise ConfigurationError(
            f"artifacts_url ({scheme}://) cannot be used ({type(error).__name__}): check its spelling, that the folder may "
            f"be written, and the provider's variables in the environment"
        ) from error


def _folder(url: str) -> Path | None:
    """The folder of a file:// address; None for any other address."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an artifact key: {key!r}")


def _flush(folder: Path, key: str) -> None:
    """Flush a file and its folders to the disk. object_store only passes them to the kernel."""
    path = folder / key
    for part in (path, *path.parents[:3]):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_if_old(file: Path, older_than_s: float) -> bool:
    """Delete `file` if it is an old leftover. Returns whether it was deleted."""
    with suppress(FileNotFoundError):  # its writer was alive and has just renamed it
        is_ours = file.parent.name == _PROBES or _LEFTOVER.fullmatch(file.name)
        if is_ours and time.time() - file.stat().st_mtime > older_than_s:
            file.unlink()
            return True
    return False
