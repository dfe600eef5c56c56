"""Webhook deliveries as rows: when they are created and who claims them."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from serve_app.errors import BadAudio, GenerationError, StoreUnavailable
from serve_app.jobs import Job, Status
from serve_app.store import Store
from serve_app.store.migrations import versions
from serve_app.store.tables import jobs, webhook_deliveries
from tests.support.queue import claim, finish
from tests.support.webhooks import submit_with_webhook, succeeded_with_webhook


def _cancel(store: Store, job: Job) -> None:
    store.jobs.cancel(job.id)


def _fail(store: Store, job: Job) -> None:
    store.claims.fail(claim(store), GenerationError("no"))


def _finish(store: Store, job: Job) -> None:
    finish(store, claim(store))


def _expire(store: Store, job: Job) -> None:
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(deadline_at=0))
    store.time_limits.enforce(run_limit_s=3600)


@pytest.mark.parametrize(
    ("end", "event"),
    [(_finish, "succeeded"), (_fail, "failed"), (_cancel, "cancelled"), (_expire, "expired")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_end_of_a_job_makes_a_delivery(store: Store, end: Callable[[Store, Job], None], event: str) -> None:
    """Every final state of a job with a webhook_url creates one delivery, named after the state."""
    job = submit_with_webhook(store, "https://hooks.example/x")
    assert store.webhooks.latest(job.id) is None

    end(store, job)

    delivery = store.webhooks.latest(job.id)
    assert delivery is not None
    assert (delivery.event, delivery.state, delivery.attempts) == (f"job.{event}", "pending", 0)
    assert delivery.url == "https://hooks.example/x"


def test_jobs_that_do_not_end_or_name_no_url_make_none(store: Store) -> None:
    """A retried attempt and a job without webhook_url create no delivery."""
    again = submit_with_webhook(store, "https://hooks.example/x")
    store.claims.fail(claim(store), BadAudio("NaN"))
    store.jobs.cancel(submit_with_webhook(store, None).id)

    assert store.jobs.get(again.id).status is Status.QUEUED
    with store.database.read() as connection:
        assert connection.execute(sa.select(webhook_deliveries)).all() == []


def test_a_state_is_never_kept_without_its_delivery(store: Store) -> None:
    """The delivery and the job's final state are written in one transaction."""
    submit_with_webhook(store, "https://hooks.example/x")
    job = claim(store)
    with store.database.write() as connection:
        webhook_deliveries.drop(connection)

    with pytest.raises(StoreUnavailable):
        finish(store, job)

    assert store.jobs.get(job.id).status is Status.RUNNING


def test_a_deleted_job_takes_its_deliveries_along(store: Store) -> None:
    """Deleting a job deletes its deliveries."""
    job = succeeded_with_webhook(store, "https://hooks.example/x")
    store.jobs.delete(job.id)
    assert store.webhooks.latest(job.id) is None
    assert store.webhooks.claim(60) is None


def test_a_delivery_whose_sender_died_is_due_again(store: Store) -> None:
    """After the lease the delivery is due again under its id, and the first sender can no longer complete it."""
    succeeded_with_webhook(store, "https://hooks.example/x")
    first = store.webhooks.claim(lease_s=0)
    again = store.webhooks.claim(lease_s=60)
    assert first is not None
    assert again is not None
    assert (again.id, again.attempts) == (first.id, 2)
    assert store.webhooks.claim(60) is None

    assert not store.webhooks.record(first, "failed", error="late")
    assert store.webhooks.record(again, "delivered", status=200)

    kept = store.webhooks.latest(again.job)
    assert kept is not None
    assert (kept.state, kept.history) == ("delivered", ({"at": again.claimed_at, "status": 200, "error": None},))


@pytest.mark.fault("B9")
def test_a_delivery_to_a_busy_host_is_passed_over(store: Store) -> None:
    """A claim skips the given hosts, at any port."""
    for slow in ("https://Slow.example/a", "https://slow.example:8001/", "https://SLOW.example.:8002/"):
        succeeded_with_webhook(store, slow)
    fast = succeeded_with_webhook(store, "https://fast.example/b")
    found = store.webhooks.claim(60, busy=["slow.example"])
    assert found is not None
    assert found.job == fast.id


def test_deliveries_of_an_earlier_version_get_their_owner(store: Store) -> None:
    """The migration gives a pending delivery the owner of its job."""
    succeeded_with_webhook(store, "https://hooks.example/x", "studio")
    [migration] = Path(versions.__path__[0]).glob("*_webhook_owners.py")
    upgrade = runpy.run_path(str(migration))["upgrade"]
    with store.database.write() as connection, Operations.context(MigrationContext.configure(connection)):
        connection.execute(sa.text("drop index webhook_deliveries_by_owner"))  # of a later migration
        connection.execute(sa.text("alter table webhook_deliveries drop column owner"))
        upgrade()
    delivery = store.webhooks.claim(60)
    assert delivery is not None
    assert delivery.owner == "studio"
