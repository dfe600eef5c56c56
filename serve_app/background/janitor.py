"""Removes audio and jobs whose retention is over, and corrects files and rows that do not match.

The janitor works page by page, and may be killed between any two steps. It removes files before it updates the row that names them,
so the next round finds whatever was left unfinished.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from serve_app.artifacts import ArtifactStore, StoredFile
from serve_app.background import custody
from serve_app.background.custody import PAGE, Census, GoOn, is_orphan, job_of, look_up
from serve_app.config import RetentionArgs
from serve_app.errors import ConfigurationError, NotFound
from serve_app.jobs import new_id
from serve_app.plurals import counted
from serve_app.store import Store
from serve_app.store.retention import Holding
from serve_app.supervision import PeriodicThread

logger = logging.getLogger("ray.serve.sophia")

EXPIRE_EVERY_S: Final = 300.0
AUDIT_EVERY_S: Final = 86_400.0
"""Rarer than expiry, since an audit lists every file of the audio store."""

HELD_BACK_EVERY_S: Final = 3600.0
"""Seconds between two rounds while more has expired than one round may remove, so that an operator can notice."""

REFUSED_EVERY_S: Final = 3600.0
"""Seconds between two checks of a store that may belong to another database. Each check lists every file."""

_LEASE_S: Final = 120.0
"""A page takes seconds. After this time another process replaces a janitor that was killed."""

_LOOK_S: Final = 30.0
_JANITOR: Final = "janitor"
_AUDIT: Final = "audit"


_T = TypeVar("_T")


def _always() -> bool:
    return True


class Janitor:
    """A thread in every API process. A lease of the store makes one of them work at a time."""

    def __init__(self, store: Store, artifacts: ArtifactStore, retention: RetentionArgs) -> None:
        self._store = store
        self._artifacts = artifacts
        self._retention = retention
        self._id = new_id()
        self._thread = PeriodicThread(store.supervisor, "janitor", self._step, _LOOK_S, retry_s=_LOOK_S)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the current page."""
        self._thread.close()

    def _step(self) -> None:
        if self._may_continue():
            self._run_round()

    def _may_continue(self) -> bool:
        """Take or renew the lease. False when another process holds it, and when this thread must stop."""
        return not self._thread.stopping.is_set() and self._store.leases.take(_JANITOR, self._id, _LEASE_S)

    def _run_round(self) -> None:
        refusal = custody.claim(self._store, self._artifacts, self._retention.orphans_share, self._may_continue)
        if not self._may_continue():
            return
        forget_accounts(self._store, self._retention)
        if refusal:
            logger.warning("%s", refusal)
            self._store.installation.set_refusal(refusal)
            self._release_lease(REFUSED_EVERY_S)
            return
        held_back = self._tidy()
        self._release_lease(HELD_BACK_EVERY_S if held_back else EXPIRE_EVERY_S)

    def _release_lease(self, seconds: float) -> None:
        self._store.leases.release(_JANITOR, self._id, 0 if self._thread.stopping.is_set() else seconds)

    def _tidy(self) -> str:
        """Expire, and audit when that is due. Returns what `expire` returns."""
        parts = (self._store, self._artifacts, self._retention, self._may_continue)
        held_back = expire(*parts)
        # The audit's lease records when the next audit is due. A janitor that dies during an audit leaves it due.
        if self._store.leases.take(_AUDIT, self._id, 0):
            audit(*parts)
            if self._may_continue():
                self._store.leases.release(_AUDIT, self._id, AUDIT_EVERY_S)
        return held_back


def forget_accounts(store: Store, retention: RetentionArgs) -> None:
    """Delete old accounts, load attempts and workers, which have no files. Raises StoreUnavailable."""
    store.costs.forget(retention.rows_s)
    store.load_attempts.forget(retention.rows_s)
    store.workers.forget_old(retention.rows_s)


