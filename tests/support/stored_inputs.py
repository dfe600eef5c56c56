"""Uploaded recordings in a store, with their files."""

import hashlib
from dataclasses import replace

import sqlalchemy as sa

from serve_app.artifacts import Artifacts
from serve_app.jobs import Job, new_id
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.store.inputs import NewInput, StoredInput
from serve_app.store.tables import inputs, jobs

TTL_S = 3600.0
ROOM = 10_000_000


def new_input(owner: str = "me", letter: str = "a", size: int = 4) -> NewInput:
    return NewInput(
        owner=owner,
        sha256=letter * 64,
        upload=new_id(),
        bytes=size,
        format="wav",
        seconds=1.0,
        sample_rate=48_000,
        channels=2,
        silent=False,
    )


def add(
    store: Store, artifacts: Artifacts | None = None, owner: str = "me", letter: str = "a", age_s: float = 0
) -> StoredInput:
    """An input with its file, which was used `age_s` seconds ago."""
    added, is_new = store.inputs.add(new_input(owner, letter), TTL_S, ROOM)
    assert is_new
    if artifacts is not None:
        artifacts.put(added.key, b"RIFF")
    with store.database.write() as connection:
        aged = inputs.update().where(inputs.c.upload == added.upload)
        connection.execute(aged.values(expires_at=inputs.c.expires_at - age_s))
    return added


def queue_with(store: Store, owner: str = "me", **fields: str) -> Job:
    """A queued job whose stored request has these additional fields."""
    request = MusicRequest(prompt="piano", model="m", seed=1)
    job, _ = store.jobs.submit(request, owner=owner, deadline_s=600, max_attempts=3)
    with store.database.write() as connection:
        stored = {"prompt": "piano", "model": "m", "seed": 1, **fields}
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(request=stored))
    return job


def end(store: Store, job: Job) -> None:
    """Make a job end."""
    with store.database.write() as connection:
        ended = {"state": "cancelled", "finished_at": sa.literal(1.0)}
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(ended))


def add_file(store: Store, artifacts: Artifacts, data: bytes, owner: str = "me") -> str:
    """Keep a file as an input. Returns its name for a request."""
    new = replace(new_input(owner), sha256=hashlib.sha256(data).hexdigest())
    added, _ = store.inputs.add(new, TTL_S, ROOM)
    artifacts.put(added.key, data)
    return f"input:{added.sha256}"
