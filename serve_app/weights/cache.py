"""The cache of fetched checkpoints: one folder a state of a repository or bucket, filled once for all workers of a node."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from serve_app import errors
from serve_app.weights import manifest
from serve_app.weights.progress import Progress, Report, shown_size

PATIENCE: Final = 6
"""Connections in a row that may bring nothing; with the pauses between them, about a minute without network."""

_READ_ONLY: Final = 0o444
_WRITABLE: Final = 0o644


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: its size in bytes, and its SHA-256 (hex) where the other side knows it."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """A checkpoint on another machine, as it is now."""

    title: str
    """What messages call it."""
    commit: str
    """Names this state of it, as a folder's name: the same name, the same bytes."""
    files: Mapping[str, RemoteFile]
    read: Callable[[str, int], Iterator[bytes]]
    """(file, first byte) -> the rest of the file, piece by piece. Raises Interrupted, or a LoadError that no further try cures."""
    verb: str = "downloading"
    """What progress calls the reading."""


class Interrupted(Exception):
    """The other side stopped sending; another connection may bring more. The message, if any, says what it answered."""


@dataclass(frozen=True)
class Plan:
    """The folder where a checkpoint is or will be, and from where it is to be filled, if at all."""

    folder: Path
    remote: Remote | None
    ref: Path
    """Holds the commit that the revision had when it was fetched last."""

    @property
    def missing_bytes(self) -> int:
        """What is still to be fetched."""
        return _missing_bytes(self.folder, self.remote) if self.remote else 0


def plan(home: Path, revision: str, commit: str | None, ask: Callable[[], Remote]) -> Plan:
    """The folder below `home` for a revision: that of `commit` if it is known, else of the commit that `ask` returns.

    When `ask` gets no answer, the commit that was fetched last for the revision is used.

    Raises:
        LoadError: what `ask` raises.
    """
    ref = home / "refs" / quote(revision, safe="")
    if commit and manifest.is_complete(home / commit):
        return Plan(home / commit, None, ref)
    try:
        remote = ask()
    except (errors.HubUnreachable, errors.HubTokenRefused):
        kept = home / ref.read_text() if ref.exists() else None
        if kept is None or not manifest.is_complete(kept):
            raise
        return Plan(kept, None, ref)
    return Plan(home / remote.commit, remote, ref)


def fetch(planned: Plan, report: Report) -> Path:
    """The folder, filled. Raises HubUnreachable, DiskFull, CorruptFile, and what the remote's `read` raises."""
    if planned.remote is None:
        return planned.folder
    if not manifest.is_complete(planned.folder):
        _fill(planned.folder, planned.remote, report)
    if not planned.ref.exists() or planned.ref.read_text() != planned.remote.commit:
        manifest.write_whole(planned.ref, planned.remote.commit)
    return planned.folder


def offline(name: str, title: str) -> errors.HubUnreachable:
    """Why nothing is fetched for the model `name` from `title`."""
    return errors.HubUnreachable(
        f"{title} is not in the cache, and offline mode (HF_HUB_OFFLINE) is on. Run 'sophia weights pull {name}' where there "
        "is a network, or copy the cache from a node that has it."
    )


def _fill(folder: Path, remote: Remote, report: Report) -> None:
    """Fetches what is missing. Files go on where an earlier try stopped: a commit's files never change."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, report):
        if manifest.is_complete(folder):  # by the process that had the lock before
            return
        check_space(folder, remote)
        there = sum(_bytes_there(folder / name, file.size) for name, file in remote.files.items())
        total = sum(file.size for file in remote.files.values())
        progress = Progress(report, "download", remote.verb, there, total)
        with _failures(remote, progress), ThreadPoolExecutor(4) as pool:
            hashes = pool.map(bound(_fetch, folder, remote, progress), remote.files)
            manifest.write(folder, remote.title, remote.commit, dict(zip(remote.files, hashes, strict=True)))


@contextlib.contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """One process at a time fills a folder; the others wait, and say so. A process that dies lets go."""
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
    """Raises DiskFull where the disk of `folder`, which exists, has less room than what is missing takes."""
    needed = _missing_bytes(folder, remote)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise errors.DiskFull(
            f"{remote.title} needs {shown_size(needed)} more in {folder}, where {shown_size(free)} are free. Make room or "
            "set data_dir."
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
    kept = "are kept; the next start goes on from there"
    try:
        yield
    except Interrupted as error:
        raise errors.HubUnreachable(
            f"{remote.title}: nothing comes any more ({error or type(error.__cause__).__name__}). {shown_size(progress.done)} of "
            f"{shown_size(progress.total)} {kept}."
        ) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise errors.DiskFull(
            f"The disk was full after {shown_size(progress.done)} of {shown_size(progress.total)} of {remote.title}, which "
            f"{kept}: make room."
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Whether a write found no room; safetensors says so in words only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _fetch(folder: Path, remote: Remote, progress: Progress, name: str) -> str:
    """One file, whole, checked and read-only; its SHA-256. What came wrong is fetched once more, and then refused."""
    file = remote.files[name]
    target = folder / name
    partial = _partial(folder / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if manifest.has(target, file.size):  # no manifest vouches for it yet, so it passes the same check
        target.chmod(_WRITABLE)
        target.replace(partial)
    for _ in range(2):
        found = _complete(remote, name, partial, progress)
        came = partial.stat().st_size
        if came == file.size and file.sha256 in (None, found):
            partial.chmod(_READ_ONLY)
            partial.replace(target)
            return found
        partial.unlink()
        progress.add(-came)
    raise errors.CorruptFile(
        f"{name} of {remote.title} came twice with other content than announced: {came} bytes of {file.size}, sha256 {found}, "
        f"expected {file.sha256}. Something between here and there changes files; nothing of it was kept."
    )


def _complete(remote: Remote, name: str, partial: Path, progress: Progress) -> str:
    """Adds what is missing, through any number of broken connections as long as each brings something; the SHA-256."""
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
                if failures == PATIENCE:
                    raise
            else:
                if out.tell() == before:  # the source has no more bytes; the size tells the caller
                    break
            failures = 0 if out.tell() > before else failures + 1
            if out.tell() < remote.files[name].size:
                time.sleep(0.5 * 2**failures)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()
