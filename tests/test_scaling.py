"""The autoscaling decision, rule by rule, and the policy that must never make Serve's controller wait."""

import math
import threading
import time
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import ScalingArgs
from serve_app.scaling import WINDOWS, Decision, Observation, QueuePolicy, decide
from tests.helpers import eventually

BOUNDS = ScalingArgs(min_workers=0, max_workers=10, target_wait_s=60, idle_s=300)
QUIET = ((0, 0.0),) * WINDOWS


def seen(**values: Any) -> Observation:
    """An idle model, but for what is given."""
    idle: dict[str, Any] = {
        "queued_jobs": 0,
        "queued_work_s": 0.0,
        "oldest_wait_s": 0.0,
        "running_jobs": 0,
        "running_left_s": 0.0,
        "ready_s": (),
        "startup_s": 60.0,
        "arrivals": QUIET,
        "idle_s": math.inf,
    }
    return Observation(**(idle | values))


def busy(jobs: int, work_s: float, **values: Any) -> Observation:
    """So many jobs waiting, with so much work."""
    return seen(queued_jobs=jobs, queued_work_s=work_s, idle_s=0.0, **values)


def test_a_burst_brings_many_workers_at_once():
    """From zero: as many as get through the backlog in the accepted wait."""
    found = decide(busy(40, 360.0), BOUNDS, Decision(0, ""))
    assert found.target == 6
    assert "360 s of work in 40 jobs" in found.reason


def test_one_job_needs_one_worker_however_long_it_is():
    """Two workers cannot share a job."""
    assert decide(busy(1, 3600.0), BOUNDS, Decision(0, "")).target == 1


def test_the_bill_is_bounded_and_the_reason_says_so():
    """max_workers holds whatever waits."""
    found = decide(busy(1000, 1e6), BOUNDS, Decision(3, ""))
    assert (found.target, "max_workers is 10" in found.reason) == (10, True)


def test_nothing_to_do_for_long_means_the_warm_pool_only():
    """After idle_s without work min_workers are kept: none, or as many as are asked for."""
    assert decide(seen(), BOUNDS, Decision(5, "")).target == 0
    warm = BOUNDS.model_copy(update={"min_workers": 2})
    assert decide(seen(), warm, Decision(5, "")).target == 2


def test_an_open_breaker_beats_everything():
    """No worker is wanted, with work waiting and a warm pool asked for."""
    warm = BOUNDS.model_copy(update={"min_workers": 2})
    found = decide(busy(9, 900.0, breaker="3 loads failed"), warm, Decision(4, "", 4))
    assert (found.target, "3 loads failed" in found.reason) == (0, True)


def test_a_worker_that_has_just_come_up_is_not_thrown_away():
    """When the work went away during its start, it stays for a while."""
    found = decide(seen(ready_s=(1.0,), idle_s=10.0), BOUNDS, Decision(1, ""))
    assert found.target == 1
    later = decide(seen(ready_s=(50.0,), idle_s=60.0), BOUNDS, Decision(1, ""))
    assert later.target == 0


def test_a_worker_leaves_only_when_two_looks_can_do_without_it():
    """A moment between two jobs is no reason to end a worker."""
    first = decide(seen(idle_s=1.0), BOUNDS, Decision(3, "", 3))
    assert first.target == 3
    assert decide(seen(idle_s=2.0), BOUNDS, first).target == 0


@given(
    jobs=st.integers(0, 500),
    work_s=st.floats(0, 1e6),
    running=st.integers(0, 50),
    have=st.integers(0, 10),
    least=st.integers(0, 10),
    breaker=st.sampled_from([None, "open"]),
)
def test_bounds_always_hold(jobs: int, work_s: float, running: int, have: int, least: int, breaker: str | None):
    """Between min_workers and max_workers, or zero behind an open breaker, and always with a reason."""
    bounds = BOUNDS.model_copy(update={"min_workers": least})
    observed = seen(queued_jobs=jobs, queued_work_s=work_s if jobs else 0.0, running_jobs=running, breaker=breaker)
    found = decide(observed, bounds, Decision(have, "", have))
    assert found.target == 0 if breaker else least <= found.target <= bounds.max_workers
    assert found.reason


@given(work_s=st.floats(1, 1e5), more_s=st.floats(0, 1e5))
def test_more_work_never_means_fewer_workers(work_s: float, more_s: float):
    """The target grows with the backlog."""
    less, more = (decide(busy(100, work), BOUNDS, Decision(0, "")).target for work in (work_s, work_s + more_s))
    assert less <= more


# --- The policy -------------------------------------------------------------------------------------------------------

RELEASE = threading.Event()


class Hanging:
    """A store that answers once and then hangs until the test is over."""

    def __init__(self) -> None:
        self.asked = 0

    def observe(self) -> Observation:
        self.asked += 1
        if self.asked > 1:
            RELEASE.wait(30)
        return busy(40, 240.0)

    def publish(self, target: int, reason: str) -> None:
        PUBLISHED.append((target, reason))

    def close(self) -> None:
        CLOSED.set()


PUBLISHED: list[tuple[int, str]] = []
CLOSED = threading.Event()


def open_hanging(bounds: ScalingArgs) -> Hanging:
    return Hanging()


def open_nothing(bounds: ScalingArgs) -> Hanging:
    raise ConnectionError("no database")


def context(target: int = 0) -> Any:
    return SimpleNamespace(target_num_replicas=target)


def test_a_store_that_hangs_never_makes_the_controller_wait():
    """The last decision stands, every answer comes at once, and the thread ends with its policy."""
    answer_ms = _ask_a_policy_whose_store_hangs()
    print(f"an answer of the policy takes {answer_ms:.4f} ms while its store hangs")
    RELEASE.set()
    assert CLOSED.wait(30)


def _ask_a_policy_whose_store_hangs() -> float:
    policy = QueuePolicy(BOUNDS.model_dump(), "tests.test_scaling:open_hanging", {}, period_s=0.01)
    eventually(lambda: policy(context())[0] == 4)
    began = time.perf_counter()
    assert {policy(context())[0] for _ in range(1000)} == {4}
    assert PUBLISHED[0][0] == 4
    return time.perf_counter() - began  # seconds for a thousand: milliseconds for one


def test_a_store_that_is_away_leaves_the_fleet_as_it_is():
    """Before the first answer the present number stays, and the reason names the trouble."""
    policy = QueuePolicy(BOUNDS.model_dump(), "tests.test_scaling:open_nothing", {}, period_s=0.01)
    eventually(lambda: "no database" in policy(context(3))[1]["reason"])
    assert policy(context(3))[0] == 3
