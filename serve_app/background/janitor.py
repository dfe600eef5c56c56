"""Keeping no more than is asked for: audio and jobs go when their time is over, and files and rows that do not match are put right.

Everything goes page by page and may be killed between any two steps: files are removed before the row that names them says so,
and whatever was left half done is found again the next time.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final

from serve_app.artifacts import Artifacts, StoredFile
from serve_app.background import custody
from serve_app.background.custody import PAGE, Census, GoOn, is_orphan, job_of
from serve_app.config import RetentionArgs
from serve_app.errors import ConfigurationError, NotFound
from serve_app.jobs import new_id
from serve_app.store import Store
from serve_app.store.retention import Holding
from serve_app.supervision import PeriodicThread

logger = logging.getLogger("ray.serve.sophia")

EXPIRE_EVERY_S: Final = 300.0
AUDIT_EVERY_S: Final = 86_400.0
"""An audit asks the artifact store for every file; what is merely old needs no audit."""

HELD_BACK_EVERY_S: Final = 3600.0
"""The time between two rounds while more has expired than one round may remove, so that an operator can notice."""

REFUSED_EVERY_S: Final = 3600.0
"""To look through a store that is not proven to be ours, to see whether it is by now, asks for every file, too."""

_LEASE_S: Final = 120.0  # a page takes seconds; a janitor that was killed is replaced after this time
_LOOK_S: Final = 30.0
_JANITOR: Final = "janitor"
_AUDIT: Final = "audit"


def _always() -> bool:
    return True


class Janitor:
    """A thread in every API process, of which one at a time has the work to do."""

    def __init__(self, store: Store, artifacts: Artifacts, retention: RetentionArgs) -> None:
        self._store = store
        self._artifacts = artifacts
        self._retention = retention
        self._id = new_id()
        self._thread = PeriodicThread(store.supervisor, "janitor", self._step, _LOOK_S, retry_s=_LOOK_S)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the page under way."""
        self._thread.close()

    def _step(self) -> None:
        if self._go_on():
            self._work()

    def _go_on(self) -> bool:
        return not self._thread.stopping.is_set() and self._store.leases.take(_JANITOR, self._id, _LEASE_S)

    def _work(self) -> None:
        refusal = custody.claim(self._store, self._artifacts, self._retention.orphans_share, self._go_on)
        if not self._go_on():
            return
        forget_accounts(self._store, self._retention)
        if refusal:
            logger.warning("%s", refusal)
            self._store.installation.set_refusal(refusal)
            self._rest(REFUSED_EVERY_S)
            return
        held_back = self._tidy()
        self._rest(HELD_BACK_EVERY_S if held_back else EXPIRE_EVERY_S)

    def _rest(self, seconds: float) -> None:
        self._store.leases.release(_JANITOR, self._id, 0 if self._thread.stopping.is_set() else seconds)

    def _tidy(self) -> str:
        parts = (self._store, self._artifacts, self._retention, self._go_on)
        held_back = expire(*parts)
        # The audit's lease only remembers when it is due again: a janitor that dies in an audit leaves it due.
        if self._store.leases.take(_AUDIT, self._id, 0):
            audit(*parts)
            if self._go_on():
                self._store.leases.release(_AUDIT, self._id, AUDIT_EVERY_S)
        return held_back


def forget_accounts(store: Store, retention: RetentionArgs) -> None:
    """Forget old accounts, loads and workers, which have no files. Raises StoreUnavailable."""
    store.costs.forget(retention.rows_s)
    store.load_attempts.forget(retention.rows_s)
    store.workers.forget_old(retention.rows_s)


def expire(
    store: Store, artifacts: Artifacts, retention: RetentionArgs, go_on: GoOn, share: float | None = None
) -> str:
    """Remove the audio of jobs that ended `results_s` ago, and altogether those that ended `rows_s` ago.

    The audio store must be ours (`custody.claim`). No more than `share` goes of the songs, and of the ended jobs (0 to 1,
    `expiry_share` where it is not given). What stays for later is told in words, which `store.installation` has, too; empty when
    nothing does. Raises StoreUnavailable or ArtifactsUnavailable; what is done by then stays done.
    """
    share = retention.expiry_share if share is None else share
    rows = partial(store.retention.ended_long_ago, retention.rows_s)
    for page in _pages_of(rows, store.retention.ended, share, go_on):
        artifacts.delete(key for job in page for key in job.keys)
        forgotten = store.retention.forget([job.id for job in page], retention.rows_s)
        logger.info("forgot %s jobs that ended %.0f s ago or earlier", forgotten, retention.rows_s)
    songs = partial(store.retention.with_old_audio, retention.results_s)
    for page in _pages_of(songs, store.retention.songs, share, go_on):
        artifacts.delete(key for job in page for key in job.keys)
        store.retention.mark_audio_gone([job.id for job in page])
        logger.info("removed the audio of %s jobs that ended %.0f s ago or earlier", len(page), retention.results_s)
    if not go_on():
        return ""
    held_back = _held_back(store, retention)
    store.installation.set_held_back(held_back)
    if held_back:
        logger.warning("%s", held_back)
    return held_back


