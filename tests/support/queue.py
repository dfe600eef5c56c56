"""Moves of a job in the store, as tests of the queue need them."""

from serve_app.jobs import Job, StoredAudio
from serve_app.music import SAMPLE_RATE, MusicRequest
from serve_app.store import NewPlan, PlanTask, Store
from serve_app.store.jobs import Admission
from serve_app.store.tables import jobs

LEASE_S = 60.0


def submit(store: Store, owner: str = "", deadline_s: float = 600, max_attempts: int = 3, **fields: object) -> Job:
    request = MusicRequest.model_validate({"prompt": "piano", "model": "m", "seed": 1, "duration": 10.0, **fields})
    return store.jobs.submit(request, owner=owner, deadline_s=deadline_s, max_attempts=max_attempts)[0]


def submit_unplanned(
    store: Store, owner: str = "", max_attempts: int = 3, deadline_s: float = 600, **fields: object
) -> Job:
    """A job that waits for a plan of as many seconds as it has."""
    request = MusicRequest.model_validate({"prompt": "piano", "model": "m", "seed": 1, "duration": 10.0, **fields})
    admission = Admission(plan=NewPlan({"caption": "piano"}, audio_seconds=request.duration))
    return store.jobs.submit(
        request, owner=owner, deadline_s=deadline_s, max_attempts=max_attempts, admission=admission
    )[0]


def claim_plan(store: Store, worker: str = "p", model: str = "m", lease_s: float = LEASE_S) -> PlanTask:
    task = store.plans.take(worker, model, lease_s)
    assert task is not None
    return task


def claim(store: Store, worker: str = "w", model: str = "m", lease_s: float = LEASE_S) -> Job:
    job = store.claims.take(worker, model, lease_s)
    assert job is not None
    return job


def stored_audio(key: str = "k", seed: int = 1) -> StoredAudio:
    """The record that a worker publishes for one file."""
    return StoredAudio(
        key=key, format="flac", seconds=10.0, sample_rate=SAMPLE_RATE, channels=2, bytes=4, sha256="0" * 64, seed=seed
    )


def finish(store: Store, job: Job, gpu_s: float = 1.0) -> bool:
    return store.claims.publish(job, audio=[stored_audio()], timing={"gpu_s": gpu_s}, warnings=[])


def lose_lease(store: Store, job: Job) -> None:
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(lease_until=0))
