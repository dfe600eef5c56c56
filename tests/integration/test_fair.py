"""Owners take turns, in seconds of audio, whatever clients ask for and whatever fails."""

import random
import threading
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from serve_app.config import AppArgs
from serve_app.jobs import Job, Status
from serve_app.ops.cli import main
from serve_app.store import Store
from serve_app.store import places as places_module
from serve_app.store.places import Place
from tests.support.queue import claim, finish, lose_lease, submit


def owners_in_turn(store: Store, most: int = 1000) -> list[str]:
    """The owners of the next jobs, in the order in which they are claimed."""
    return [job.owner for job in claimed_in_turn(store, most)]


def claimed_in_turn(store: Store, most: int = 1000) -> list[Job]:
    found: list[Job] = []
    while len(found) < most and (job := store.claims.take("w", "m", 60)):
        found.append(job)
    return found


@pytest.mark.fault("A4")
def test_no_key_overtakes_others_by_its_priority(store: Store) -> None:
    """Twenty jobs of priority 9 from one key take turns with another key's two."""
    for _ in range(2):
        submit(store, "b")
    for _ in range(20):
        submit(store, "a", priority=9)
    assert sorted(owners_in_turn(store, 4)) == ["a", "a", "b", "b"]


def test_priority_orders_an_owners_own_jobs(store: Store) -> None:
    """The most urgent of one's own starts when one's turn comes."""
    for _ in range(2):
        submit(store, "b")
    low = submit(store, "a", priority=2)
    high = submit(store, "a", priority=8)
    assert [job.id for job in claimed_in_turn(store) if job.owner == "a"] == [high.id, low.id]


def test_a_key_that_outranks_is_ordered_among_all_by_its_priorities(store: Store) -> None:
    """Above 5 its jobs start before everybody's, below 5 after them."""
    store.keys.create("radio", outranks=True)
    for priority in (1, 9):
        submit(store, "radio", priority=priority)
        submit(store, "b", priority=priority)
    assert owners_in_turn(store) == ["radio", "b", "b", "radio"]


