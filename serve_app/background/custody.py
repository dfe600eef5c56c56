"""Proves that the audio store belongs to this database before the janitor removes any file.

After a configuration error (say, a forgotten `SOPHIA_DATABASE_URL`) the database knows none of the songs in the store, and the
janitor would remove them all. The store therefore carries the mark of its database. Even in a marked store, files that belong to
no job are removed only while they are few.
"""

import logging
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from serve_app.artifacts import ArtifactStore, StoredFile
from serve_app.config import RetentionArgs
from serve_app.jobs import Status, artifact_folder
from serve_app.plurals import counted
from serve_app.store import Store
from serve_app.store.retention import Holding

logger = logging.getLogger("ray.serve.sophia")

PAGE: Final = 100
"""Files or jobs that are handled at a time."""

FEW: Final = 10
"""This many files without a job may always be removed, since even the smallest store has some after a crash."""

_CHECK: Final = "Check database_url and artifacts_url."
_ADOPT: Final = "If the songs in the store belong to this database, run 'sophia artifacts adopt'."

GoOn = Callable[[], bool]
"""Called before each page. False ends the work."""


class Census(NamedTuple):
    """The number of files in the audio store, of those that belong to no job, and of the latter that are old enough to remove."""

    files: int
    unknown: int
    orphans: int


def job_of(key: str) -> str:
    """The id of the job that the file's key names."""
    return key.partition("/")[0]


def belongs(key: str, jobs: dict[str, Holding]) -> bool:
    """Whether a job has published the file, or is running on the worker that wrote it."""
    job = jobs.get(job_of(key))
    if job is None:
        return False
    if key in job.keys:
        return True
    # The first version named the folder by the attempt alone.
    being_written = (artifact_folder(job.attempt, job.worker), str(job.attempt))
    return job.status is Status.RUNNING and key.split("/")[1] in being_written


def is_orphan(file: StoredFile, jobs: dict[str, Holding], before: float) -> bool:
    """Whether the file belongs to no job and was written before `before` (seconds since the epoch)."""
    return file.written_at < before and not belongs(file.key, jobs)


def census(store: Store, artifacts: ArtifactStore, before: float, go_on: GoOn) -> Census | None:
    """Count the files page by page. None when `go_on` ended the count. Orphans must be written before `before`.

    Raises StoreUnavailable or ArtifactsUnavailable.
    """
    files = artifacts.list()
    total = 0
    unknown = 0
    orphans = 0
    while page := list(islice(files, PAGE)):
        if not go_on():
            return None
        jobs = store.retention.holdings({job_of(file.key) for file in page})
        total += len(page)
        unknown += sum(not belongs(file.key, jobs) for file in page)
        orphans += sum(is_orphan(file, jobs, before) for file in page)
    return Census(total, unknown, orphans)


def claim(store: Store, artifacts: ArtifactStore, share: float, go_on: GoOn) -> str:
    """Make sure that the audio store belongs to this database. Returns why it does not, or an empty string.

    A store without a mark is marked when it is empty, or when this database knows at least one file in it and all but `share` of
    them (0 to 1). It is not marked while most of the database's songs are missing: then its disk is probably not mounted, and the
    janitor would record all of those songs as gone. Raises StoreUnavailable or ArtifactsUnavailable.
    """
    ours = store.installation.id()
    mark = artifacts.mark()
    if mark is None:
        refusal = _doubt(store, artifacts, share, go_on)
        if refusal:
            return refusal
        artifacts.set_mark(ours)
        mark = artifacts.mark()  # another database may have set its mark first
        logger.info("marked the audio store; it belongs to the database %s", mark)
    if mark != ours:
        return f"The janitor deletes nothing: the audio store has the mark of another database. {_CHECK} {_ADOPT}"
    return ""


def _doubt(store: Store, artifacts: ArtifactStore, share: float, go_on: GoOn) -> str:
    """Why a store without a mark may belong to another database; empty when the files prove that it is this database's."""
    found = census(store, artifacts, 0, go_on)
    if found is None:
        return "The janitor was stopped before it had counted the files."
    songs = store.retention.songs()
    held = found.files - found.unknown
    if songs - held > max(FEW, share * songs):
        return (
            f"The janitor does nothing: the audio store has no mark, and it holds only {held} of the {songs} songs that this "
            "database knows. Check that its disk is mounted, and check database_url and artifacts_url. If the other songs are "
            "lost, run 'sophia artifacts adopt'."
        )
    if found.files and (found.unknown == found.files or found.unknown > share * found.files):
        return (
            "The janitor deletes nothing: the audio store has no mark, and it holds "
            f"{counted(found.unknown, 'file')} without a job in this database, out of {found.files}. {_CHECK} {_ADOPT}"
        )
    return ""


def adopt(store: Store, artifacts: ArtifactStore) -> None:
    """Mark the audio store as this database's, whatever it contains. An operator decides that."""
    artifacts.set_mark(store.installation.id(), replace=True)
    store.installation.set_refusal("")


def most_orphans(files: int, share: float) -> int:
    """How many files without a job may be removed without an operator's confirmation, out of `files` files."""
    return max(FEW, int(files * share))


def too_many(found: Census, retention: RetentionArgs) -> str:
    """Why the orphans are too many to be removed; empty when they may be removed."""
    at_most = most_orphans(found.files, retention.orphans_share)
    if found.orphans <= at_most:
        return ""
    return (
        f"The janitor removed none of the {found.orphans} files that belong to no job: of {found.files} files it removes "
        f"at most {at_most} at a time (retention.orphans_share). Check that this is the right database and not an old backup. "
        f"'sophia artifacts sweep --confirm' removes them."
    )
