"""The simulated fleet of benchmarks/fleet.py, at a small scale: its accounting is right, and the policy costs less than others."""

import pytest

from benchmarks.fleet_arrivals import Load, bursts, day_and_night, poisson
from benchmarks.fleet_comparison import cost_at, frontier
from benchmarks.fleet_policies import QueueDelay, RequestCount, ServeDefault, Sophia
from benchmarks.fleet_simulation import STARTUP_S, TICK_S, Outcome, Policy, Simulation


def run(load: Load, policy: Policy) -> Outcome:
    return Simulation(load, policy).run()


def test_one_job_is_paid_for_from_the_start_of_its_worker() -> None:
    """A worker that starts, works and leaves costs its start-up, its job and at most one more tick."""
    load = Load("one job", [0.0], [60.0], [60.0], [0.0, 60.0])
    found = run(load, RequestCount(1, 5))
    start_s = found.p95_s - TICK_S
    assert STARTUP_S[0] <= start_s <= STARTUP_S[1]
    assert found.starts == 1
    assert found.cost * 60 == pytest.approx(start_s + 60, abs=TICK_S)


def test_the_same_seed_gives_the_same_outcome() -> None:
    """Two runs of the simulation with the same seed give the same outcome."""
    assert run(bursts(4), Sophia(60)) == run(bursts(4), Sophia(60))


@pytest.mark.parametrize("load", [poisson(8, 6), bursts(5), day_and_night(20, hours=6)], ids=lambda load: load.name)
def test_it_costs_less_at_the_same_wait(load: Load) -> None:
    """Sophia costs less than Ray Serve's defaults and RunPod's queue delay of 4 s at the same 95th percentile of wait."""
    ours = frontier(run(load, Sophia(wait)) for wait in (1, 10, 80, 220))
    serve = run(load, ServeDefault())
    runpod = run(load, QueueDelay(4, 5))
    for other in (serve, runpod):
        cost = cost_at(ours, other.p95_s)
        assert cost is not None
        assert cost < other.cost
