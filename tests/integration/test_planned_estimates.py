"""Planning in a job's times, in the costs, in the estimated wait, and in the work that the scaling policy sees."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from serve_app.config import BreakerArgs, ScalingArgs, planner_stage
from serve_app.scaling.observation import StoreFleet
from serve_app.store import Store
from serve_app.worker import plan_claims
from serve_app.worker.claims import Claim
from serve_app.worker.plan_claims import SharedDeviceTime
from tests.support.helpers import eventually
from tests.support.queue import claim, claim_plan, finish, submit, submit_unplanned
from tests.support.running import Service, running, simulated

BOUNDS = ScalingArgs(min_workers=0, max_workers=4, work_prior=0.2)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose worker plans one job at a time, 0.1 s for a second of music."""
    planner = {"source": "simulated", "jobs_at_once": 1}
    model = simulated(planner=planner, simulated={"step_s": 0.001, "plan_s": 0.1}, price_per_hour=1.0)
    with running(tmp_path_factory.mktemp("estimates"), {"ace-step": model}) as service:
        yield service


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds as the shared device time sees it."""
    seconds = [0.0]
    monkeypatch.setattr(plan_claims, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def test_a_jobs_times_show_its_planning(service: Service) -> None:
    """The wait for a planner, the planning and its device time; all of it before the song began, and in `gpu_s`."""
    planned = service.ended(service.submit(thinking="codes", steps=1)["id"])
    plain = service.ended(service.submit(steps=1)["id"])
    again = service.ended(service.submit(plan=f"job:{planned['id']}", steps=1, duration=None)["id"])

    timing = planned["timing"]
    assert timing["plan_s"] >= 0.2
    assert timing["plan_queued_s"] + timing["plan_s"] <= timing["queued_s"] + 0.01
    assert 0 < timing["plan_gpu_s"] <= timing["plan_s"] + 0.01
    assert planned["gpu_s"] == pytest.approx(timing["gpu_s"] + timing["plan_gpu_s"], abs=0.01)
    for other in (plain, again):
        assert [other["timing"][name] for name in ("plan_queued_s", "plan_s", "plan_gpu_s")] == [None] * 3


def test_the_wait_of_a_song_includes_its_planning(service: Service) -> None:
    """A job behind another that is planned waits for both plans; once a job is planned, only songs count."""
    service.ended(service.submit(thinking="codes", steps=1)["id"])
    first = service.submit(thinking="codes", duration=300)["id"]
    second = service.submit(thinking="codes", duration=20)["id"]
    plain = service.submit(steps=1, priority=1)["id"]
    eventually(lambda: service.job(first)["plan"]["state"] == "planning")
    planned_eta_s = service.job(second)["eta_s"]
    ended = service.ended(plain)
    for job in (first, second):
        service.client.post(f"/v1/jobs/{job}/cancel")
    plan_speed = service.store.plans.speed("ace-step") or 0.0

    assert plan_speed == pytest.approx(0.1, rel=0.5)
    assert (planned_eta_s or 0) >= 0.9 * 320 * plan_speed
    assert ended["state"] == "succeeded"


def test_songs_and_plans_share_the_devices_time(sqlite_store: Store, clock: list[float]) -> None:
    """Beside a song, two plans have a quarter of the time each and the song half; alone each has all of it."""
    submit(sqlite_store)
    song = Claim(claim(sqlite_store))
    device = SharedDeviceTime()

    device.begin(("one", 1))
    clock[0] = 10.0
    with device.beside_song(song):
        clock[0] = 14.0
        device.begin(("two", 1))
        clock[0] = 22.0
        second_s = device.end(("two", 1))
        first_s = device.end(("one", 1))
        clock[0] = 30.0

    assert (first_s, second_s) == (10 + 2 + 2, 2)
    assert song.planning_s == 2 + 4
    assert first_s + second_s + (20 - song.planning_s) == 30


def test_the_policy_counts_plans_as_work(sqlite_store: Store) -> None:
    """A queue of planned songs is the work of songs and plans, at the measured speed of each; arrivals, too."""
    fleet = StoreFleet(sqlite_store, "m", "d", BOUNDS, BreakerArgs())
    submit_unplanned(sqlite_store, duration=10.0)
    before = fleet.observe()
    sqlite_store.plans.publish(claim_plan(sqlite_store), {"caption": "x"}, gpu_s=5.0)
    finish(sqlite_store, claim(sqlite_store), gpu_s=1.0)
    submit_unplanned(sqlite_store, duration=30.0)
    submit_unplanned(sqlite_store, duration=30.0)
    submit(sqlite_store, duration=40.0)
    waiting = fleet.observe()
    claim_plan(sqlite_store)
    planning = fleet.observe()

    assert before.queued_work_s == pytest.approx(10 * 0.2 * 2)
    assert waiting.queued_work_s == pytest.approx(100 * 0.1 + 60 * 0.5)
    assert planning.queued_work_s == waiting.queued_work_s
    assert waiting.arrivals[0] == pytest.approx((4, 110 * 0.1 + 70 * 0.5))


def test_workers_that_do_not_plan_have_no_work_with_plans(sqlite_store: Store) -> None:
    """Where processes of their own make the plans, a model's workers only render."""
    fleet = StoreFleet(sqlite_store, "m", "d", BOUNDS, BreakerArgs())
    submit_unplanned(sqlite_store, duration=10.0)
    sqlite_store.decisions.publish(planner_stage("m"), 1, "one plan waits")

    seen = fleet.observe()

    assert seen.queued_work_s == pytest.approx(10 * 0.2)
    assert seen.arrivals[0] == pytest.approx((1, 10 * 0.2))
