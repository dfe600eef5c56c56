"""The simulated fleet of benchmarks/fleet.py, at a small scale: its accounts are right, and the policy costs less than others."""

import pytest

from benchmarks import fleet
from benchmarks.fleet import Load, Outcome, Policy, QueueDelay, RequestCount, ServeDefault, Simulation, Sophia


def run(load: Load, policy: Policy) -> Outcome:
    return Simulation(load, policy).run()


def test_one_job_is_paid_for_from_the_start_of_its_worker() -> None:
    """A worker that starts, works and leaves costs its start-up, its job and the look that ends it, no more."""
    load = Load("one job", [0.0], [60.0], [60.0], [0.0, 60.0])
    found = run(load, RequestCount(1, 5))
    start_s = found.p95_s - fleet.TICK_S
    assert fleet.STARTUP_S[0] <= start_s <= fleet.STARTUP_S[1]
    assert found.starts == 1
    assert found.cost * 60 == pytest.approx(start_s + 60, abs=fleet.TICK_S)


def test_the_same_seed_gives_the_same_outcome() -> None:
    """Nothing in it depends on the moment."""
    assert run(fleet.bursts(4), Sophia(60)) == run(fleet.bursts(4), Sophia(60))


@pytest.mark.parametrize(
    "load", [fleet.poisson(8, 6), fleet.bursts(5), fleet.day_and_night(20, hours=6)], ids=lambda load: load.name
)
def test_it_costs_less_at_the_same_wait(load: Load) -> None:
    """Beside Ray Serve's defaults and RunPod's queue delay of 4 s: cheaper at their 95th percentile of wait."""
    ours = fleet.frontier(run(load, Sophia(wait)) for wait in (1, 10, 80, 220))
    serve = run(load, ServeDefault())
    runpod = run(load, QueueDelay(4, 5))
    for other in (serve, runpod):
        cost = fleet.cost_at(ours, other.p95_s)
        assert cost is not None
        assert cost < other.cost
