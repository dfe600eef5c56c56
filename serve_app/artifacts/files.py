"""Where finished audio lives: a local folder, S3, Google Cloud Storage or Azure, through one interface (obstore).

A file is there whole or not at all: a folder's files are written beside their name and moved, and an object store shows
an upload when it is complete. Keys are made by Sophia and checked all the same, so that none can leave the folder.
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
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from serve_app.artifacts.causes import Place, explain, is_missing_bucket
from serve_app.errors import ArtifactsUnavailable, ConfigurationError, NotFound

logger = logging.getLogger("ray.serve.sophia")

_SCHEMES: Final = ("file", "s3", "gs", "az", "memory")
_CLAIM: Final = r"[0-9]{1,9}(-[0-9a-z-]{0,12})?"
"""The folder of one claim, `jobs.artifact_folder`; files of the first version lie in folders named by the attempt alone."""

_KEY: Final = re.compile(rf"[0-9a-z-]{{1,64}}/{_CLAIM}/[0-9]{{1,9}}\.[0-9a-z]{{1,8}}")
_PREFIX: Final = re.compile(rf"([0-9a-z-]{{1,64}}(/{_CLAIM})?/?)?")
_MARK: Final = ".sophia-store.json"
"""The file that says whose audio store it is. It is no artifact, so no listing shows it."""

_PROBES: Final = ".sophia-probe"
"""The folder of what is written to see whether one can write; no listing shows it either."""

_PROBE_BYTES: Final = 1024 * 1024
"""So large that it does not fit into a disk's last free block."""

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

    An address that can never work raises `ConfigurationError` at once. A folder that cannot be made now, on a disk that is full
    or read-only, is tried again at each use.
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
        """Write a small file, read it and delete it, so that what would stop a song is known before. Raises ArtifactsUnavailable.

        The file's name stays the same for the life of the process, so that files do not pile up where deleting fails. Two threads
        probe one after the other: one would delete the file that the other is about to read.
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
            raise ArtifactsUnavailable("be read", why="it gives back other bytes than were put there")

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Keep `data` under `key`, whole or not at all; on return it survives a power cut."""
        _check(key)
        with self._failures(f"write {key}"):
            obstore.put(self._store, key, data)
            if self._folder is not None:
                _flush(self._folder, key)

    def get(self, key: str) -> bytes:
        """The whole file. Raises `NotFound` when there is none."""
        _check(key)
        with self._reading(key):
            return bytes(obstore.get(self._store, key).bytes())

    def size(self, key: str) -> int:
        """The file's size in bytes. Raises `NotFound` when there is none."""
        _check(key)
        with self._reading(key):
            try:
                return obstore.head(self._store, key)["size"]
            except FileNotFoundError:  # the answer has no body that would tell a missing bucket from a missing file
                return len(obstore.get(self._store, key).bytes())

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` to `end` (exclusive; 0 <= start <= end <= size) in chunks of up to 1 MiB.

        Each chunk is a request of its own: one long response would be cut off by the store's client after 30 s, and a
        listener may take longer. Raises `NotFound`, also in the middle if the file is deleted meanwhile.
        """
        _check(key)
        for at in range(start, end, _CHUNK_BYTES):
            with self._reading(key):
                chunk = await obstore.get_range_async(self._store, key, start=at, end=min(at + _CHUNK_BYTES, end))
            yield bytes(chunk)

    def delete(self, keys: Iterable[str]) -> None:
        """Forget files; one that is not there is as good as deleted."""
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
        """Every file under `prefix` (`""`, a job's id, or id/attempt), a page at a time.

        Other people's files in the same folder or bucket are passed over.
        """
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
        """The id of the database whose store it is; None where none has marked it, empty where the mark cannot be read."""
        try:
            with self._reading(_MARK):
                text = bytes(obstore.get(self._store, _MARK).bytes())
            return str(json.loads(text)["database"])
        except NotFound:
            return None
        except (ValueError, KeyError, TypeError):
            return ""

    def set_mark(self, database: str, replace: bool = False) -> None:
        """Say that the store belongs to the database of this id. A mark that is there stays, unless `replace`."""
        text = json.dumps({"database": database, "meaning": "Sophia's database of this id may delete audio here."})
        with self._failures("mark its owner"), suppress(AlreadyExistsError):
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
        with self._failures("sweep leftovers"):
            return sum(
                _remove_if_old(file, older_than_s)
                for pattern in ("*/*/*#*", f"{_PROBES}/*")
                for file in self._folder.glob(pattern)
            )

    @contextmanager
    def _failures(self, action: str) -> Iterator[None]:
        """Turn a failure of the store into ours. Its own text stays in the cause: it can hold signed addresses."""
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
    """Raises ConfigurationError, or OSError where a folder cannot be made."""
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        raise ConfigurationError(f"artifacts_url must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
    try:
        if scheme == "file":
            # automatic_cleanup: a job's folders go with its last file.
            return LocalStore.from_url(url, mkdir=True, automatic_cleanup=True)
        return from_url(url, retry_config={"retry_timeout": timedelta(seconds=_RETRY_S)})
    except (BaseError, ValueError) as error:
        # The URL itself stays out of the message: some people put credentials into it.
        raise ConfigurationError(
            f"artifacts_url ({scheme}://) cannot be used ({type(error).__name__}): check its spelling, that the folder may "
            f"be written, and the provider's variables in the environment"
        ) from error


def _folder(url: str) -> Path | None:
    """The folder that a file:// address names."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an artifact key: {key!r}")


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
        is_ours = file.parent.name == _PROBES or _LEFTOVER.fullmatch(file.name)
        if is_ours and time.time() - file.stat().st_mtime > older_than_s:
            file.unlink()
            return True
    return False
