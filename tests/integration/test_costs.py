"""Accounting of device time and songs, on both databases."""

import pytest

from serve_app.jobs import WorkerPhase
from serve_app.processes import Process
from serve_app.store import Store, WorkerRow
from serve_app.store.tables import device_hours, owner_hours
from tests.support.queue import claim, finish, submit


def worker(name: str, model: str = "m") -> WorkerRow:
    return WorkerRow(id=name, model=model, node="n", process=Process.this(), device="cuda", phase=WorkerPhase.IDLE)


def test_device_time_adds_up_by_use_and_costs_its_price(store: Store) -> None:
    """Device time of several workers adds up by use, and each hour costs the price that its worker reported."""
    store.costs.add_device_time(worker("a"), {"loading": 60, "idle": 30}, 2.0)
    store.costs.add_device_time(worker("a"), {"idle": 30, "generating": 3600}, 2.0)
    store.costs.add_device_time(worker("b"), {"generating": 1800}, 1.0)
    store.costs.add_device_time(worker("c", "other"), {"idle": 5}, 1.0)
    use = store.costs.accounts(1)["m"].use
    assert (use.loading_s, use.idle_s, use.generating_s, use.total_s) == (60, 60, 5400, 5520)
    assert use.cost == pytest.approx(2.0 * 3720 / 3600 + 0.5)
    assert use.generating_cost == pytest.approx(2.5)
    assert store.costs.workers(1)["m", "n", "b"].cost == pytest.approx(0.5)
    assert set(store.costs.accounts(1)) == {"m", "other"}


def test_songs_and_wasted_attempts_are_on_their_owners_accounts(store: Store) -> None:
    """Finished jobs and attempts without a song are charged to their own API keys."""
    submit(store, owner="studio", duration=30.0, variations=2)
    lost = claim(store)
    store.claims.charge(lost, 3.0)
    finish(store, lost, gpu_s=5.0)
    submit(store, owner="label", duration=10.0)
    store.claims.charge(claim(store), 2.0)
    label, studio = store.costs.owners(1)
    assert (studio.owner, studio.songs, studio.audio_s, studio.gpu_s, studio.wasted_s) == ("studio", 2, 60.0, 5.0, 3.0)
    assert (label.owner, label.songs, label.gpu_s, label.wasted_s) == ("label", 0, 0.0, 2.0)
    assert store.jobs.get(lost.id).gpu_s == 8.0


def test_a_song_costs_its_part_of_loading_and_idling_and_deleting_it_gives_nothing_back(store: Store) -> None:
    """Songs bear their share of loading, idling and failed attempts, and deleting a song refunds nothing."""
    store.costs.add_device_time(worker("a"), {"loading": 100, "idle": 200, "generating": 700}, 3.6)
    job = submit(store)
    _ = submit(store)
    finish(store, claim(store), gpu_s=300.0)
    finish(store, claim(store), gpu_s=330.0)
    store.jobs.delete(job.id)
    account = store.costs.accounts(1)["m"]
    assert account.songs == 2
    assert account.per_song == pytest.approx(0.5)
    assert account.use.loading_cost == pytest.approx(0.1)
    assert account.no_song_cost == pytest.approx(0.07)


def test_nothing_is_published_and_nothing_counted_when_the_claim_is_gone(store: Store) -> None:
    """A worker that was declared dead publishes no song and adds none to the accounts."""
    submit(store)
    stale = claim(store)
    store.claims.release("w")
    assert not finish(store, stale)
    assert store.costs.owners(1) == []


def test_hours_are_a_window_and_old_ones_are_forgotten(store: Store) -> None:
    """Device time of five hours ago is within the last six hours, not the last five, and is removed when it is too old."""
    store.costs.add_device_time(worker("a"), {"idle": 10}, 1.0)
    submit(store)
    finish(store, claim(store))
    with store.database.write() as connection:
        for table in (device_hours, owner_hours):
            connection.execute(table.update().values(hour=table.c.hour - 5))
    assert store.costs.accounts(5) == {}
    assert store.costs.accounts(6)["m"].songs == 1
    store.costs.forget(older_s=6 * 3600)
    assert store.costs.accounts(6)["m"].songs == 1
    store.costs.forget(older_s=4 * 3600)
    assert (store.costs.accounts(6), store.costs.owners(6)) == ({}, [])