def expire(
    store: Store, artifacts: ArtifactStore, retention: RetentionArgs, go_on: GoOn, share: float | None = None
) -> str:
    """Remove jobs that ended `rows_s` ago, the audio of jobs that ended `results_s` ago, and expired inputs.

    The audio store must be this database's (`custody.claim`). At most `share` of the songs and of the ended jobs is removed
    (0 to 1, by default `expiry_share`). Returns why the rest is held back, or an empty string; `store.installation` keeps
    that text, too. Raises StoreUnavailable or ArtifactsUnavailable after a part of the work.
    """
    share = retention.expiry_share if share is None else share
    _forget_jobs(store, artifacts, retention, go_on, share)
    _remove_old_audio(store, artifacts, retention, go_on, share)
    _remove_old_inputs(store, artifacts, go_on, share)
    if not go_on():
        return ""
    held_back = _held_back(store, retention)
    store.installation.set_held_back(held_back)
    if held_back:
        logger.warning("%s", held_back)
    return held_back


def _forget_jobs(store: Store, artifacts: ArtifactStore, retention: RetentionArgs, go_on: GoOn, share: float) -> None:
    due = partial(store.retention.ended_long_ago, retention.rows_s)
    for page in _pages_of(due, store.retention.ended, share, go_on):
        artifacts.delete(key for job in page for key in job.keys)
        forgotten = store.retention.forget([job.id for job in page], retention.rows_s)
        logger.info("deleted %s that ended at least %.0f s ago", counted(forgotten, "job"), retention.rows_s)


def _remove_old_audio(
    store: Store, artifacts: ArtifactStore, retention: RetentionArgs, go_on: GoOn, share: float
) -> None:
    due = partial(store.retention.with_old_audio, retention.results_s)
    for page in _pages_of(due, store.retention.songs, share, go_on):
        artifacts.delete(key for job in page for key in job.keys)
        store.retention.mark_audio_gone([job.id for job in page])
        logger.info(
            "removed the audio of %s that ended at least %.0f s ago", counted(len(page), "job"), retention.results_s
        )


def _remove_old_inputs(store: Store, artifacts: ArtifactStore, go_on: GoOn, share: float) -> None:
    """Deletes the rows first, so that no submission can name an input whose file is gone. An audit finds the files left over."""
    for page in _pages_of(store.inputs.forget_expired, store.inputs.count, share, go_on):
        artifacts.delete(found.key for found in page)
        logger.info("deleted %s that expired", counted(len(page), "input"))


def _pages_of(
    due: Callable[[int], list[_T]], count: Callable[[], int], share: float, go_on: GoOn
) -> Iterator[list[_T]]:
    """Pages of what has expired, which the caller removes: at least one page, and at most `share` of all `count`."""
    done = 0
    at_most = PAGE
    while go_on() and (page := due(min(PAGE, at_most - done))):
        yield page
        done += len(page)
        if done == PAGE:
            at_most = max(PAGE, int(share * (done + count())))


def _held_back(store: Store, retention: RetentionArgs) -> str:
    songs, rows = count_expired(store, retention)
    if max(songs, rows) <= PAGE:  # the next round removes them, whatever the share
        return ""
    return (
        f"The retention of {counted(songs, 'song')} and {counted(rows, 'job')} is over, but they are kept for now: "
        f"the janitor removes at most {retention.expiry_share:.0%} of them all at a time, once an hour "
        "(retention.expiry_share). If you want to keep them, correct retention.results_s, retention.rows_s or the "
        "database's clock. 'sophia artifacts expire --confirm' removes them now."
    )


def count_expired(store: Store, retention: RetentionArgs) -> tuple[int, int]:
    """The numbers of songs and of jobs whose retention is over and that are still there. Raises StoreUnavailable."""
    return store.retention.songs(retention.results_s), store.retention.ended(retention.rows_s)


def expire_confirmed(store: Store, artifacts: ArtifactStore, retention: RetentionArgs) -> None:
    """Remove all songs and jobs whose retention is over, however many there are. An operator has confirmed that.

    Raises ConfigurationError when the audio store is not this database's, StoreUnavailable or ArtifactsUnavailable.
    """
    if refusal := custody.claim(store, artifacts, retention.orphans_share, _always):
        raise ConfigurationError(refusal)
    expire(store, artifacts, retention, _always, share=1)


