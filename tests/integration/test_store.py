"""The job store, on SQLite and on PostgreSQL alike."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from serve_app.errors import (
    ConfigurationError,
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
)
from serve_app.jobs import Job, Status, WorkerPhase
from serve_app.music import MusicRequest
from serve_app.processes import Process
from serve_app.store import Beat, Store, WorkerRow
from serve_app.store.database import Database
from serve_app.store.jobs import OnceKey, fingerprint
from serve_app.store.keys import owner_of
from serve_app.store.places import Place
from serve_app.store.tables import metadata, workers
from tests.support.queue import LEASE_S, claim, finish, submit


def test_migrations_make_the_tables_that_the_code_expects(store: Store) -> None:
    """What the migrations build is what tables.py declares."""
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_many_processes_may_migrate_at_once(database_url: str) -> None:
    """Three processes that start together on an empty database all start."""
    program = "import sys; from serve_app.store import Store; Store(sys.argv[1]).migrate()"
    processes = [subprocess.Popen([sys.executable, "-c", program, database_url]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0] * 3


@pytest.mark.parametrize("url", ["mysql://x/y", "no url", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused_by_name(url: str) -> None:
    """An unsupported database is a configuration error that lists the supported ones."""
    with pytest.raises(ConfigurationError, match="database_url"):
        Database(url)


def test_a_password_never_shows_in_an_error() -> None:
    """Errors about an address that cannot be parsed or reached do not contain it."""
    with pytest.raises(StoreUnavailable) as caught:
        Store("postgresql://me:hunter2@127.0.0.1:1/x").backlog.counts()
    assert "hunter2" not in str(caught.value)


def test_a_submitted_job_comes_back_as_it_was(store: Store) -> None:
    """Every field of a request is stored unchanged, in any script."""
    job = submit(store, prompt="雨 🎹 “piano”", lyrics="[verse]\nЗдравствуй", metadata={"a": "b"}, priority=7, bpm=90)
    found = store.jobs.get(job.id)
    assert found == job
    assert (found.request.prompt, found.request.metadata, found.priority) == ("雨 🎹 “piano”", {"a": "b"}, 7)
    assert found.status is Status.QUEUED
    assert found.deadline_at - found.created_at == pytest.approx(600, abs=1)


def test_jobs_are_claimed_by_priority_then_age(store: Store) -> None:
    """The highest priority is claimed first; among equals the oldest."""
    first = submit(store)
    second = submit(store)
    urgent = submit(store, priority=9)
    assert [claim(store).id for _ in range(3)] == [urgent.id, first.id, second.id]
    assert store.claims.take("w", "m", LEASE_S) is None


def test_a_worker_gets_jobs_of_its_model_only(store: Store) -> None:
    """A worker does not claim another model's job."""
    submit(store, model="other")
    assert store.claims.take("w", "m", LEASE_S) is None
    assert claim(store, model="other").attempt == 1


def test_no_job_is_claimed_twice_by_many_claimers_at_once(store: Store) -> None:
    """Eight threads that claim at once get each job once."""
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
    """The same owner, key and body give one job; another owner's key is independent."""
    request = MusicRequest(prompt="x", model="m", seed=1)

    def again(owner: str, body: str) -> tuple[Job, bool]:
        return store.jobs.submit(request, owner=owner, deadline_s=60, max_attempts=1, once=OnceKey("k", body))

    (first, new) = again("a", "body")
    (second, newer) = again("a", "body")
    (foreign, newest) = again("b", "body")
    assert (new, newer, newest) == (True, False, True)
    assert first.id == second.id != foreign.id
    with pytest.raises(IdempotencyConflict, match="'k'"):
        again("a", "other body")


class LaterRequest(MusicRequest):
    """A request of a later version, which has one more field."""

    mood: str = "any"


def test_a_field_of_a_later_version_troubles_only_jobs_that_use_it(store: Store) -> None:
    """A job of a later version that leaves its new field at the default can be read, and has the same fingerprint."""
    fields = {"prompt": "x", "model": "m", "seed": 1, "duration": 5}
    request = MusicRequest.model_validate(fields)
    later = LaterRequest.model_validate(fields)

    job, _ = store.jobs.submit(later, owner="a", deadline_s=60, max_attempts=1)

    assert store.jobs.get(job.id).request == request
    assert fingerprint(later) == fingerprint(request)
    assert fingerprint(later.model_copy(update={"mood": "calm"})) != fingerprint(request)


def test_cancelling_takes_a_job_from_the_queue_or_from_its_worker(store: Store) -> None:
    """Queued and running jobs can be cancelled; ended ones cannot."""
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
    """Deleting returns the job once, and its worker's claim is gone."""
    submit(store)
    job = claim(store)
    assert store.jobs.delete(job.id).id == job.id
    assert store.claims.lost([Beat(job.id, job.attempt, str(job.worker))]) == {job.id}
    assert not finish(store, job)
    with pytest.raises(NotFound):
        store.jobs.delete(job.id)


def test_owners_see_their_own_jobs_only(store: Store) -> None:
    """Another owner's job is reported as not found."""
    mine = submit(store, owner="me")
    for forbidden in (store.jobs.get, store.jobs.cancel, store.jobs.delete):
        with pytest.raises(NotFound):
            forbidden(mine.id, "you")
    assert store.jobs.page(owner="you") == []
    assert store.jobs.get(mine.id, "me").id == mine.id


def test_pages_list_every_job_once_newest_first(store: Store) -> None:
    """Paging by the last id returns every job once, with filters applied on each page."""
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
    """The position counts queued jobs, the seconds also running ones, and speed is measured from finished jobs."""
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


def test_a_workers_phase_keeps_its_beginning(store: Store) -> None:
    """`phase_since` changes only with the phase, and a worker that leaves is removed."""
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
    """A key's token is valid until it is revoked; its stored hash is never valid."""
    token = store.keys.create("studio")
    digests = store.keys.digests()
    assert owner_of(token, digests) == "studio"
    assert owner_of(digests["studio"], digests) is None
    assert owner_of(token + "x", digests) is None
    assert token not in str(digests)
    with pytest.raises(Conflict, match="'studio'"):
        store.keys.create("studio")
    with pytest.raises(InvalidRequest, match="not a valid key name"):
        store.keys.create("a b")
    store.keys.revoke("studio")
    assert store.keys.names() == []
    with pytest.raises(NotFound):
        store.keys.revoke("studio")
