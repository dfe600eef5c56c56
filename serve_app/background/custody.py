"""Proves that the audio store belongs to this database before the janitor removes any file.

After a configuration error (say, a forgotten `SOPHIA_DATABASE_URL`) the database knows none of the songs in the store, and the
janitor would remove them all. The store therefore carries the mark of its database. Even in a marked store, files that belong to
no job are removed only while they are few.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from serve_app.artifacts import ArtifactStore, StoredFile
from serve_app.config import RetentionArgs
from serve_app.jobs import INPUTS_FOLDER, Status, artifact_folder
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
    """Counts of the files in the audio store."""

    files: int
    jobs: int
    """Jobs whose first song is there."""
    unknown: int
    """Files that belong to no job and no input."""
    orphans: int
    """Unknown files that are old enough to remove."""


class Known(NamedTuple):
    """What the database knows of the jobs and uploads that some files name."""

    jobs: dict[str, Holding]
    uploads: set[str]
    """The uploads that have an input."""


def look_up(store: Store, files: Sequence[StoredFile]) -> Known:
    """Read the jobs and uploads that the files' keys name."""
    uploads = {upload_of(file.key) for file in files if is_input(file.key)}
    jobs = {job_of(file.key) for file in files if not is_input(file.key)}
    return Known(store.retention.holdings(jobs), store.inputs.uploads(uploads))


def is_input(key: str) -> bool:
    """Whether the file is an uploaded recording."""
    return key.startswith(f"{INPUTS_FOLDER}/")


def upload_of(key: str) -> str:
    """The id of the upload that an input's file names."""
    return key.split("/")[1]


def job_of(key: str) -> str:
    """The id of the job that the file's key names."""
    return key.partition("/")[0]


def belongs(key: str, known: Known) -> bool:
    """Whether the file is that of an input, or a job has published it or is running on the worker that wrote it."""
    if is_input(key):
        return upload_of(key) in known.uploads
    job = known.jobs.get(job_of(key))
    if job is None:
        return False
    if key in job.keys:
        return True
    # The first version named the folder by the attempt alone.
    being_written = (artifact_folder(job.attempt, job.worker), str(job.attempt))
    return job.status is Status.RUNNING and key.split("/")[1] in being_written


def is_orphan(file: StoredFile, known: Known, before: float) -> bool:
    """Whether the file belongs to no job and no input and was written before `before` (seconds since the epoch)."""
    return file.written_at < before and not belongs(file.key, known)


def census(store: Store, artifacts: ArtifactStore, before: float, go_on: GoOn) -> Census | None:
    """Count the files page by page. None when `go_on` ended the count. Orphans must be written before `before`.

    Raises StoreUnavailable or ArtifactsUnavailable.
    """
    files = artifacts.list()
    total = 0
    jobs = 0
    unknown = 0
    orphans = 0
    while page := list(islice(files, PAGE)):
        if not go_on():
            return None
        known = look_up(store, page)
        total += len(page)
        firsts = {job.songs[0] for job in known.jobs.values() if job.songs}
        jobs += sum(file.key in firsts for file in page)
        unknown += sum(not belongs(file.key, known) for file in page)
        orphans += sum(is_orphan(file, known, before) for file in page)
    return Census(total, jobs, unknown, orphans)


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
    if songs - found.jobs > max(FEW, share * songs):
        return (
            f"The janitor does nothing: the audio store has no mark, and of the {songs} jobs with songs in this database, it "
            f"holds the songs of only {found.jobs}. Check that its disk is mounted, and check database_url and artifacts_url. If "
            "the other songs are lost, run 'sophia artifacts adopt'."
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
