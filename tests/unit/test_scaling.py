"""The autoscaling policy's decision: each rule, and what holds for every observation."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.config import ScalingArgs
from serve_app.scaling.policy import WINDOWS, Decision, Observation, decide
from tests.support.scaling import BOUNDS, NOTHING, waiting

STEADY = ((40, 2400.0),) * WINDOWS  # eight workers' work, all the time
AT_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
BURST = ((240, 14400.0),) + ((0, 0.0),) * (WINDOWS - 1)  # as much, all at once


# --- The rules ------------------------------------------------------------------------------------------------------------


def test_a_burst_at_zero_workers_wants_all_of_them_at_once() -> None:
    """2,000 s of work that may wait 100 s need 20 workers, from none, in one step."""
    decision = decide(waiting(40, 2000.0), BOUNDS, Decision(0, ""))
    assert decision.target == 20
    assert decision.reason == (
        "2000 s of work in 40 jobs (40 waiting): 20 workers for a wait of about 100 s (target_wait_s); "
        "one more takes 100 s to start"
    )


def test_work_counts_in_seconds() -> None:
    """Forty short songs need fewer workers than forty long ones."""
    assert decide(waiting(40, 400.0), BOUNDS, Decision(0, "")).target == 4


def test_a_job_never_gets_two_workers() -> None:
    """Three long jobs get at most three workers, however long they are."""
    decision = decide(waiting(3, 5000.0), BOUNDS, Decision(0, ""))
    assert decision.target == 3
    assert "one per job" in decision.reason


def test_the_bill_is_bounded() -> None:
    """More work than max_workers can do in time gets max_workers, and the reason names that limit."""
    decision = decide(waiting(400, 20_000.0), BOUNDS, Decision(0, ""))
    assert decision.target == 50
    assert decision.reason.endswith("max_workers is 50")


def test_workers_at_work_stay_while_jobs_wait() -> None:
    """Ten busy workers with a short queue all stay, since a busy worker costs nothing extra."""
    seen = waiting(2, 20.0, running_jobs=10, running_left_s=100.0)
    assert decide(seen, BOUNDS, Decision(10, "", needed=10)).target == 10


def test_a_queue_that_is_being_dealt_with_starts_nobody() -> None:
    """No worker is started while present and starting workers get through the queue in time."""
    queue = waiting(40, 2400.0, running_jobs=10, running_left_s=300.0, arrivals=STEADY)
    assert decide(queue, BOUNDS, Decision(10, "")).target == 22
    assert decide(queue, BOUNDS, Decision(22, "")).target == 22
    assert decide(replace(queue, running_jobs=22), BOUNDS, Decision(22, "")).target == 22


def test_a_load_that_grows_starts_workers_ahead() -> None:
    """The same queue wants more workers when more jobs come every five minutes."""
    growing = tuple((40 + 15 * step, 2400.0 + 900.0 * step) for step in (2.5, 1.5, 0.5, -0.5, -1.5, -2.5))
    steady, grows = (
        decide(waiting(10, 1200.0, running_jobs=8, arrivals=arrivals), BOUNDS, Decision(8, "")).target
        for arrivals in (STEADY, growing)
    )
    assert (steady, grows) == (12, 18)


def test_under_a_steady_load_some_leave_a_little_earlier() -> None:
    """With half an hour of steady work, a queue far below the accepted wait is enough for fewer workers."""
    seen = waiting(10, 600.0, running_jobs=20, running_left_s=800.0, arrivals=STEADY)
    assert decide(seen, BOUNDS, Decision(20, "", needed=0)).target < 20


def test_running_jobs_keep_their_workers() -> None:
    """With nothing waiting, every running job has its worker, and no more are wanted."""
    seen = replace(NOTHING, running_jobs=5, running_left_s=20.0)
    assert decide(seen, BOUNDS, Decision(8, "", needed=5)).target == 5


def test_a_worker_leaves_only_when_two_decisions_can_do_without_it() -> None:
    """The moment between two jobs removes no worker."""
    first = decide(replace(NOTHING, running_jobs=4, running_left_s=1.0), BOUNDS, Decision(5, "", needed=5))
    assert (first.target, first.needed, first.reason) == (5, 4, "5 workers needed a moment ago")
    second = decide(replace(NOTHING, running_jobs=4, running_left_s=1.0), BOUNDS, first)
    assert second.target == 4


def test_a_steady_load_keeps_workers_through_a_lull() -> None:
    """After half an hour of eight workers' work, a lull does not end them, and the reason says what starting one costs."""
    lull = replace(NOTHING, arrivals=STEADY, running_jobs=6)
    decision = decide(lull, BOUNDS, Decision(12, ""))
    assert 8 <= decision.target < 12
    assert decision.reason.startswith("a steady load of 8.0 workers; starting one takes 100 s")


