"""The job store, on SQLite and on PostgreSQL alike."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from serve_app.errors import (
    BadAudio,
    ConfigurationError,
    Conflict,
    GenerationError,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
)
from serve_app.jobs import Job, JobFailure, Status, WorkerPhase
from serve_app.music import MusicRequest
from serve_app.processes import Process
from serve_app.store import Beat, Store, WorkerRow
from serve_app.store.database import Database
from serve_app.store.keys import owner_of
from serve_app.store.places import Place
from serve_app.store.tables import jobs, metadata, workers
from tests.support.failure_codes import provoked
from tests.support.helpers import eventually
from tests.support.queue import LEASE_S, claim, finish, lose_lease, submit

# --- Schema -----------------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_expects(store: Store) -> None:
    """What the migrations build is what tables.py declares."""
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_many_processes_may_migrate_at_once(database_url: str) -> None:
    """Six processes that start together on an empty database all come up."""
    program = "import sys; from serve_app.store import Store; Store(sys.argv[1]).migrate()"
    processes = [subprocess.Popen([sys.executable, "-c", program, database_url]) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6


@pytest.mark.parametrize("url", ["mysql://x/y", "no url", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused_by_name(url: str) -> None:
    """A database that the store cannot use is a configuration error that says what can be used."""
    with pytest.raises(ConfigurationError, match="database_url"):
        Database(url)


def test_a_password_never_shows_in_an_error() -> None:
    """An address that cannot be parsed or reached is not repeated."""
    with pytest.raises(StoreUnavailable) as caught:
        Store("postgresql://me:hunter2@127.0.0.1:1/x").backlog.counts()
    assert "hunter2" not in str(caught.value)


# --- Submitting and claiming ------------------------------------------------------------------------------------------


def test_a_submitted_job_comes_back_as_it_was(store: Store) -> None:
    """Every field of a request survives the database, whatever script it is written in."""
    job = submit(store, prompt="雨 🎹 “piano”", lyrics="[verse]\nЗдравствуй", metadata={"a": "b"}, priority=7, bpm=90)
    found = store.jobs.get(job.id)
    assert found == job
    assert (found.request.prompt, found.request.metadata, found.priority) == ("雨 🎹 “piano”", {"a": "b"}, 7)
    assert found.status is Status.QUEUED
    assert found.deadline_at - found.created_at == pytest.approx(600, abs=1)


def test_jobs_are_claimed_by_priority_then_age(store: Store) -> None:
    """The most urgent starts first; among equals the oldest."""
    first = submit(store)
    second = submit(store)
    urgent = submit(store, priority=9)
    assert [claim(store).id for _ in range(3)] == [urgent.id, first.id, second.id]
    assert store.claims.take("w", "m", LEASE_S) is None


def test_a_worker_gets_jobs_of_its_model_only(store: Store) -> None:
    """Another model's job is left alone."""
    submit(store, model="other")
    assert store.claims.take("w", "m", LEASE_S) is None
    assert claim(store, model="other").attempt == 1


def test_no_job_is_claimed_twice_by_many_claimers_at_once(store: Store) -> None:
    """Eight threads that claim at once share the jobs out, each to one of them."""
    submitted = {submit(store).id for _ in range(80)}

    def take(worker: int) -> list[str]:
        taken = []
        while job := store.claims.take(f"w{worker}", "m", LEASE_S):
            taken.append(job.id)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [job for jobs_of_one in pool.map(take, range(8)) for job in jobs_of_one]
    # on PostgreSQL a claimer may find the first row locked and come back empty-handed: the rest is then still queued
    taken += [job.id for job in iter(lambda: store.claims.take("last", "m", LEASE_S), None)]
    assert len(taken) == len(set(taken)) == 80
    assert set(taken) == submitted


def test_an_idempotency_key_gives_the_same_job_again(store: Store) -> None:
    """The same key and body of the same owner make one job; another owner's key is another key."""
    request = MusicRequest(prompt="x", model="m", seed=1)

    def again(owner: str, body: str) -> tuple[Job, bool]:
        return store.jobs.submit(
            request, owner=owner, deadline_s=60, max_attempts=1, idempotency_key="k", fingerprint=body
        )

    (first, new) = again("a", "body")
    (second, newer) = again("a", "body")
    (foreign, newest) = again("b", "body")
    assert (new, newer, newest) == (True, False, True)
    assert first.id == second.id != foreign.id
    with pytest.raises(IdempotencyConflict, match="'k'"):
        again("a", "other body")


# --- Leases and fencing -----------------------------------------------------------------------------------------------


def test_progress_is_seen_and_versions_grow(store: Store) -> None:
    """A heartbeat with news moves the job's version, one without does not."""
    submit(store)
    job = claim(store)
    assert (
        store.claims.heartbeat([Beat(job.id, job.attempt, str(job.worker), {"stage": "denoising"})], LEASE_S) == set()
    )
    told = store.jobs.get(job.id)
    assert told.progress == {"stage": "denoising"}
    assert told.version == job.version + 1
    store.claims.heartbeat([Beat(job.id, job.attempt, str(job.worker))], LEASE_S)
    assert store.jobs.get(job.id).version == told.version


