"""The cache of fetched checkpoints. Each commit of a repository or bucket has one folder, which all workers of a node share."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from functools import partial as bound
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from serve_app import errors
from serve_app.weights import manifest
from serve_app.weights.progress import Progress, Report, shown_size

MAX_FAILURES: Final = 6
"""How many connections in a row may fail without new bytes. With the pauses between them, this takes about a minute."""

_READ_ONLY: Final = 0o444
_WRITABLE: Final = 0o644


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: its size in bytes, and its SHA-256 (hex), None if the remote side does not list it."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """One commit of a checkpoint, and how to read its files. Usually it is on another machine."""

    title: str
    """Its name in messages."""
    commit: str
    """Names the folder in the cache. The files of a commit never change."""
    list_files: Callable[[], Mapping[str, RemoteFile]]
    """Returns the files by name. Called once at most, and only if files are to be fetched, so it may read headers of weights.

    Raises LoadError.
    """
    read: Callable[[str, int], Iterator[bytes]]
    """Takes a file's name and a start byte, and yields the rest of the file.

    Raises Interrupted, or a LoadError if another attempt cannot succeed.
    """
    verb: str = "downloading"
    """The verb in progress messages."""
    check: Callable[[Path], None] | None = None
    """Called with the folder when all files are in it, before it counts as complete. Raises LoadError if they are wrong."""

    @cached_property
    def files(self) -> Mapping[str, RemoteFile]:
        """The files by name. Raises LoadError, as `list_files` does."""
        return self.list_files()


class Interrupted(Exception):
    """A download was interrupted, and another connection may continue it. The message is the server's answer, if there was one."""


@dataclass(frozen=True)
class Plan:
    """The folder for a checkpoint, and the remote to fetch its missing files from, None if nothing is to be fetched."""

    folder: Path
    remote: Remote | None
    ref: Path
    """The file that stores the commit of the revision at the last fetch."""

    @property
    def missing_bytes(self) -> int:
        """How many bytes remain to be fetched. Raises LoadError, as the remote's `list_files` does."""
        if self.remote is None or manifest.is_complete(self.folder):
            return 0
        return _missing_bytes(self.folder, self.remote)


def plan(home: Path, revision: str, commit: str | None, query: Callable[[], Remote], conversion: str = "") -> Plan:
    """Returns the plan for a revision, whose folder below `home` is named after a commit.

    If `commit` is given and its folder is complete, the network is not used. Otherwise `query` returns the remote checkpoint.
    If the hub does not answer or refuses the token, the commit that was last fetched for the revision is used. `conversion` is
    what the name of the folder ends in if the checkpoint had to be converted (see `convert.Choice`).

    Raises:
        LoadError: `query` failed and no complete checkpoint of the revision is in the cache.
    """
    for name in [commit, commit + conversion] if commit else []:
        if manifest.is_complete(home / name):
            return Plan(home / name, None, _ref(home, revision))
    try:
        remote = query()
    except (errors.HubUnreachable, errors.HubTokenRefused):
        kept = [home / ref.read_text() for end in ("", conversion) if (ref := _ref(home, revision + end)).exists()]
        complete = [folder for folder in kept if manifest.is_complete(folder)]
        if not complete:
            raise
        return Plan(complete[0], None, _ref(home, revision))
    converted = bool(conversion) and remote.commit.endswith(conversion)
    return Plan(home / remote.commit, remote, _ref(home, revision + conversion if converted else revision))


def _ref(home: Path, revision: str) -> Path:
    """The file with the name of the folder that was last fetched for a revision."""
    return home / "refs" / quote(revision, safe="")


def fetch(planned: Plan, report: Report) -> Path:
    """Fetches the missing files and returns the folder.

    Raises:
        HubUnreachable, DiskFull, CorruptFile: see `errors`.
        LoadError: another error of the remote's `read`.
    """
    if planned.remote is None:
        return planned.folder
    if not manifest.is_complete(planned.folder):
        _fill(planned.folder, planned.remote, report)
    if not planned.ref.exists() or planned.ref.read_text() != planned.remote.commit:
        manifest.write_whole(planned.ref, planned.remote.commit)
    return planned.folder


def offline(name: str, title: str) -> errors.HubUnreachable:
    """Returns the error for a checkpoint that is not in the cache while offline mode is on. `title` names it, `name` the model."""
    return errors.HubUnreachable(
        f"{title} is not in the cache, and offline mode (HF_HUB_OFFLINE) is on. Run 'sophia weights pull {name}' on a "
        "machine with network access, or copy the cache from a node that has the checkpoint."
    )