def test_idle_workers_tell_at_once_that_a_load_has_fallen() -> None:
    """When far fewer jobs run than the load of the half hour before, fewer workers are kept."""
    targets = [
        decide(replace(NOTHING, arrivals=STEADY, running_jobs=running), BOUNDS, Decision(12, "")).target
        for running in (7, 4, 1)
    ]
    assert targets == sorted(set(targets), reverse=True)


def test_a_steady_load_starts_no_worker() -> None:
    """It keeps those that are there; only work brings new ones."""
    assert decide(replace(NOTHING, arrivals=STEADY, running_jobs=3), BOUNDS, Decision(3, "")).target == 3


def test_a_burst_keeps_nobody() -> None:
    """The same work in one go is no steady load: its workers leave when it is done."""
    assert decide(replace(NOTHING, arrivals=BURST, idle_s=20.0), BOUNDS, Decision(12, "")).target == 0


def test_a_load_that_falls_keeps_fewer() -> None:
    """When each window brought less than the one before, what the next one will bring counts."""
    falling = tuple((count, count * 60.0) for count in (10, 22, 34, 46, 58, 70))
    kept = [
        decide(replace(NOTHING, arrivals=arrivals, running_jobs=3), BOUNDS, Decision(12, "")).target
        for arrivals in (STEADY, falling)
    ]
    assert kept[1] < kept[0]


def test_the_longer_a_job_may_wait_the_fewer_are_kept() -> None:
    """Where a worker can be started in time, none is kept in reserve."""
    patient = BOUNDS.model_copy(update={"target_wait_s": 600})
    assert decide(replace(NOTHING, arrivals=STEADY, running_jobs=4), patient, Decision(12, "")).target < 8


def test_a_worker_that_has_just_come_up_is_not_thrown_away() -> None:
    """Two that came up seconds ago stay, though the work is gone; the one that is older than a quarter start-up does not."""
    decision = decide(replace(NOTHING, ready_s=(3.0, 20.0, 30.0), idle_s=5.0), BOUNDS, Decision(3, ""))
    assert decision.target == 2
    assert decision.reason == "keeping 2 workers for now, ready for less than 25 s"


def test_an_idle_fleet_goes_to_zero() -> None:
    """After idle_s without work nobody stays, whatever the load was before."""
    decision = decide(replace(NOTHING, arrivals=STEADY, ready_s=(1.0,), idle_s=300.0), BOUNDS, Decision(8, ""))
    assert (decision.target, decision.reason) == (0, "no work")


def test_a_warm_pool_stays() -> None:
    """min_workers are kept without any work."""
    warm = BOUNDS.model_copy(update={"min_workers": 2})
    decision = decide(replace(NOTHING, idle_s=9999.0), warm, Decision(2, ""))
    assert (decision.target, decision.reason) == (2, "min_workers is 2")


def test_an_open_breaker_beats_everything() -> None:
    """Neither work nor a warm pool starts workers of a model that cannot be loaded."""
    warm = BOUNDS.model_copy(update={"min_workers": 2})
    decision = decide(waiting(40, 2000.0, breaker="3 loads failed with disk_full"), warm, Decision(20, "", needed=20))
    assert decision.target == 0
    assert "3 loads failed with disk_full" in decision.reason


