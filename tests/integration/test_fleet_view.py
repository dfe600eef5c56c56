"""What the autoscaling policy reads from the store, on both databases."""

import time

import pytest

from serve_app.config import BreakerArgs, ScalingArgs
from serve_app.jobs import WorkerPhase
from serve_app.processes import Process
from serve_app.scaling.observation import StoreFleet
from serve_app.scaling.policy import WINDOWS
from serve_app.store import Store, WorkerRow
from serve_app.store.tables import jobs, loads
from tests.support.queue import claim, finish, submit

BOUNDS = ScalingArgs(work_prior=0.5, startup_prior_s=90)


@pytest.fixture
def fleet(store: Store) -> StoreFleet:
    """The observations of model m."""
    return StoreFleet(store, "m", "d", BOUNDS, BreakerArgs(open_after=2))


def test_an_empty_store_is_seen_as_idle(fleet: StoreFleet) -> None:
    """Without jobs, workers and measurements, the prior estimates apply."""
    seen = fleet.observe()
    assert (seen.queued_jobs, seen.running_jobs, seen.ready_s, seen.breaker) == (0, 0, (), None)
    assert seen.startup_s == 90
    assert seen.idle_s == float("inf")
    assert seen.arrivals == ((0, 0.0),) * WINDOWS


def test_work_is_seen_in_seconds(fleet: StoreFleet, store: Store) -> None:
    """Queued audio counts at the measured speed, or the prior speed if nothing was measured; other models do not count."""
    submit(store, duration=100.0)
    submit(store, duration=20.0, model="other")
    seen = fleet.observe()
    assert (seen.queued_jobs, seen.queued_work_s, seen.idle_s) == (1, 50.0, 0.0)
    assert seen.arrivals[0] == (1, 50.0)
    finish(store, claim(store), gpu_s=10.0)
    submit(store, duration=200.0)
    began = time.time()
    claim(store)
    submit(store, duration=10.0)
    seen = fleet.observe()
    passed_s = time.time() - began
    assert (seen.queued_jobs, seen.running_jobs) == (1, 1)
    assert seen.queued_work_s == pytest.approx(1.0)
    assert 20.0 - passed_s - 0.1 <= seen.running_left_s <= 20.0
    assert seen.arrivals[0][0] == 3


def test_an_old_arrival_falls_into_its_window(fleet: StoreFleet, store: Store) -> None:
    """A job that arrived seven minutes ago is counted in the second window."""
    job = submit(store, duration=10.0)
    with store.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(created_at=job.created_at - 420))
    assert [count for count, _ in fleet.observe().arrivals] == [0, 1, 0, 0, 0, 0]


def test_jobs_on_draining_workers_ask_for_nothing(fleet: StoreFleet, store: Store) -> None:
    """Jobs on draining workers do not raise the target, since those workers finish them."""
    submit(store)
    claim(store, "leaving")
    row = WorkerRow(id="leaving", model="m", node="n", process=Process.this(), device="cpu", phase=WorkerPhase.DRAINING)
    store.workers.report(row)
    assert fleet.observe().running_jobs == 0


def test_loads_are_seen_as_ages_and_as_a_breaker(fleet: StoreFleet, store: Store) -> None:
    """A recent successful load counts as recent; two equal failures open the breaker."""
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process.this()))
    (age,) = fleet.observe().ready_s
    assert 0 <= age < 30
    for _ in range(2):
        store.load_attempts.failed(
            store.load_attempts.begin("m", "d", Process.this()), "disk_full", "no room", "download"
        )
    assert fleet.observe().breaker == "2 failures with disk_full: no room"


def test_a_decision_is_published_for_health(fleet: StoreFleet, store: Store) -> None:
    """Others read the last target and its reason."""
    fleet.publish(2, "because")
    fleet.publish(3, "more")
    (decision,) = store.decisions.in_force()["m"]
    assert (decision.target, decision.reason) == (3, "more")


def test_a_start_up_is_measured_from_the_wish_to_the_readiness(fleet: StoreFleet, store: Store) -> None:
    """Start-up time is measured from the request for the worker that becomes ready, even if another request is withdrawn."""
    fleet.observe()
    for target in (0, 2, 1):
        fleet.publish(target, "because")
    began = time.monotonic()
    time.sleep(0.2)
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process.this()))
    assert 0.2 <= fleet.observe().startup_s <= time.monotonic() - began + 1


def test_what_nobody_wished_for_is_not_measured(fleet: StoreFleet, store: Store) -> None:
    """A deploy's first worker and a dead worker's successor were not requested, so only their loading time is known."""
    began = time.time()
    _came_up(store, after_s=50)
    fleet.observe()
    fleet.publish(1, "because")
    _came_up(store, after_s=50)
    passed_s = time.time() - began
    assert 50 - 0.1 <= fleet.observe().startup_s <= 50 + passed_s + 0.1


def test_a_wish_is_not_fulfilled_by_a_load_that_was_under_way_already(fleet: StoreFleet, store: Store) -> None:
    """A worker that was already loading does not count as the one that was requested later."""
    began = time.time()
    fleet.observe()
    fleet.publish(1, "because")
    successor = store.load_attempts.begin("m", "d", Process.this())
    with store.database.write() as connection:
        connection.execute(loads.update().where(loads.c.id == successor).values(began_at=loads.c.began_at - 50))
    fleet.publish(2, "because")
    store.load_attempts.succeeded(successor)
    passed_s = time.time() - began
    assert 50 - 0.1 <= fleet.observe().startup_s <= 50 + passed_s + 0.1
    store.load_attempts.succeeded(store.load_attempts.begin("m", "d", Process.this()))
    assert 0 < fleet.observe().startup_s < 40


def _came_up(store: Store, after_s: float) -> None:
    load = store.load_attempts.begin("m", "d", Process.this())
    with store.database.write() as connection:
        connection.execute(loads.update().where(loads.c.id == load).values(began_at=loads.c.began_at - after_s))
    store.load_attempts.succeeded(load)