def audit(store: Store, artifacts: ArtifactStore, retention: RetentionArgs, go_on: GoOn) -> None:
    """Remove files that no job or published attempt owns, and mark jobs whose files are missing.

    The audio store must be this database's (`custody.claim`). When more files than `orphans_share` allows belong to no job, none
    of them is removed, and `store.installation` keeps the reason. Raises StoreUnavailable or ArtifactsUnavailable after a part of
    the work.
    """
    counted = custody.census(store, artifacts, time.time() - retention.orphans_s, go_on)
    if counted is None:
        return
    at_most = _removable(store, retention, counted)
    sweep_files(store, artifacts, retention.orphans_s, go_on, at_most)
    for jobs in _pages_of_audio(store, go_on):
        _mark_missing(store, artifacts, jobs)
    artifacts.sweep_leftovers(retention.orphans_s)


def _removable(store: Store, retention: RetentionArgs, counted: Census) -> int:
    """How many orphans the audit may remove. Records the refusal, or that there is none, for /v1/health."""
    refusal = custody.too_many(counted, retention)
    store.installation.set_refusal(refusal)
    if refusal:
        logger.warning("%s", refusal)
        return 0
    return custody.most_orphans(counted.files, retention.orphans_share)


def count_files(store: Store, artifacts: ArtifactStore, retention: RetentionArgs) -> Census:
    """Count the files as an audit does. Raises StoreUnavailable or ArtifactsUnavailable."""
    counted = custody.census(store, artifacts, time.time() - retention.orphans_s, _always)
    return counted or Census(0, 0, 0, 0)  # a count that nothing ends is never None


def sweep_confirmed(store: Store, artifacts: ArtifactStore, retention: RetentionArgs) -> int:
    """Remove every file that belongs to no job, and return their number. An operator has confirmed that.

    Raises ConfigurationError when the audio store is not this database's, StoreUnavailable or ArtifactsUnavailable.
    """
    if refusal := custody.claim(store, artifacts, retention.orphans_share, _always):
        raise ConfigurationError(refusal)
    removed = sweep_files(store, artifacts, retention.orphans_s)
    store.installation.set_refusal("")
    return removed


def sweep_files(
    store: Store, artifacts: ArtifactStore, grace_s: float, go_on: GoOn = _always, at_most: int | None = None
) -> int:
    """Remove files older than `grace_s` seconds that belong to no job or to an unpublished attempt. Returns their number.

    Removes at most `at_most` files, or all when that is None. Jobs whose missing audio is back are unmarked.
    """
    files = artifacts.list()
    removed = 0
    while go_on() and (page := list(islice(files, PAGE))):
        left = None if at_most is None else at_most - removed
        removed += _remove_orphans(store, artifacts, page, time.time() - grace_s, left)
    return removed


def _remove_orphans(
    store: Store, artifacts: ArtifactStore, files: Sequence[StoredFile], before: float, at_most: int | None
) -> int:
    """Reads the rows after the files were listed: an attempt that neither runs nor is published by then never will be."""
    known = look_up(store, files)
    orphans = [file.key for file in files if is_orphan(file, known, before)][:at_most]
    artifacts.delete(orphans)
    if orphans:
        logger.warning("removed %s without a job or input, such as %s", counted(len(orphans), "file"), orphans[0])
    found = {
        job.id for file in files if (job := known.jobs.get(job_of(file.key))) and job.gone and file.key in job.songs
    }
    if found:  # for example, the disk was not mounted during the last audit
        store.retention.mark_audio_gone(sorted(found), gone=False)
        logger.warning("found the audio of %s again", counted(len(found), "job"))
    return len(orphans)


def _pages_of_audio(store: Store, go_on: GoOn) -> Iterator[list[Holding]]:
    after = ""
    while go_on() and (page := store.retention.with_audio(after, PAGE)):
        yield page
        after = page[-1].id


def _mark_missing(store: Store, artifacts: ArtifactStore, jobs: Sequence[Holding]) -> None:
    """Mark the jobs that have lost every file. A job that has lost some keeps the others."""
    missing = [job.id for job in jobs if not any(_exists(artifacts, key) for key in job.songs)]
    if missing:
        store.retention.mark_audio_gone(missing)
        logger.warning(
            "the audio of %s is missing from the audio store, such as that of job %s",
            counted(len(missing), "job"),
            missing[0],
        )


def _exists(artifacts: ArtifactStore, key: str) -> bool:
    try:
        artifacts.size(key)
    except NotFound:
        return False
    return True
