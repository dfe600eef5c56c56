"""Limits on queued jobs and audio, which are counted in the transaction that changes the job."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from serve_app.config import QueueArgs
from serve_app.errors import BadAudio, Conflict, NotFound, QueueFull, QuotaExceeded
from serve_app.jobs import Job, Status
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.store.jobs import Admission
from serve_app.store.tables import jobs, shares
from tests.support.failure_codes import provoked
from tests.support.queue import claim, submit
from tests.support.running import running


def submit_within(store: Store, owner: str, limits: QueueArgs, duration: float = 10.0, model: str = "m") -> Job:
    request = MusicRequest(prompt="piano", model=model, seed=1, duration=duration)
    return store.jobs.submit(request, owner=owner, deadline_s=600, max_attempts=3, admission=Admission(limits))[0]


def counted(store: Store) -> dict[tuple[str, str, int], tuple[int, Any]]:
    """Queued jobs and seconds of audio per share, counted from the jobs."""
    keys = (jobs.c.model, jobs.c.owner, jobs.c.rank)
    sums = (sa.func.count(), sa.func.sum(jobs.c.audio_seconds))
    query = sa.select(*keys, *sums).where(jobs.c.state == "queued").group_by(*keys)
    with store.database.read() as connection:
        return {tuple(row[:3]): (row[3], pytest.approx(row[4])) for row in connection.execute(query)}


def kept(store: Store) -> dict[tuple[str, str, int], tuple[int, float]]:
    """Queued jobs and seconds of audio per share, as stored in the shares."""
    query = sa.select(shares.c.model, shares.c.owner, shares.c.rank, shares.c.jobs, shares.c.audio_s)
    with store.database.read() as connection:
        rows = connection.execute(query.where(sa.or_(shares.c.jobs != 0, shares.c.audio_s != 0))).all()
        return {tuple(row[:3]): (row[3], row[4]) for row in rows}


@pytest.mark.fault("A11")
def test_an_owner_may_have_so_many_jobs_waiting(tmp_path: Path) -> None:
    """A job beyond the owner's limit gets 429 with Retry-After; a repeated submission of an accepted job still succeeds, a
    cancelled job makes room for another, and a retry beyond the limit gets 429, too."""
    with running(tmp_path, workers=0, queue={"max_owner_jobs": 2}) as service:
        song = {"prompt": "piano", "duration": 10}
        first = service.client.post("/v1/jobs", json=song, headers={"idempotency-key": "first"})
        second = service.submit()
        refused = service.client.post("/v1/jobs", json=song)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
            429,
            "quota_exceeded",
            "30",
        )
        assert "You have 2 jobs waiting, and queue.max_owner_jobs is 2" in refused.json()["detail"]
        provoked("quota_exceeded", "a key has reached its limit of queued jobs", refused.json()["detail"])
        again = service.client.post("/v1/jobs", json=song, headers={"idempotency-key": "first"})
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert service.client.post(f"/v1/jobs/{second['id']}/cancel").status_code == 200
        told = service.client.get("/v1/usage").json()
        assert (
            told.items()
            >= {
                "queued_jobs": 1,
                "queued_audio_s": 10.0,
                "max_queued_jobs": 2,
                "max_queued_audio_s": 500_000.0,
                "pending_webhooks": 0,
                "max_pending_webhooks": 5000,
            }.items()
        )
        service.submit()
        retried = service.client.post(f"/v1/jobs/{second['id']}/retry")
        assert (retried.status_code, retried.json()["code"]) == (429, "quota_exceeded")
        assert service.job(second["id"])["state"] == "cancelled"


@pytest.mark.fault("A11")
def test_an_owner_may_have_so_much_audio_waiting(store: Store) -> None:
    """An owner's queued audio is limited in seconds over all models."""
    limits = QueueArgs(max_owner_audio_s=7200)
    for number in range(12):
        submit_within(store, "a", limits, duration=600, model=f"m{number % 2}")
    with pytest.raises(QuotaExceeded, match=r"7210 seconds of audio waiting, and queue\.max_owner_audio_s is 7200"):
        submit_within(store, "a", limits)
    submit_within(store, "b", limits)
    claim(store, model="m0")
    submit_within(store, "a", limits, duration=600)


@pytest.mark.fault("A11")
def test_the_queue_holds_so_many_jobs_of_all_owners(store: Store) -> None:
    """A full queue accepts no job of any owner until some have started."""
    limits = QueueArgs(max_jobs=2)
    submit_within(store, "a", limits)
    submit_within(store, "b", limits)
    with pytest.raises(
        QueueFull, match=r"All API keys together have 2 jobs waiting, and queue\.max_jobs is 2"
    ) as refused:
        submit_within(store, "c", limits)
    provoked("queue_full", "the queue is full", str(refused.value))
    claim(store)
    submit_within(store, "c", limits)


def test_submissions_at_once_do_not_pass_an_owners_limit(store: Store) -> None:
    """Of twenty concurrent submissions to two models, exactly the ten that the limit allows are accepted."""
    limits = QueueArgs(max_owner_jobs=10)

    def try_it(number: int) -> bool:
        with suppress(QuotaExceeded):
            submit_within(store, "a", limits, model=f"m{number % 2}")
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_it, range(20))) == 10
    assert store.backlog.use("a").jobs == 10


@pytest.mark.fault("A11")
def test_the_counts_are_those_of_a_recount(store: Store) -> None:
    """After concurrent submissions, claims, cancels and expiries, the shares match a recount, and no transaction deadlocks."""
    owners = ("a", "b", "c")
    store.keys.create("c", outranks=True)

    def act(seed: int) -> None:
        chance = random.Random(seed)
        mine: list[Job] = []
        for _ in range(40):
            with suppress(Conflict, NotFound):
                _do_something(store, chance, mine, owners, f"w{seed}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(act, range(6)))
    assert kept(store) == counted(store)
    assert counted(store)


def _do_something(  # noqa: C901 - one case for each event
    store: Store, chance: random.Random, mine: list[Job], owners: tuple[str, ...], worker: str
) -> None:
    known = store.jobs.page(limit=30)
    some = chance.choice(known).id if known else ""
    match chance.choice(["submit"] * 5 + ["claim"] * 3 + ["fail", "cancel", "delete", "retry", "abandon", "expire"]):
        case "submit":
            duration = chance.choice([10.1, 33.3, 60])
            submit(store, chance.choice(owners), duration=duration, priority=chance.randint(0, 9), max_attempts=2)
        case "claim":
            if job := store.claims.take(worker, "m", 60):
                mine.append(job)
        case "fail":
            if mine:
                store.claims.fail(mine.pop(), BadAudio())
        case "cancel":
            store.jobs.cancel(some)
        case "delete":
            store.jobs.delete(some)
        case "retry":
            store.jobs.retry(some, 2)
        case "abandon":
            store.claims.release(worker)
        case "expire":
            with store.database.write() as connection:
                connection.execute(jobs.update().where(jobs.c.id == some).values(deadline_at=0))
            store.time_limits.enforce(3600)


def test_what_an_earlier_version_queued_is_counted_in(store: Store) -> None:
    """Jobs that an earlier version inserts without shares during a rollout are counted by the next recount and run."""
    job = submit(store, "a")
    submit(store, "b")
    with store.database.write() as connection:
        connection.execute(shares.delete().where(shares.c.owner == "a"))
        connection.execute(shares.update().values(jobs=7))
    assert store.backlog.recount()
    assert kept(store) == counted(store)
    assert not store.backlog.recount()
    assert {claim(store).id, claim(store).id} >= {job.id}
    assert store.backlog.counts()[Status.QUEUED] == 0