@pytest.mark.fault("E5")
def test_a_store_that_takes_no_songs_starts_no_more_workers() -> None:
    """However much waits, those that are there and the warm pool are enough to wait with; they stay, to go on at once."""
    seen = waiting(40, 2000.0, unstored="the audio store is full", ready_now=2)
    decision = decide(seen, BOUNDS, Decision(2, "", needed=2))
    assert decision.target == 2
    assert decision.reason.endswith("; no more workers are started while the audio store is full")


# --- What always holds ----------------------------------------------------------------------------------------------------

SECONDS = st.floats(0, 1e5)


@st.composite
def bounds_of_any_kind(draw: st.DrawFn) -> ScalingArgs:
    low = draw(st.integers(0, 20))
    return ScalingArgs(
        min_workers=low,
        max_workers=draw(st.integers(max(low, 1), 2000)),
        target_wait_s=draw(st.floats(0.1, 5000)),
        idle_s=draw(st.floats(0, 1000)),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    queued = draw(st.integers(0, 500))
    running = draw(st.integers(0, 500))
    return Observation(
        queued_jobs=queued,
        queued_work_s=draw(SECONDS) if queued else 0.0,
        running_jobs=running,
        running_left_s=draw(SECONDS) if running else 0.0,
        ready_s=tuple(draw(st.lists(SECONDS, max_size=20))),
        startup_s=draw(st.floats(0.01, 2000)),
        arrivals=tuple(draw(st.lists(st.tuples(st.integers(0, 500), SECONDS), min_size=WINDOWS, max_size=WINDOWS))),
        idle_s=0.0 if queued or running else draw(SECONDS),
        breaker=draw(st.sampled_from([None, None, "it cannot be loaded"])),
        unstored=draw(st.sampled_from([None, None, "the audio store is full"])),
        ready_now=draw(st.integers(0, 500)),
    )


DECISIONS = st.builds(Decision, st.integers(0, 2000), st.just(""), st.integers(0, 2000))


@AT_ANY_SPEED
@given(observations(), bounds_of_any_kind(), DECISIONS)
def test_the_bounds_hold(seen: Observation, bounds: ScalingArgs, previous: Decision) -> None:
    """Whatever is seen: an open breaker adds none; else between min_workers and max_workers. There is always a reason."""
    decision = decide(seen, bounds, previous)
    assert decision.reason
    if seen.breaker:
        assert decision.target <= (max(previous.target, seen.ready_now) if seen.ready_now else 0)
    else:
        assert bounds.min_workers <= decision.target <= bounds.max_workers


@AT_ANY_SPEED
@given(observations(), bounds_of_any_kind(), DECISIONS)
def test_only_work_or_the_warm_pool_starts_workers(seen: Observation, bounds: ScalingArgs, previous: Decision) -> None:
    """The target grows beyond what it was only for jobs, one worker each at the most, or to min_workers."""
    decision = decide(seen, bounds, previous)
    assert decision.target <= max(previous.target, seen.queued_jobs + seen.running_jobs, bounds.min_workers)


@AT_ANY_SPEED
@given(observations(), bounds_of_any_kind(), DECISIONS, st.floats(0, 1e5))
def test_more_work_never_means_fewer_workers(
    seen: Observation, bounds: ScalingArgs, previous: Decision, more_s: float
) -> None:
    """The target never falls when the jobs that wait are longer."""
    seen = replace(seen, queued_jobs=max(seen.queued_jobs, 1), idle_s=0.0)
    longer = replace(seen, queued_work_s=seen.queued_work_s + more_s)
    assert decide(longer, bounds, previous).target >= decide(seen, bounds, previous).target


@AT_ANY_SPEED
@given(observations(), bounds_of_any_kind(), DECISIONS)
def test_what_stays_the_same_settles(seen: Observation, bounds: ScalingArgs, previous: Decision) -> None:
    """Looking again and again at the same thing never makes the target go up and down."""
    targets = []
    for _ in range(6):
        previous = decide(seen, bounds, previous)
        targets.append(previous.target)
    assert targets[1:] in (sorted(targets[1:]), sorted(targets[1:], reverse=True))