def test_the_list_of_keys_shows_which_outrank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sophia keys create --outranks` makes such a key, and `keys list` says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOPHIA_DATA_DIR", str(tmp_path))
    Store(AppArgs().resolved_database_url).migrate()
    assert main(["keys", "create", "radio", "--outranks"]) == 0
    assert main(["keys", "create", "studio"]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    radio, studio = capsys.readouterr().out.splitlines()
    assert radio.endswith("\toutranks others")
    assert "outranks" not in studio


@pytest.mark.fault("A4")
def test_a_job_that_comes_back_changes_nothing_for_newcomers(store: Store) -> None:
    """It goes first, for its turn has been paid for; from then on two owners share the device's time alike."""
    for _ in range(10):
        submit(store, "a", duration=600)
    running = [claim(store, f"w{number}") for number in range(5)]
    store.claims.release(str(running[-1].worker))
    for _ in range(40):
        submit(store, "b", duration=60)
    order = claimed_in_turn(store, 33)
    assert order[0].id == running[-1].id
    assert Counter(job.owner for job in order) == {"a": 3, "b": 30}


def test_a_lost_job_gives_its_turn_back(store: Store) -> None:
    """Nothing was played for its owner, so the owner is served as if it had never been claimed."""
    for owner in ("a", "a", "b", "b"):
        submit(store, owner, duration=60)
    lose_lease(store, claim(store))
    store.time_limits.enforce(3600)
    assert owners_in_turn(store) == ["a", "b", "a", "b"]


@pytest.mark.fault("A4")
def test_an_empty_queue_does_not_reset_the_turns(store: Store) -> None:
    """An owner whose long song has just finished comes after other owners, even if the queue was empty in between."""
    submit(store, "a", duration=600)
    finish(store, claim(store))
    submit(store, "a", duration=60)
    submit(store, "b", duration=60)
    assert owners_in_turn(store) == ["b", "a"]


@pytest.mark.fault("A4")
@pytest.mark.parametrize("end", ["cancel", "delete", "expire"])
def test_a_job_that_leaves_the_queue_costs_nothing(store: Store, end: str) -> None:
    """What was never played is not charged: its owner's next job waits no longer for it."""
    for _ in range(12):
        submit(store, "b", duration=60)
    long = submit(store, "a", duration=600)
    submit(store, "a", duration=60)
    if end == "cancel":
        store.jobs.cancel(long.id)
    elif end == "delete":
        store.jobs.delete(long.id)
    else:
        _pass_deadline(store, long)
    assert "a" in owners_in_turn(store, 2)


def _pass_deadline(store: Store, job: Job) -> None:
    with store.database.write() as connection:
        connection.execute(sa.text("UPDATE jobs SET deadline_at = 0 WHERE id = :id"), {"id": job.id})
    store.time_limits.enforce(3600)


@pytest.mark.fault("A4")
def test_jobs_that_are_sent_at_once_share_no_turn(store: Store) -> None:
    """Forty-eight jobs, sent sixteen at a time, take turns with another owner's twenty."""
    for _ in range(20):
        submit(store, "polite")
    together = threading.Barrier(16)

    def flood() -> None:
        for _ in range(3):
            together.wait(60)
            submit(store, "flood")

    threads = [threading.Thread(target=flood) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(owners_in_turn(store, 24)) == {"polite": 12, "flood": 12}


# --- Places -----------------------------------------------------------------------------------------------------------


def test_a_place_is_where_the_job_is_claimed(store: Store) -> None:
    """For owners with songs of any length and priority: the n-th place is the n-th claim, and its seconds are those before it."""
    chance = random.Random(8)
    store.keys.create("radio", outranks=True)
    for _ in range(120):
        owner = chance.choice(["a", "b", "b", "c", "radio"])
        submit(store, owner, duration=chance.choice([10, 30, 60, 200]), priority=chance.randint(0, 9))
    running = claimed_in_turn(store, 20)
    queued = store.jobs.page(states=[Status.QUEUED], limit=200)
    told = store.backlog.places(queued)
    seconds = sum(job.audio_seconds for job in running)
    for number, job in enumerate(claimed_in_turn(store)):
        assert (job.id, told[job.id].ahead) == (job.id, number)
        assert told[job.id].audio_s == pytest.approx(seconds)
        seconds += job.audio_seconds


@pytest.mark.fault("A11")
def test_a_position_far_back_is_reported_without_counting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """From FAR on, the position says only that at least FAR jobs of all owners are before it."""
    monkeypatch.setattr(places_module, "FAR", 10)
    monkeypatch.setattr(places_module, "_FAR_BACK", Place(10, None))
    for _ in range(12):
        submit(store, "a")
        submit(store, "b")
    told = store.backlog.places(store.jobs.page(states=[Status.QUEUED]))
    assert Counter(place.ahead for place in told.values()) == {**dict.fromkeys(range(10), 1), 10: 14}
    assert {place.audio_s is None for place in told.values() if place.ahead == 10} == {True}


# --- Migration --------------------------------------------------------------------------------------------------------


def test_the_migration_keeps_the_order_of_what_is_queued(database_url: str) -> None:
    """What an earlier version queued is claimed in the order that it had; the shares are those of a recount."""
    store = Store(database_url)
    _migrate_to(store, "0008")
    base: dict[str, object] = {
        "model": "m",
        "priority": 5,
        "audio_seconds": 60.0,
        "deadline_at": 4e9,
        "attempt": 0,
        "max_attempts": 3,
    }
    request = '{"prompt": "piano", "model": "m", "seed": 1}'
    rows: list[dict[str, object]] = [
        {"id": "1", "owner": "a", "turn": 600.0, "state": "queued", "worker": None},
        {"id": "2", "owner": "b", "turn": 630.0, "state": "queued", "worker": None},
        {"id": "3", "owner": "a", "turn": 660.0, "state": "queued", "worker": None},
        {"id": "4", "owner": "b", "turn": 690.0, "state": "queued", "worker": "lost"},
        *(
            {"id": state, "owner": "a", "turn": 0.0, "state": state, "worker": "w"}
            for state in Status
            if state != "queued"
        ),
    ]
    columns = "id owner model state priority turn request audio_seconds created_at deadline_at attempt max_attempts worker version"
    earlier = sa.table("jobs", *map(sa.column, columns.split()))
    with store.database.write() as connection:
        for number, row in enumerate(rows):
            values = {**base, **row, "request": request, "created_at": 1e9 + number, "version": 1}
            connection.execute(earlier.insert().values(values))
    store.migrate()
    assert not store.backlog.recount()
    submit(store, "c", duration=60)  # a newcomer starts where the head of the queue is
    assert [job.id for job in claimed_in_turn(store) if job.owner != "c"] == ["1", "2", "3", "4"]
    assert store.jobs.cancel("running").status is Status.CANCELLED
    store.close()


def _migrate_to(store: Store, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "serve_app.store:migrations")
    config.set_main_option("path_separator", "os")
    with store.database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
