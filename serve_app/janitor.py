"""Keeping no more than is asked for: audio and jobs go when their time is over, and files and rows that do not match are put right.

Everything goes page by page and may be killed between any two steps: files are removed before the row that names them says so,
and whatever was left half done is found again the next time.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from serve_app.artifacts import Artifacts, StoredFile
from serve_app.config import RetentionArgs
from serve_app.errors import ArtifactsUnavailable, NotFound, StoreUnavailable
from serve_app.jobs import Status, artifact_folder, new_id
from serve_app.store import Store
from serve_app.store.retention import Holding

logger = logging.getLogger("ray.serve.sophia")

EXPIRE_EVERY_S: Final = 300.0
AUDIT_EVERY_S: Final = 86_400.0
"""An audit asks the artifact store for every file; what is merely old needs no audit."""

PAGE: Final = 100
_LEASE_S: Final = 120.0  # a page takes seconds; a janitor that was killed is replaced after this time
_LOOK_S: Final = 30.0
_JANITOR: Final = "janitor"
_AUDIT: Final = "audit"

GoOn = Callable[[], bool]
"""Asked before each page; False ends the work there."""


def _always() -> bool:
    return True


class Janitor:
    """A thread in every API process, of which one at a time has the work to do."""

    def __init__(self, store: Store, artifacts: Artifacts, retention: RetentionArgs):
        self._store, self._artifacts, self._retention = store, artifacts, retention
        self._id = new_id()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the page under way."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                if self._go_on():
                    self._work()
            except (StoreUnavailable, ArtifactsUnavailable) as error:
                logger.warning("the janitor waits: %s", error)
            self._ended.wait(_LOOK_S)

    def _go_on(self) -> bool:
        return not self._ended.is_set() and self._store.leases.take(_JANITOR, self._id, _LEASE_S)

    def _work(self) -> None:
        parts = (self._store, self._artifacts, self._retention, self._go_on)
        expire(*parts)
        # The audit's lease only remembers when it is due again: a janitor that dies in an audit leaves it due.
        if self._store.leases.take(_AUDIT, self._id, 0):
            audit(*parts)
            if self._go_on():
                self._store.leases.rest(_AUDIT, self._id, AUDIT_EVERY_S)
        self._store.leases.rest(_JANITOR, self._id, 0 if self._ended.is_set() else EXPIRE_EVERY_S)


def expire(store: Store, artifacts: Artifacts, retention: RetentionArgs, go_on: GoOn) -> None:
    """Remove the audio of jobs that ended `results_s` ago, and altogether those that ended `rows_s` ago; and old accounts,
    loads and workers.

    Raises StoreUnavailable or ArtifactsUnavailable; what is done by then stays done.
    """
    while go_on() and (page := store.retention.ended_long_ago(retention.rows_s, PAGE)):
        artifacts.delete(key for job in page for key in job.keys)
        forgotten = store.retention.forget([job.id for job in page], retention.rows_s)
        logger.info("forgot %s jobs that ended %.0f s ago or earlier", forgotten, retention.rows_s)
    while go_on() and (page := store.retention.with_old_audio(retention.results_s, PAGE)):
        artifacts.delete(key for job in page for key in job.keys)
        store.retention.mark_audio_gone([job.id for job in page])
        logger.info("removed the audio of %s jobs that ended %.0f s ago or earlier", len(page), retention.results_s)
    store.costs.forget(retention.rows_s)
    store.loads.forget(retention.rows_s)
    store.workers.forget_old(retention.rows_s)


def audit(store: Store, artifacts: Artifacts, retention: RetentionArgs, go_on: GoOn) -> None:
    """Compare files and rows: files of no job or of an attempt that was not published go; rows whose files are gone say so.

    Raises StoreUnavailable or ArtifactsUnavailable; what is done by then stays done.
    """
    sweep_files(store, artifacts, retention.orphans_s, go_on)
    for jobs in _pages_of_audio(store, go_on):
        _mark_missing(store, artifacts, jobs)
    artifacts.sweep_leftovers(retention.orphans_s)


def sweep_files(store: Store, artifacts: Artifacts, grace_s: float, go_on: GoOn = _always) -> None:
    """Remove the files older than `grace_s` seconds that belong to no job, or to an attempt that was not published."""
    files = artifacts.list()
    while go_on() and (page := list(islice(files, PAGE))):
        _remove_orphans(store, artifacts, page, time.time() - grace_s)


def _remove_orphans(store: Store, artifacts: Artifacts, files: Sequence[StoredFile], before: float) -> None:
    """The rows are read after the files were listed. So a file whose attempt is not running and not published never will be."""
    jobs = store.retention.holdings({_job_of(file.key) for file in files})
    orphans = [file.key for file in files if file.written_at < before and not _belongs(file.key, jobs)]
    artifacts.delete(orphans)
    if orphans:
        logger.warning("removed %s files that belong to no job, such as %s", len(orphans), orphans[0])
    back = {job.id for file in files if (job := jobs.get(_job_of(file.key))) and job.gone and file.key in job.keys}
    if back:  # a disk that was not mounted at the last audit, say
        store.retention.mark_audio_gone(sorted(back), gone=False)
        logger.warning("found the audio of %s jobs again", len(back))


def _job_of(key: str) -> str:
    return key.partition("/")[0]


def _belongs(key: str, jobs: dict[str, Holding]) -> bool:
    job = jobs.get(_job_of(key))
    if job is None:
        return False
    if key in job.keys:
        return True
    # A worker of the first version names the folder by the attempt alone.
    being_written = (artifact_folder(job.attempt, job.worker), str(job.attempt))
    return job.status is Status.RUNNING and key.split("/")[1] in being_written


def _pages_of_audio(store: Store, go_on: GoOn) -> Iterator[list[Holding]]:
    after = ""
    while go_on() and (page := store.retention.with_audio(after, PAGE)):
        yield page
        after = page[-1].id


def _mark_missing(store: Store, artifacts: Artifacts, jobs: Sequence[Holding]) -> None:
    """A job that lost some of its files only keeps the rest."""
    missing = [job.id for job in jobs if not any(_exists(artifacts, key) for key in job.keys)]
    if missing:
        store.retention.mark_audio_gone(missing)
        logger.warning(
            "the audio of %s jobs is missing from the artifact store, such as job %s", len(missing), missing[0]
        )


def _exists(artifacts: Artifacts, key: str) -> bool:
    try:
        artifacts.size(key)
    except NotFound:
        return False
    return True
