"""What keeps two workers from doing one job: claims that are durable, and writes that name their claim."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from serve_app.errors import GenerationError
from serve_app.jobs import Job, artifact_folder
from serve_app.music import MusicRequest
from serve_app.store import Beat, Store
from serve_app.store.jobs import OnceKey
from tests.support.queue import stored_audio

LEASE_S = 60.0


def claimed(store: Store, worker: str = "worker-a") -> Job:
    request = MusicRequest(prompt="piano", model="m", seed=1, duration=10.0)
    store.jobs.submit(request, owner="", deadline_s=600, max_attempts=3)
    job = store.claims.take(worker, "m", LEASE_S)
    assert job is not None
    return job


def finish(store: Store, job: Job) -> bool:
    return store.claims.publish(job, audio=[stored_audio()], timing={"gpu_s": 1.0}, warnings=[])


@pytest.mark.fault("A3")
def test_every_write_of_a_worker_is_fenced_by_the_worker(store: Store) -> None:
    """A worker that holds the same attempt as the job's own one can neither beat for it, fail it nor publish it."""
    job = claimed(store)
    impostor = replace(job, worker="worker-b")

    assert store.claims.heartbeat([Beat(job.id, job.attempt, "worker-b")], LEASE_S) == {job.id}
    assert store.claims.lost([Beat(job.id, job.attempt, "worker-b")]) == {job.id}
    assert not store.claims.fail(impostor, GenerationError("no"))
    assert not finish(store, impostor)

    assert finish(store, job)


@pytest.mark.fault("A3")
def test_two_holders_of_one_attempt_store_different_files() -> None:
    """The folder of a claim bears its worker, so that neither overwrites the other's files."""
    first = artifact_folder(1, "01a213bc-926b-7a40-970e-ac867b3e672f")
    second = artifact_folder(1, "01a213bc-926b-7a40-970e-bd978c4f7830")

    assert first != second


@pytest.mark.fault("A3")
def test_a_claim_is_on_disk_before_the_worker_begins(migrated_postgresql_url: str) -> None:
    """Claiming never asks PostgreSQL to acknowledge a commit that it has not written."""
    store = Store(migrated_postgresql_url)
    statements: list[str] = []
    sa.event.listen(
        store.database.engine, "before_cursor_execute", lambda *arguments: statements.append(str(arguments[2]))
    )

    claimed(store)

    assert any(statement.startswith("UPDATE jobs") for statement in statements)
    assert not any("synchronous_commit" in statement for statement in statements)
    store.close()


@pytest.mark.fault("A7")
def test_a_publication_whose_acknowledgement_was_lost_is_recognised(store: Store) -> None:
    """Publishing the same claim again reports success, and the song is on its owner's account once."""
    job = claimed(store)
    assert finish(store, job)

    assert finish(store, job)

    [account] = store.costs.owners(1)
    assert (account.songs, account.wasted_s) == (1, 0.0)


@pytest.mark.fault("A7")
def test_a_repeated_submission_beside_a_deletion_makes_a_new_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Idempotency-Key whose job is deleted between the insert and the look makes a job instead of an error."""
    request = MusicRequest(prompt="piano", model="m", seed=1, duration=10.0)
    options = {"owner": "me", "deadline_s": 600, "max_attempts": 3, "once": OnceKey("k", "f")}
    first, _ = store.jobs.submit(request, **options)  # type: ignore[arg-type]  # the options' types differ
    look = store.jobs._submitted_before

    def deleted_meanwhile(owner: str, once: OnceKey) -> Job | None:
        store.jobs.delete(first.id)
        return look(owner, once)

    monkeypatch.setattr(store.jobs, "_submitted_before", deleted_meanwhile)
    second, new = store.jobs.submit(request, **options)  # type: ignore[arg-type]  # as above

    assert new
    assert second.id != first.id
