"""The policies that `benchmarks/fleet.py` compares, and the settings that it tries for each."""

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any, Final

from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    _core_replica_queue_length_policy,
    _get_cold_start_scale_up_replicas,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from benchmarks.fleet_simulation import MOST_WORKERS, TICK_S, Policy, Simulation
from serve_app.config import ScalingArgs
from serve_app.scaling.policy import WINDOW_S, WINDOWS, Decision, Observation, decide

_UNUSED: Final[dict[str, Any]] = dict.fromkeys(
    [
        *("deployment_id", "deployment_name", "app_name", "running_replicas", "total_queued_requests"),
        *("aggregated_metrics", "raw_metrics", "last_scale_up_time", "last_scale_down_time"),
    ]
)
"""The fields of Serve's context that its own policy does not read."""


class Sophia:
    """Sophia's own policy, the code that runs in Serve's controller. Its one setting here is the acceptable wait."""

    idle_timeout_s: float | None = None

    def __init__(self, target_wait_s: float) -> None:
        self._bounds = ScalingArgs(min_workers=0, max_workers=MOST_WORKERS, target_wait_s=target_wait_s)
        self._decision = Decision(0, "")

    def target(self, fleet: Simulation) -> int:
        self._decision = decide(observe(fleet), self._bounds, self._decision)
        return self._decision.target


def observe(fleet: Simulation) -> Observation:
    """The observation that the store would give of a simulated fleet."""
    return Observation(
        queued_jobs=len(fleet.queue),
        queued_work_s=max(0.0, fleet.queued_work_s),
        running_jobs=fleet.running_jobs,
        running_left_s=fleet.running_left_s,
        ready_s=tuple(_ages(fleet)),
        startup_s=fleet.startup_s,
        arrivals=_arrivals(fleet),
        idle_s=fleet.now - fleet.last_work_at,
    )


def _ages(fleet: Simulation) -> Iterator[float]:
    for worker in reversed(fleet.ready):
        if fleet.now - worker.ready_at > fleet.startup_s:
            return
        yield fleet.now - worker.ready_at


def _arrivals(fleet: Simulation) -> tuple[tuple[int, float], ...]:
    until = fleet.load.estimated_until
    edges = [fleet.arrived]
    for window in range(1, WINDOWS + 1):
        edges.append(bisect.bisect_left(fleet.load.times, fleet.now - window * WINDOW_S, 0, edges[-1]))
    return tuple((new - old, until[new] - until[old]) for new, old in pairwise(edges))


class ServeDefault:
    """Ray Serve's own policy: the functions of `ray.serve.autoscaling_policy`, combined as they are there, with a simulated clock.

    The simulation favours it: jobs start without the pauses of Serve's router, and any worker can take any job.
    """

    idle_timeout_s: float | None = None

    def __init__(self, ongoing: float = 2, up_s: float = 30, down_s: float = 600, look_back_s: float = 30) -> None:
        self._config = AutoscalingConfig(
            min_replicas=0,
            max_replicas=MOST_WORKERS,
            target_ongoing_requests=ongoing,
            upscale_delay_s=up_s,
            downscale_delay_s=down_s,
            look_back_period_s=look_back_s,
        )
        self._seen: deque[int] = deque(maxlen=round(look_back_s / TICK_S))
        self._state: dict[str, Any] = {}

    def target(self, fleet: Simulation) -> int:
        self._seen.append(fleet.jobs)
        context = self._context(fleet, sum(self._seen) / len(self._seen))
        cold: int | None = _get_cold_start_scale_up_replicas(context)
        if cold is not None:
            return cold
        desired, _ = _core_replica_queue_length_policy(context)
        wanted: int = _apply_scaling_factors(desired, context.current_num_replicas, self._config)
        if context.current_num_replicas == 0 and wanted > 0:
            return wanted
        wanted, self._state = _apply_delay_logic(
            max(0, wanted), fleet.target, self._config, self._state, _now=fleet.now
        )
        return wanted

    def _context(self, fleet: Simulation, requests: float) -> AutoscalingContext:
        return AutoscalingContext(
            current_num_replicas=len(fleet.ready),
            target_num_replicas=fleet.target,
            total_num_requests=requests,
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=MOST_WORKERS,
            policy_state=self._state,
            current_time=fleet.now,
            config=self._config,
            **_UNUSED,
        )


class RequestCount:
    """RunPod's request count: one worker for every `per_worker` jobs that wait or run."""

    def __init__(self, per_worker: float, idle_timeout_s: float) -> None:
        self._per_worker = per_worker
        self.idle_timeout_s: float | None = idle_timeout_s

    def target(self, fleet: Simulation) -> int:
        return math.ceil(fleet.jobs / self._per_worker)


class QueueDelay:
    """RunPod's queue delay: one more worker for each `delay_s` that the oldest job has waited, up to the number of jobs."""

    def __init__(self, delay_s: float, idle_timeout_s: float) -> None:
        self._delay_s = delay_s
        self.idle_timeout_s: float | None = idle_timeout_s

    def target(self, fleet: Simulation) -> int:
        if not fleet.queue:
            return 0
        waited_s = fleet.now - fleet.load.times[fleet.queue[0]]
        return min(max(1, fleet.running_jobs + math.floor(waited_s / self._delay_s)), fleet.jobs)


DEFAULTS: Final[dict[str, Callable[[], Policy]]] = {
    "Ray Serve, defaults": ServeDefault,
    "RunPod queue delay, 4 s": partial(QueueDelay, 4, 5),
    "RunPod request count, 1": partial(RequestCount, 1, 5),
    "RunPod request count, 4": partial(RequestCount, 4, 5),
}
"""The other policies with the defaults of their documentation. RunPod's workers leave after 5 s without a job."""

ACCEPTED_S: Final = (
    2,
    5,
    10,
    20,
    30,
    45,
    60,
    80,
    90,
    100,
    110,
    120,
    135,
    150,
    175,
    200,
    225,
    260,
    290,
    330,
    370,
    430,
    600,
)
"""Sophia's grid: the acceptable waits."""


def settings(fine: bool) -> dict[str, list[Callable[[], Policy]]]:
    """The grid of each policy. `fine` gives more points.

    The others have several times more points than Sophia, because Sophia is compared with the best of each.
    """
    idle_s: Sequence[float] = (5, 30, 60, 200, 600) if fine else (5, 60, 200)
    ratios: Sequence[float] = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 14)
    ratios = ratios if fine else [*ratios[:9], *ratios[10:12]]
    delays_s: Sequence[float] = (1, 4, 8, 15, 30, 60, 120, 240, 400) if fine else (1, 4, 15, 60, 200)
    tuned = [(ratio, 0, down, 12) for ratio, down in product(ratios, (0, 20, 60, 200) if fine else (10, 60))]
    slow = [(ratio, 30, 600, 30) for ratio in ratios]
    return {
        "Sophia": [partial(Sophia, wait) for wait in ACCEPTED_S],
        "Ray Serve": [partial(ServeDefault, *given) for given in tuned + slow],
        "RunPod request count": [partial(RequestCount, *given) for given in product(ratios, idle_s)],
        "RunPod queue delay": [partial(QueueDelay, *given) for given in product(delays_s, idle_s)],
    }
