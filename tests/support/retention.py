"""Songs with real files, old enough to be removed or not."""

from pathlib import Path

import sqlalchemy as sa

from serve_app.artifacts import Artifacts
from serve_app.config import RetentionArgs
from serve_app.jobs import Job
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.store.tables import jobs
from tests.support.queue import stored_audio

DAY = 86_400.0
KEPT = RetentionArgs(results_s=7 * DAY, rows_s=30 * DAY, orphans_s=0, orphans_share=1, expiry_share=1)


def always() -> bool:
    return True


def claimed(store: Store) -> Job:
    request = MusicRequest(prompt="piano", model="m", seed=1)
    store.jobs.submit(request, owner="", deadline_s=600, max_attempts=3)
    job = store.claims.take("w", "m", 60)
    assert job is not None
    return job


def put(artifacts: Artifacts, job: Job, attempt: int | None = None, index: int = 0) -> str:
    key = f"{job.id}/{job.attempt if attempt is None else attempt}/{index}.flac"
    artifacts.put(key, b"fLaC")
    return key


def song(store: Store, artifacts: Artifacts, files: int = 1, age_s: float = 0) -> Job:
    """A job with its files that succeeded the given number of seconds ago."""
    job = claimed(store)
    keys = [put(artifacts, job, index=index) for index in range(files)]
    assert store.claims.publish(job, audio=[stored_audio(key) for key in keys], timing={"gpu_s": 1.0}, warnings=[])
    return aged(store, job, age_s)


def aged(store: Store, job: Job, age_s: float) -> Job:
    with store.database.write() as connection:
        finished_at = jobs.c.finished_at - age_s
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(finished_at=finished_at))
    return store.jobs.get(job.id)


def keys(artifacts: Artifacts) -> set[str]:
    return {file.key for file in artifacts.list()}


def key_of(job: Job, index: int = 0) -> str:
    return job.audio[index].key


def many(store: Store, artifacts: Artifacts, folder: Path, count: int, age_s: float) -> list[Job]:
    """The given number of songs, as copies of one."""
    first = song(store, artifacts, age_s=age_s)
    with store.database.write() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == first.id)).mappings().one()
        ids = [f"{first.id}-{n:04}" for n in range(count - 1)]
        copies = [{**row, "id": job, "audio": [stored_audio(f"{job}/1/0.flac").to_json()]} for job in ids]
        connection.execute(jobs.insert(), copies)
    write(folder, *(f"{job}/1/0.flac" for job in ids))
    return sorted([first, *store.jobs.get_many(ids).values()], key=lambda job: job.id)


def write(folder: Path, *names: str) -> None:
    """Writes files as Artifacts does, without waiting for the disk."""
    for name in names:
        (folder / "audio" / name).parent.mkdir(parents=True)
        (folder / "audio" / name).write_bytes(b"x")