def test_a_lost_lease_requeues_the_job_and_fences_the_old_worker_off(store: Store) -> None:
    """After its lease is lost a job runs elsewhere, and the first worker can neither extend, fail nor publish it."""
    submit(store)
    old = claim(store, "old")
    lose_lease(store, old)
    assert store.time_limits.enforce(3600) == 1
    new = claim(store, "new")
    assert new.attempt == 2
    assert store.claims.heartbeat([Beat(old.id, old.attempt, str(old.worker))], LEASE_S) == {old.id}
    assert store.claims.lost([Beat(old.id, old.attempt, str(old.worker))]) == {old.id}
    assert store.claims.lost([Beat(new.id, new.attempt, str(new.worker))]) == set()
    assert not finish(store, old)
    assert not store.claims.fail(old, GenerationError("no"))
    assert finish(store, new)
    assert store.jobs.get(new.id).status is Status.SUCCEEDED


def test_a_heartbeat_keeps_the_lease(store: Store) -> None:
    """A job whose worker beats is not swept."""
    submit(store)
    job = claim(store, lease_s=0.0)
    store.claims.heartbeat([Beat(job.id, job.attempt, str(job.worker))], LEASE_S)
    assert store.time_limits.enforce(3600) == 0


def test_a_job_is_not_tried_for_ever(store: Store) -> None:
    """After max_attempts lost leases the job fails and says so."""
    submit(store, max_attempts=2)
    for _ in range(2):
        lose_lease(store, claim(store))
        store.time_limits.enforce(3600)
    job = store.jobs.page()[0]
    assert (job.status, job.attempt) == (Status.FAILED, 2)
    assert job.error is not None
    assert job.error.code == "worker_lost"
    provoked("worker_lost", "the worker dies at each of the job's attempts", job.error.message)


def test_a_retryable_error_is_tried_again_and_another_is_not(store: Store) -> None:
    """Whether a failed attempt goes back into the queue is the error's own word."""
    submit(store)
    assert store.claims.fail(claim(store), BadAudio("NaN"))
    assert store.jobs.page()[0].status is Status.QUEUED
    assert store.claims.fail(claim(store), GenerationError("no use"))
    job = store.jobs.page()[0]
    assert job.status is Status.FAILED
    assert job.error == JobFailure("generation_failed", "no use")


def test_a_job_past_its_deadline_expires_queued_or_running(store: Store) -> None:
    """A deadline ends a job wherever it is, and its worker sees that its claim is gone."""
    submit(store, deadline_s=0.0)
    assert store.claims.take("w", "m", LEASE_S) is None
    submit(store)
    running = claim(store)
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == running.id).values(deadline_at=0))
    assert store.time_limits.enforce(3600) == 2
    assert {job.status for job in store.jobs.page()} == {Status.EXPIRED}
    assert store.claims.lost([Beat(running.id, running.attempt, str(running.worker))]) == {running.id}


# --- Cancelling, deleting, listing ------------------------------------------------------------------------------------


def test_cancelling_takes_a_job_from_the_queue_or_from_its_worker(store: Store) -> None:
    """Queued and running jobs can be cancelled; what has ended cannot."""
    queued = submit(store)
    _ = submit(store)
    running = claim(store)
    assert running.id == queued.id
    for job in store.jobs.page():
        assert store.jobs.cancel(job.id).status is Status.CANCELLED
    assert store.claims.lost([Beat(running.id, running.attempt, str(running.worker))]) == {running.id}
    with pytest.raises(Conflict, match=r"already ended \(cancelled\)"):
        store.jobs.cancel(running.id)
    with pytest.raises(NotFound):
        store.jobs.cancel("nothing")


def test_a_deleted_job_is_gone_for_its_worker_too(store: Store) -> None:
    """Deleting gives the job as it was, once."""
    submit(store)
    job = claim(store)
    assert store.jobs.delete(job.id).id == job.id
    assert store.claims.lost([Beat(job.id, job.attempt, str(job.worker))]) == {job.id}
    assert not finish(store, job)
    with pytest.raises(NotFound):
        store.jobs.delete(job.id)


def test_owners_see_their_own_jobs_only(store: Store) -> None:
    """Another owner's job looks as if it were not there."""
    mine = submit(store, owner="me")
    for forbidden in (store.jobs.get, store.jobs.cancel, store.jobs.delete):
        with pytest.raises(NotFound):
            forbidden(mine.id, "you")
    assert store.jobs.page(owner="you") == []
    assert store.jobs.get(mine.id, "me").id == mine.id


