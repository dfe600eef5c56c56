"""Leases, fencing, attempts and deadlines in the job store, on both kinds of database."""

from serve_app.errors import (
    BadAudio,
    GenerationError,
)
from serve_app.jobs import JobFailure, Status
from serve_app.store import Beat, Store
from serve_app.store.tables import jobs
from tests.support.failure_codes import provoked
from tests.support.queue import LEASE_S, claim, finish, lose_lease, submit


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
