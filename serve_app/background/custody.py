"""Whose files lie in the audio store: nothing is removed from a store that is not proven to be this database's own.

A database that was mistaken for another (a forgotten `SOPHIA_DATABASE_URL`, say) knows none of the songs that it finds, and
would take all of them for rubbish. So the store bears the mark of its database, and even in a marked store the files that
no job knows go only while they are few.
"""

import logging
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from serve_app.artifacts import Artifacts, StoredFile
from serve_app.config import RetentionArgs
from serve_app.jobs import Status, artifact_folder
from serve_app.store import Store
from serve_app.store.retention import Holding

logger = logging.getLogger("ray.serve.sophia")

PAGE: Final = 100
FEW: Final = 10
"""So many files of no job may always go: the smallest store has some after a crash."""

_CHECK: Final = "Check database_url and artifacts_url."
_ADOPT: Final = "If this is the database of the songs that lie there, run 'sophia artifacts adopt'."

GoOn = Callable[[], bool]
"""Asked before each page; False ends the work there."""


class Census(NamedTuple):
    """How many files the audio store holds, how many of them no job knows, and how many of those are old enough to go."""

    files: int
    unknown: int
    orphans: int


def job_of(key: str) -> str:
    """The id of the job whose file it is."""
    return key.partition("/")[0]


def belongs(key: str, jobs: dict[str, Holding]) -> bool:
    """Whether a job has published the file, or is being played by the worker that wrote it."""
    job = jobs.get(job_of(key))
    if job is None:
        return False
    if key in job.keys:
        return True
    # A worker of the first version names the folder by the attempt alone.
    being_written = (artifact_folder(job.attempt, job.worker), str(job.attempt))
    return job.status is Status.RUNNING and key.split("/")[1] in being_written


def is_orphan(file: StoredFile, jobs: dict[str, Holding], before: float) -> bool:
    """Whether no job knows the file, and it was written before `before`, in seconds since the epoch."""
    return file.written_at < before and not belongs(file.key, jobs)


def census(store: Store, artifacts: Artifacts, before: float, go_on: GoOn) -> Census | None:
    """Count the files, page by page; None when `go_on` ended it. Orphans are files that were written before `before`.

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


def claim(store: Store, artifacts: Artifacts, share: float, go_on: GoOn) -> str:
    """Make sure that the audio store is this database's own: why it is not, or an empty string.

    A store without a mark is marked when it is empty, or when this database knows what lies there: at least one file, and
    all but `share` of them (0 to 1). Neither holds where most of the database's songs are missing: that is a disk that is not
    mounted, whose songs all would be told as gone. Raises StoreUnavailable or ArtifactsUnavailable.
    """
    ours = store.installation.id()
    mark = artifacts.mark()
    if mark is None:
        counted = census(store, artifacts, 0, go_on)
        if counted is None:
            return "The janitor was ended before it had counted the files."
        songs = store.retention.songs()
        held = counted.files - counted.unknown
        if songs - held > max(FEW, share * songs):
            return (
                f"The janitor does nothing: the audio store bears no mark, and this database knows {songs} songs, of which {held} "
                f"lie there. Check that its disk is mounted, and database_url and artifacts_url. If the others are gone for good, "
                f"run 'sophia artifacts adopt'."
            )
        if counted.files and (counted.unknown == counted.files or counted.unknown > share * counted.files):
            return (
                f"The janitor deletes nothing: the audio store bears no mark, and {counted.unknown} of its {counted.files} "
                f"files belong to no job of this database. {_CHECK} {_ADOPT}"
            )
        artifacts.set_mark(ours)
        mark = artifacts.mark()  # another database may have been faster
        logger.info("marked the audio store, with %s files in it; it belongs to %s", counted.files, mark)
    if mark != ours:
        return f"The janitor deletes nothing: the audio store bears the mark of another database. {_CHECK} {_ADOPT}"
    return ""


def adopt(store: Store, artifacts: Artifacts) -> None:
    """Mark the audio store as this database's own, whatever lies there: an operator's word."""
    artifacts.set_mark(store.installation.id(), replace=True)
    store.installation.set_refusal("")


def most_orphans(files: int, share: float) -> int:
    """How many files of no job may go without an operator's word, out of so many."""
    return max(FEW, int(files * share))


def too_many(counted: Census, retention: RetentionArgs) -> str:
    """Why so many orphans stay where they are, or an empty string when they may go."""
    at_most = most_orphans(counted.files, retention.orphans_share)
    if counted.orphans <= at_most:
        return ""
    return (
        f"The janitor removed none of the {counted.orphans} files that belong to no job: of {counted.files} files it removes "
        f"at most {at_most} at a time (retention.orphans_share). Check that this is the right database and no old backup of "
        f"it; 'sophia artifacts sweep --confirm' removes them."
    )