def _pages_of(
    due: Callable[[int], list[Holding]], count: Callable[[], int], share: float, go_on: GoOn
) -> Iterator[list[Holding]]:
    """Pages of expired jobs, which the caller removes: at least one page, and in all at most `share` of what there is."""
    done = 0
    at_most = PAGE
    while go_on() and (page := due(min(PAGE, at_most - done))):
        yield page
        done += len(page)
        if done == PAGE:
            at_most = max(PAGE, int(share * (done + count())))


def _held_back(store: Store, retention: RetentionArgs) -> str:
    songs, rows = count_expired(store, retention)
    if max(songs, rows) <= PAGE:  # they go in the next round, whatever the share
        return ""
    return (
        f"The time of {songs} songs and {rows} jobs is over, and they stay for now: the janitor removes at most "
        f"{retention.expiry_share:.0%} of what is there at a time, once an hour (retention.expiry_share). If they should stay, "
        f"correct retention.results_s, retention.rows_s or the database's clock.  "
        "'sophia artifacts expire --confirm' removes them now."
    )


def count_expired(store: Store, retention: RetentionArgs) -> tuple[int, int]:
    """How many songs and how many jobs are over their time and still there. Raises StoreUnavailable."""
    return store.retention.songs(retention.results_s), store.retention.ended(retention.rows_s)


def expire_confirmed(store: Store, artifacts: Artifacts, retention: RetentionArgs) -> None:
    """Remove all songs and jobs whose time is over, however many they are: an operator's word.

    Raises ConfigurationError when the audio store is not this database's own, StoreUnavailable or ArtifactsUnavailable.
    """
    if refusal := custody.claim(store, artifacts, retention.orphans_share, _always):
        raise ConfigurationError(refusal)
    expire(store, artifacts, retention, _always, share=1)


def audit(store: Store, artifacts: Artifacts, retention: RetentionArgs, go_on: GoOn) -> None:
    """Compare files and rows: files of no job or of an attempt that was not published go; rows whose files are gone say so.

    The audio store must be ours (`custody.claim`). Files of no job stay, and `store.installation` says so, while they are more
    than `orphans_share` allows. Raises StoreUnavailable or ArtifactsUnavailable; what is done by then stays done.
    """
    counted = custody.census(store, artifacts, time.time() - retention.orphans_s, go_on)
    if counted is None:
        return
    refusal = custody.too_many(counted, retention)
    store.installation.set_refusal(refusal)
    if refusal:
        logger.warning("%s", refusal)
    at_most = 0 if refusal else custody.most_orphans(counted.files, retention.orphans_share)
    sweep_files(store, artifacts, retention.orphans_s, go_on, at_most)
    for jobs in _pages_of_audio(store, go_on):
        _mark_missing(store, artifacts, jobs)
    artifacts.sweep_leftovers(retention.orphans_s)


def count_files(store: Store, artifacts: Artifacts, retention: RetentionArgs) -> Census:
    """What an audit would find. Raises StoreUnavailable or ArtifactsUnavailable."""
    counted = custody.census(store, artifacts, time.time() - retention.orphans_s, _always)
    return counted or Census(0, 0, 0)  # None comes only of a count that was ended


def sweep_confirmed(store: Store, artifacts: Artifacts, retention: RetentionArgs) -> int:
    """Remove every file that belongs to no job, however many they are: an operator's word. Says how many that were.

    Raises ConfigurationError when the audio store is not this database's own, StoreUnavailable or ArtifactsUnavailable.
    """
    if refusal := custody.claim(store, artifacts, retention.orphans_share, _always):
        raise ConfigurationError(refusal)
    removed = sweep_files(store, artifacts, retention.orphans_s)
    store.installation.set_refusal("")
    return removed


def sweep_files(
    store: Store, artifacts: Artifacts, grace_s: float, go_on: GoOn = _always, at_most: int | None = None
) -> int:
    """Remove the files older than `grace_s` seconds that belong to no job, or to an attempt that was not published: how many.

    `at_most`: no more than so many. Rows whose audio is there again say so.
    """
    files = artifacts.list()
    removed = 0
    while go_on() and (page := list(islice(files, PAGE))):
        left = None if at_most is None else at_most - removed
        removed += _remove_orphans(store, artifacts, page, time.time() - grace_s, left)
    return removed


def _remove_orphans(
    store: Store, artifacts: Artifacts, files: Sequence[StoredFile], before: float, at_most: int | None
) -> int:
    """The rows are read after the files were listed. So a file whose attempt is not running and not published never will be."""
    jobs = store.retention.holdings({job_of(file.key) for file in files})
    orphans = [file.key for file in files if is_orphan(file, jobs, before)][:at_most]
    artifacts.delete(orphans)
    if orphans:
        logger.warning("removed %s files that belong to no job, such as %s", len(orphans), orphans[0])
    back = {job.id for file in files if (job := jobs.get(job_of(file.key))) and job.gone and file.key in job.keys}
    if back:  # a disk that was not mounted at the last audit, say
        store.retention.mark_audio_gone(sorted(back), gone=False)
        logger.warning("found the audio of %s jobs again", len(back))
    return len(orphans)


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