def _fill(folder: Path, remote: Remote, report: Report) -> None:
    """Fetches the missing files. A partial file is continued, because the files of a commit never change."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, report):
        if manifest.is_complete(folder):  # another process fetched it while this one waited for the lock
            return
        check_space(folder, remote)
        there = sum(_bytes_there(folder / name, file.size) for name, file in remote.files.items())
        total = sum(file.size for file in remote.files.values())
        progress = Progress(report, "download", remote.verb, there, total)
        with _failures(remote, progress), ThreadPoolExecutor(4) as pool:
            hashes = dict(
                zip(remote.files, pool.map(bound(_fetch, folder, remote, progress), remote.files), strict=True)
            )
            if remote.check:
                remote.check(folder)
            manifest.write(folder, remote.title, remote.commit, hashes)


@contextlib.contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """Holds the folder's lock inside the block, so that one process at a time fills it; the others wait and report it.

    The kernel releases the lock of a process that dies.
    """
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        while not _try_lock(lock):
            report("download", None, "another worker on this node is fetching the checkpoint")
            time.sleep(0.5)
        yield


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_space(folder: Path, remote: Remote) -> None:
    """Raises DiskFull if the missing files do not fit on the disk of `folder`, which must exist."""
    needed = _missing_bytes(folder, remote)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise errors.DiskFull(
            f"{remote.title} needs {shown_size(needed)} more in {folder}, but only {shown_size(free)} are free. Free "
            "disk space, or set another data_dir."
        )


def _missing_bytes(folder: Path, remote: Remote) -> int:
    return sum(file.size - _bytes_there(folder / name, file.size) for name, file in remote.files.items())


def _bytes_there(target: Path, size: int) -> int:
    if manifest.has(target, size):
        return size
    partial = _partial(target)
    return partial.stat().st_size if partial.exists() else 0


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


@contextlib.contextmanager
def _failures(remote: Remote, progress: Progress) -> Iterator[None]:
    """Turns an interruption or a full disk inside the block into HubUnreachable or DiskFull."""
    kept = "are kept, and the next start continues from there"
    try:
        yield
    except Interrupted as error:
        raise errors.HubUnreachable(
            f"The download of {remote.title} was interrupted ({error or type(error.__cause__).__name__}). "
            f"{shown_size(progress.done)} of {shown_size(progress.total)} {kept}."
        ) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise errors.DiskFull(
            f"The disk was full after {shown_size(progress.done)} of {shown_size(progress.total)} of {remote.title}, which "
            f"{kept}. Free disk space."
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed because the disk is full. safetensors reports this in its message only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _fetch(folder: Path, remote: Remote, progress: Progress, name: str) -> str:
    """Fetches one file, checks it, makes it read-only and returns its SHA-256 (hex). A wrong file is fetched once more.

    Raises:
        CorruptFile: the file was wrong twice.
    """
    file = remote.files[name]
    target = folder / name
    partial = _partial(folder / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if manifest.has(target, file.size):  # not in a manifest yet, so it is checked like a new file
        target.chmod(_WRITABLE)
        target.replace(partial)
    for _ in range(2):
        found = _complete(remote, name, partial, progress)
        size = partial.stat().st_size
        if size == file.size and file.sha256 in (None, found):
            partial.chmod(_READ_ONLY)
            partial.replace(target)
            return found
        partial.unlink()
        progress.add(-size)
    raise errors.CorruptFile(
        f"{name} of {remote.title} was fetched twice and is wrong: it has {size} bytes and sha256 {found}, expected {file.size} "
        f"bytes and sha256 {file.sha256}. A proxy may have changed it. The file was deleted."
    )


def _complete(remote: Remote, name: str, partial: Path, progress: Progress) -> str:
    """Fetches the rest of a partial file and returns its SHA-256 (hex).

    Reconnects after an interruption.

    Raises:
        Interrupted: more than MAX_FAILURES connections in a row brought no new bytes.
    """
    failures = 0
    digest = manifest.digest(partial)
    with partial.open("ab") as out:
        while (before := out.tell()) < remote.files[name].size:
            try:
                for piece in remote.read(name, before):
                    out.write(piece)
                    digest.update(piece)
                    progress.add(len(piece))
            except Interrupted:
                if failures == MAX_FAILURES:
                    raise
            else:
                if out.tell() == before:  # the source has no more bytes; the caller checks the size
                    break
            failures = 0 if out.tell() > before else failures + 1
            if out.tell() < remote.files[name].size:
                time.sleep(0.5 * 2**failures)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()
