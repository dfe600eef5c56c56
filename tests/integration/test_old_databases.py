"""A database of the first version is opened by this one, with all that is in it."""

from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serve_app.store import Store
from serve_app.store.revisions import current
from serve_app.store.tables import jobs, webhook_deliveries, workers
from tests.support.helpers import eventually
from tests.support.old_databases import REVISION, replay
from tests.support.running import Service, running

WAV_BYTES = 1120


def test_every_job_of_an_old_database_is_there_and_the_queue_goes_on(database_url: str, tmp_path: Path) -> None:
    """Ended jobs are as they were, queued ones are played, and those of workers that are gone run again."""
    old = replay(database_url)
    put_song(tmp_path, old["succeeded"])
    with running(tmp_path, workers=0, database_url=database_url) as service:
        service.client.headers["Authorization"] = f"Bearer {old['token']}"
        seen = {name: service.job(old[name]) for name in old if name not in ("token", "at", "queued of another")}
        heard = service.client.get(f"/v1/jobs/{old['succeeded']}/audio")
        listed = service.client.get("/v1/jobs").json()["jobs"]
        foreign = service.client.get(f"/v1/jobs/{old['queued of another']}")
        repeated = service.client.post("/v1/jobs", json={"prompt": "x"}, headers={"Idempotency-Key": "once"})

    assert {name: job["state"] for name, job in seen.items()} == {
        "succeeded": "succeeded",
        "gone": "succeeded",
        "failed": "failed",
        "cancelled": "cancelled",
        "expired": "expired",
        "running": "running",
        "lost": "running",
        "again": "queued",
        "queued": "queued",
        "queued later": "queued",
        "queued urgent": "queued",
    }
    assert (heard.status_code, len(heard.content)) == (200, WAV_BYTES)
    assert seen["succeeded"]["request"]["lyrics"] == "[verse]\nЗдравствуй"
    assert seen["succeeded"]["request"]["metadata"] == {"a": "b"}
    assert seen["failed"]["error"]["code"]
    assert {job["id"] for job in listed} == {job["id"] for job in seen.values()}
    assert foreign.status_code == 404
    assert repeated.status_code == 409  # the key belongs to another request
    assert repeated.json()["code"] == "idempotency_conflict"


def test_what_an_old_database_has_queued_is_played(database_url: str, tmp_path: Path) -> None:
    """Each job that waits or whose worker is gone ends in a song of the new version, once."""
    old = replay(database_url)
    unfinished = [old[name] for name in ("running", "lost", "again", "queued", "queued later", "queued urgent")]
    unfinished.append(old["queued of another"])
    with closing(Store(database_url)) as store, store.database.engine.begin() as connection:
        their_workers_are_gone = "UPDATE jobs SET lease_until = 1 WHERE lease_until IS NOT NULL"
        connection.execute(sa.text(their_workers_are_gone))
    with running(tmp_path, database_url=database_url, queue={"lease_s": 3}) as service:
        ended = eventually(lambda: ended_jobs(service, unfinished))

    assert {row.state for row in ended} == {"succeeded"}
    assert {row.attempt for row in ended if row.id in (old["running"], old["lost"], old["again"])} == {2}
    assert {row.attempt for row in ended if row.id in (old["queued"], old["queued urgent"])} == {1}


def test_a_webhook_that_an_old_database_owes_is_still_owed(database_url: str) -> None:
    """A delivery that was pending is claimed by the new version's sender, for the job's owner."""
    old = replay(database_url)
    store = Store(database_url)
    store.migrate()

    delivery = store.webhooks.claim(60)
    nothing_else = store.webhooks.claim(60)
    with store.database.read() as connection:
        delivered = connection.scalar(
            sa.select(webhook_deliveries.c.attempts).where(webhook_deliveries.c.job == old["succeeded"])
        )

    assert delivery is not None
    assert (delivery.job, delivery.owner, delivery.receiver) == (old["failed"], "studio", "studio.example")
    assert nothing_else is None
    assert delivered == 1
    store.close()


def test_an_old_worker_that_still_runs_keeps_its_job(database_url: str) -> None:
    """During a rollout the old version's workers play on: nobody takes their jobs while their leases last."""
    old = replay(database_url)
    store = Store(database_url)
    store.migrate()

    swept = store.time_limits.enforce(3600)
    claimed = [job.id for job in iter(lambda: store.claims.take("new", "ace-step", 60), None)]
    with store.database.read() as connection:
        known = connection.scalar(sa.select(workers.c.phase).where(workers.c.id == "alive"))
        owner = connection.scalar(sa.select(jobs.c.worker).where(jobs.c.id == old["running"]))
        revision = current(connection)

    assert swept == 0
    assert old["running"] not in claimed
    assert set(claimed) == {
        old[name] for name in ("again", "queued", "queued later", "queued urgent", "queued of another")
    }
    assert claimed.index(old["queued urgent"]) < claimed.index(old["queued"]) < claimed.index(old["queued later"])
    assert (known, owner) == ("generating", "alive")
    assert revision > (REVISION,)
    store.close()


def put_song(folder: Path, job: str) -> None:
    """The file that the old version stored for a job."""
    song = folder / "audio" / job / "1" / "0.wav"
    song.parent.mkdir(parents=True)
    song.write_bytes(bytes(WAV_BYTES))


def ended_jobs(service: Service, ids: list[str]) -> list[Any] | None:
    """The rows of the jobs once all have ended."""
    with service.store.database.read() as connection:
        rows = list(connection.execute(sa.select(jobs).where(jobs.c.id.in_(ids), jobs.c.finished_at.is_not(None))))
    return rows if len(rows) == len(ids) else None