def test_pages_list_every_job_once_newest_first(store: Store) -> None:
    """Paging with the last id gives all jobs, and filters hold on each page."""
    made = [submit(store).id for _ in range(7)]
    claimed = claim(store)
    pages = []
    before = None
    while page := store.jobs.page(before=before, limit=3):
        pages += [job.id for job in page]
        before = page[-1].id
    assert sorted(pages, reverse=True) == pages
    assert set(pages) == set(made)
    assert [job.id for job in store.jobs.page(states=["running"])] == [claimed.id]
    assert store.jobs.page(model="other") == []


def test_what_waits_before_a_job_is_counted(store: Store) -> None:
    """Position counts queued jobs, seconds count running ones too, and speed is measured from finished jobs."""
    assert store.backlog.speed("m") is None
    submit(store)
    finish(store, claim(store), gpu_s=2.0)
    assert store.backlog.speed("m") == pytest.approx(0.2)
    submit(store, duration=20.0)
    claim(store)
    submit(store, priority=9)
    last = submit(store, variations=2)
    assert store.backlog.places([last]) == {last.id: Place(1, 30.0)}
    assert store.backlog.counts() == {
        "queued": 2,
        "running": 1,
        "succeeded": 1,
        "failed": 0,
        "cancelled": 0,
        "expired": 0,
    }
    waited = store.backlog.oldest_wait_s()
    assert waited is not None
    assert 0 <= waited < 60


# --- Workers, keys, changes -------------------------------------------------------------------------------------------


def test_a_workers_phase_keeps_its_beginning(store: Store) -> None:
    """`phase_since` moves with the phase only; a worker that leaves is off the list."""
    row = WorkerRow(
        id="w", model="m", node="n", process=Process.this(), device="cpu", phase=WorkerPhase.LOAD, progress=0.1
    )
    store.workers.report(row)
    (first,) = store.workers.seen()
    store.workers.report(
        WorkerRow(
            id="w", model="m", node="n", process=Process.this(), device="cpu", phase=WorkerPhase.LOAD, progress=0.9
        )
    )
    (second,) = store.workers.seen()
    assert second.phase_since == first.phase_since
    assert second.progress == 0.9
    assert second.age_s < 60
    store.workers.report(
        WorkerRow(id="w", model="m", node="n", process=Process.this(), device="cpu", phase=WorkerPhase.IDLE)
    )
    (third,) = store.workers.seen()
    assert third.phase_since > first.phase_since
    store.workers.forget("w")
    assert store.workers.seen() == []


def test_a_phase_that_only_a_later_version_knows_counts_as_starting(store: Store) -> None:
    """During an update, a new worker's row does not stop an old process from listing the workers."""
    store.workers.report(
        WorkerRow(id="w", model="m", node="n", process=Process.this(), device="cpu", phase=WorkerPhase.IDLE)
    )
    with store.database.write() as connection:
        connection.execute(workers.update().values(phase="planning"))

    (seen,) = store.workers.seen()

    assert seen.phase is WorkerPhase.STARTING


def test_keys_are_stored_hashed_and_can_be_revoked(store: Store) -> None:
    """The token opens, its hash does not, and after revoking neither does."""
    token = store.keys.create("studio")
    digests = store.keys.digests()
    assert owner_of(token, digests) == "studio"
    assert owner_of(digests["studio"], digests) is None
    assert owner_of(token + "x", digests) is None
    assert token not in str(digests)
    with pytest.raises(Conflict, match="'studio'"):
        store.keys.create("studio")
    with pytest.raises(InvalidRequest, match="no name"):
        store.keys.create("a b")
    store.keys.revoke("studio")
    assert store.keys.names() == []
    with pytest.raises(NotFound):
        store.keys.revoke("studio")


def test_a_change_by_another_process_wakes_a_waiter(store: Store, database_url: str) -> None:
    """Who waits for work hears of a submission made through another connection."""
    other = Store(database_url)
    try:
        store.notifications.wait(
            "queued", store.notifications.count("queued"), 1
        )  # the first sight of the database is a change
        woken = threading.Event()
        seen = store.notifications.count("queued")

        def wait() -> None:
            if store.notifications.wait("queued", seen, 20):
                woken.set()

        waiter = threading.Thread(target=wait)
        began = time.monotonic()
        waiter.start()
        submit(other)
        waiter.join()
        assert woken.is_set()
        assert time.monotonic() - began < 10
    finally:
        other.close()


def test_watching_survives_a_database_that_comes_back(postgresql_url: str) -> None:
    """A watcher whose connection is cut hears of changes again, and counts the gap as one."""
    store = Store(postgresql_url)
    try:
        store.migrate()
        seen = store.notifications.count("ended")
        assert store.notifications.wait("ended", seen, 20)
        seen = store.notifications.count("ended")
        with store.database.write() as connection:
            connection.execute(
                sa.text(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where query like 'LISTEN%' and datname = current_database()"
                )
            )
        assert store.notifications.wait("ended", seen, 20)
        seen = store.notifications.count("queued")
        submit(store)
        eventually(lambda: store.notifications.count("queued") > seen)
    finally:
        store.close()
