"""What a policy costs: `serve_app.scaling.policy.decide` in a simulated fleet, beside Ray Serve's own policy and RunPod's two.

Usage: python -m benchmarks.fleet     (`make fleet`): simulates, then writes the tables and the picture of docs/FLEET.md

Every policy gets the same arrivals, job lengths, start-up times and dispatch (an idle worker takes the oldest job at once), and
each is run over a grid of its own settings, which gives its frontier: the least cost at each 95th percentile of wait. Cost is in
seconds of workers that exist, start-up and idling included, over seconds of work done: 1.0 cannot be beaten.
"""

import argparse
import bisect
import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    _core_replica_queue_length_policy,
    _get_cold_start_scale_up_replicas,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.config import ScalingArgs
from serve_app.scaling.policy import WINDOW_S, WINDOWS, Decision, Observation, decide

TICK_S: Final = 2.0
"""How often a policy is asked."""

HOUR_S: Final = 3600.0
SHORTEST_S: Final = 15.0
"""Job lengths are uniform between this and eight times this: 67.5 s in the mean."""

MEAN_S: Final = SHORTEST_S * 4.5
STARTUP_S: Final = (30.0, 180.0)
"""A start-up takes anything between these: a node that is there, or one that must be launched first."""

MISJUDGED: Final = 0.1
"""Standard deviation of a job's real length from the estimate, relative."""

MOST_WORKERS: Final = 5000
IDLE_S: Final = 300.0
"""Sophia's `idle_s`, its default."""

WAITS_S: Final = (30, 45, 60, 90, 120, 150, 200, 300, 400, 600)
"""The 95th percentiles of wait that the table compares at."""

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "FLEET.md"
BEGIN: Final = "<!-- begin: written by benchmarks/fleet.py -->"
END: Final = "<!-- end: written by benchmarks/fleet.py -->"


# --- Arrivals -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Jobs: when each comes, how long it is thought to take, how long it takes. Seconds, in order of arrival."""

    name: str
    times: list[float]
    estimates: list[float]
    lengths: list[float]
    estimated_until: list[float] = field(repr=False)
    """Seconds of work in all jobs before each one."""

    @classmethod
    def of(cls, name: str, times: np.ndarray, random: np.random.Generator) -> "Load":
        """Jobs of random length at the given times."""
        estimates = SHORTEST_S * (1 + 7 * random.random(len(times)))
        lengths = estimates * random.lognormal(-(MISJUDGED**2) / 2, MISJUDGED, len(times))
        until = np.concatenate([[0.0], np.cumsum(estimates)])
        return cls(name, np.sort(times).tolist(), estimates.tolist(), lengths.tolist(), until.tolist())


def poisson(workers: float, hours: float, seed: int = 1) -> Load:
    """Independent arrivals that keep `workers` busy in the mean."""
    random = np.random.default_rng(seed)
    count = random.poisson(workers / MEAN_S * hours * HOUR_S)
    return Load.of(f"Poisson, {workers:g} busy in the mean", random.random(count) * hours * HOUR_S, random)


def bursts(hours: float, every_s: float = 1200.0, seed: int = 2) -> Load:
    """3 to 100 jobs within 10 s, at random moments `every_s` apart in the mean, and nothing between."""
    random = np.random.default_rng(seed)
    starts = np.cumsum(random.exponential(every_s, int(2 * hours * HOUR_S / every_s)))
    starts = starts[starts < hours * HOUR_S]
    sizes = np.exp(random.uniform(np.log(3), np.log(100), len(starts))).astype(int)
    times = np.repeat(starts, sizes)
    return Load.of("Bursts of 3 to 100 jobs", times + 10 * random.random(len(times)), random)


def day_and_night(top: float, hours: float = 24.0, seed: int = 3) -> Load:
    """A day from 1 GPU at midnight to `top` at noon and back, even on a logarithmic scale; Poisson at each moment."""
    random = np.random.default_rng(seed)
    moments = np.arange(0, hours * HOUR_S, 10.0)
    busy = np.exp(np.log(top) * (1 - np.cos(2 * np.pi * moments / (hours * HOUR_S))) / 2)
    times = np.repeat(moments, random.poisson(busy / MEAN_S * 10))
    return Load.of(f"Day and night, 1 to {top:,g} GPUs", times + 10 * random.random(len(times)), random)


# --- The fleet ------------------------------------------------------------------------------------------------------------


class Policy(Protocol):
    """Anything that says how many workers there should be."""

    idle_timeout_s: float | None
    """How workers leave. A number: each on its own after so long without a job, as RunPod has it. None: Serve picks them."""

    def target(self, fleet: "Simulation") -> int:
        """The wanted number of workers, draining ones not counted."""


@dataclass(slots=True, eq=False)
class Worker:
    """One GPU with a worker, from the moment that it is paid for."""

    number: int
    began: float
    ready_at: float = math.inf
    idle_since: float = 0.0
    job_until: float | None = None
    """When its job should end; None without one."""
    draining: bool = False
    gone: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    cost: float
    """Worker-seconds paid for each second of work done."""
    p50_s: float
    p95_s: float
    starts: int
    peak: int
    """The most workers at once."""


class Simulation:
    """A queue, its workers and a policy that is asked every TICK_S. Policies read the attributes without underscores."""

    def __init__(self, load: Load, policy: Policy, seed: int = 7) -> None:
        self.load = load
        self._policy = policy
        self._random = np.random.default_rng(seed)
        self.now = self.startup_s = 0.0
        self.startup_s = sum(STARTUP_S) / 2
        self.arrived = 0
        self.queue: deque[int] = deque()
        self.queued_work_s = 0.0
        self.running_jobs = self.draining = self.target = 0
        self.last_work_at = 0.0
        self.ready: dict[Worker, None] = {}  # in the order in which they became ready
        self.starting: list[Worker] = []
        self._sum_until = 0.0  # of job_until over the workers in `ready`
        self._idle: deque[Worker] = deque()  # the one that has idled longest first; the last one takes the next job
        self._events: list[tuple[float, int, Worker]] = []
        self._waits = np.zeros(len(load.times))
        self._paid_s = 0.0
        self._starts = self._served = self._peak = 0

    @property
    def running_left_s(self) -> float:
        """Work left in the running jobs, as far as it can be estimated."""
        return max(0.0, self._sum_until - self.running_jobs * self.now)

    @property
    def jobs(self) -> int:
        """Jobs waiting or running."""
        return len(self.queue) + self.running_jobs + self.draining

    def run(self) -> Outcome:
        """All jobs, from the first to the last. The workers left at the end are paid for until then."""
        while self._served < len(self.load.times):
            self.now += TICK_S
            self._let_pass(self.now)
            if self.jobs:
                self.last_work_at = self.now
            self.target = min(self._policy.target(self), MOST_WORKERS)
            self._resize()
            self._peak = max(self._peak, len(self.ready) + len(self.starting) + self.draining)
        for worker in [*self.ready, *self.starting]:
            self._pay(worker, self.now)
        work_s = sum(self.load.lengths)
        p50, p95 = np.percentile(self._waits, [50, 95])
        return Outcome(self._paid_s / work_s, float(p50), float(p95), self._starts, self._peak)

    def _let_pass(self, until: float) -> None:
        times = self.load.times
        events = self._events
        while True:
            arrival = times[self.arrived] if self.arrived < len(times) else math.inf
            event = events[0][0] if events else math.inf
            if min(arrival, event) > until:
                return
            if arrival < event:
                self._arrive(arrival)
            else:
                self._free(*heapq.heappop(events)[::2])

    def _arrive(self, at: float) -> None:
        self.queue.append(self.arrived)
        self.queued_work_s += self.load.estimates[self.arrived]
        self.arrived += 1
        if self._idle:
            self._begin(self._idle.pop(), at)

    def _free(self, at: float, worker: Worker) -> None:
        """A worker has ended its job or its start-up."""
        if worker.gone:
            return
        if worker.draining:
            self.draining = self.draining - 1
            self._served = self._served + 1
            self._pay(worker, at)
            return
        if worker.job_until is None:
            self._came_up(worker, at)
        else:
            self._sum_until = self._sum_until - worker.job_until
            self.running_jobs = self.running_jobs - 1
            self._served += 1
        worker.job_until = None
        worker.idle_since = at
        if self.queue:
            self._begin(worker, at)
        else:
            self._idle.append(worker)

    def _came_up(self, worker: Worker, at: float) -> None:
        self.starting.remove(worker)
        self.ready[worker] = None
        worker.ready_at = at
        self.startup_s += 0.1 * (at - worker.began - self.startup_s)  # measured as it goes

    def _begin(self, worker: Worker, at: float) -> None:
        job = self.queue.popleft()
        self._waits[job] = at - self.load.times[job]
        self.queued_work_s -= self.load.estimates[job]
        worker.job_until = at + self.load.estimates[job]
        self._sum_until = self._sum_until + worker.job_until
        self.running_jobs = self.running_jobs + 1
        heapq.heappush(self._events, (at + self.load.lengths[job], worker.number, worker))

    # --- Growing and shrinking ----------------------------------------------------------------------------------------

    def _resize(self) -> None:
        if self._policy.idle_timeout_s is not None:
            self._leave_after(self._policy.idle_timeout_s)
        missing = self.target - len(self.ready) - len(self.starting)
        for _ in range(missing):
            self._start()
        if self._policy.idle_timeout_s is None:
            for _ in range(-missing):
                self._end_one()

    def _start(self) -> None:
        worker = Worker(self._starts, self.now)
        self._starts += 1
        self.starting.append(worker)
        heapq.heappush(self._events, (self.now + self._random.uniform(*STARTUP_S), worker.number, worker))

    def _end_one(self) -> None:
        """As Serve chooses where each worker has a node of its own: one that is starting, else the one ready for longest."""
        if self.starting:
            self._pay(self.starting.pop(), self.now)
            return
        worker = next(iter(self.ready))
        del self.ready[worker]
        if worker.job_until is None:
            self._idle.remove(worker)
            self._pay(worker, self.now)
        else:
            worker.draining = True
            self._sum_until = self._sum_until - worker.job_until
            self.running_jobs = self.running_jobs - 1
            self.draining += 1

    def _leave_after(self, idle_s: float) -> None:
        while self._idle and self.now - self._idle[0].idle_since >= idle_s:
            worker = self._idle.popleft()
            del self.ready[worker]
            self._pay(worker, self.now)

    def _pay(self, worker: Worker, at: float) -> None:
        worker.gone = True
        self._paid_s += at - worker.began


_UNUSED: Final[dict[str, Any]] = dict.fromkeys(
    [
        *("deployment_id", "deployment_name", "app_name", "running_replicas", "total_queued_requests"),
        *("aggregated_metrics", "raw_metrics", "last_scale_up_time", "last_scale_down_time"),
    ]
)
"""Of Serve's context, what its own policy does not look at."""


# --- The policies ---------------------------------------------------------------------------------------------------------


class Sophia:
    """The code that runs in Serve's controller. It has one setting: the wait that is accepted."""

    idle_timeout_s: float | None = None

    def __init__(self, target_wait_s: float) -> None:
        self._bounds = ScalingArgs(min_workers=0, max_workers=MOST_WORKERS, target_wait_s=target_wait_s, idle_s=IDLE_S)
        self._decision = Decision(0, "")

    def target(self, fleet: Simulation) -> int:
        self._decision = decide(observe(fleet), self._bounds, self._decision)
        return self._decision.target


def observe(fleet: Simulation) -> Observation:
    """What the store would tell of a simulated fleet."""
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
    """Ray Serve's own policy: the functions of `ray.serve.autoscaling_policy`, joined as there, with our clock.

    It is given more than it has: jobs start without its router's pauses, and any worker takes any job.
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
    """RunPod's request count: a worker for every `per_worker` jobs waiting or running."""

    def __init__(self, per_worker: float, idle_timeout_s: float) -> None:
        self._per_worker = per_worker
        self.idle_timeout_s: float | None = idle_timeout_s

    def target(self, fleet: Simulation) -> int:
        return math.ceil(fleet.jobs / self._per_worker)


class QueueDelay:
    """RunPod's queue delay: one more worker for each `delay_s` that the oldest job has waited; never more workers than jobs."""

    def __init__(self, delay_s: float, idle_timeout_s: float) -> None:
        self._delay_s = delay_s
        self.idle_timeout_s: float | None = idle_timeout_s

    def target(self, fleet: Simulation) -> int:
        if not fleet.queue:
            return 0
        waited_s = fleet.now - fleet.load.times[fleet.queue[0]]
        return min(max(1, fleet.running_jobs + math.floor(waited_s / self._delay_s)), fleet.jobs)


DEFAULTS: Final[dict[str, Callable[[], Policy]]] = {
    "Ray Serve, as it comes": ServeDefault,
    "RunPod queue delay, 4 s": lambda: QueueDelay(4, 5),
    "RunPod request count, 1": lambda: RequestCount(1, 5),
    "RunPod request count, 4": lambda: RequestCount(4, 5),
}
"""The others with the settings of their documentation; RunPod's workers leave after 5 s idle."""

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
"""Sophia's grid: the wait that is accepted."""


def settings(fine: bool) -> dict[str, list[Callable[[], Policy]]]:
    """The grid of each policy. The others have several times more points than we: their best is what we compare with."""
    idle_s: Sequence[float] = (5, 30, 60, 200, 600) if fine else (5, 60, 200)
    ratios: Sequence[float] = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 14)
    ratios = ratios if fine else [*ratios[:9], *ratios[10:12]]
    delays_s: Sequence[float] = (1, 4, 8, 15, 30, 60, 120, 240, 400) if fine else (1, 4, 15, 60, 200)
    tuned = [(ratio, 0, down, 12) for ratio, down in product(ratios, (0, 20, 60, 200) if fine else (10, 60))]
    slow = [(ratio, 30, 600, 30) for ratio in ratios]
    return {
        "Sophia": [lambda wait=wait: Sophia(wait) for wait in ACCEPTED_S],  # type: ignore[misc]
        "Ray Serve": [lambda given=given: ServeDefault(*given) for given in tuned + slow],  # type: ignore[misc]
        "RunPod request count": [lambda given=given: RequestCount(*given) for given in product(ratios, idle_s)],  # type: ignore[misc]
        "RunPod queue delay": [lambda given=given: QueueDelay(*given) for given in product(delays_s, idle_s)],  # type: ignore[misc]
    }


# --- Comparing ------------------------------------------------------------------------------------------------------------

Frontier = list[Outcome]


def frontier(outcomes: Iterable[Outcome]) -> Frontier:
    """The outcomes that no other one beats in both cost and 95th percentile of wait, by growing wait."""
    best: Frontier = []
    for outcome in sorted(outcomes, key=lambda one: (one.p95_s, one.cost)):
        if not best or outcome.cost < best[-1].cost:
            best.append(outcome)
    return best


def cost_at(best: Frontier, p95_s: float) -> float | None:
    """The cost at a 95th percentile of wait, straight between neighbours; None below the shortest wait that was reached.

    Beyond the longest wait, the last cost: nobody must pay more to let jobs wait longer.
    """
    if p95_s < best[0].p95_s:
        return None
    return float(np.interp(p95_s, [one.p95_s for one in best], [one.cost for one in best]))


@dataclass(frozen=True)
class Result:
    """All policies under one load."""

    fronts: dict[str, Frontier]
    """The best of each over its grid."""
    defaults: dict[str, Outcome]
    """The others as they come."""


def simulate(load: Load, fine: bool) -> Result:
    """Every policy under one load."""
    fronts = {name: frontier(Simulation(load, make()).run() for make in grid) for name, grid in settings(fine).items()}
    return Result(fronts, {name: Simulation(load, make()).run() for name, make in DEFAULTS.items()})


def margins(fronts: dict[str, Frontier], waits_s: Iterable[float]) -> dict[float, float]:
    """By how much Sophia's cost is below the best of the others at each wait that it and another reach: 0.02 is 2 %."""
    found = {}
    for wait in waits_s:
        ours = cost_at(fronts["Sophia"], wait)
        others = [cost for name, best in fronts.items() if name != "Sophia" and (cost := cost_at(best, wait))]
        if ours and others:
            found[wait] = 1 - ours / min(others)
    return found


# --- Table and picture ----------------------------------------------------------------------------------------------------


def defaults_table(results: dict[str, Result]) -> str:
    """Markdown: what each of the others costs as it comes, and Sophia at the same 95th percentile of wait."""
    lines = ["| load | policy | wait, p50 | wait, p95 | cost | Sophia, same p95 | below |", "|---" * 7 + "|"]
    for load, result in results.items():
        for name, one in result.defaults.items():
            ours = cost_at(result.fronts["Sophia"], one.p95_s)
            cells = f"{ours:.3f} | {1 - ours / one.cost:.1%}" if ours else "– | –"
            lines.append(f"| {load} | {name} | {one.p50_s:.0f} s | {one.p95_s:.0f} s | {one.cost:.3f} | {cells} |")
    return "\n".join(lines) + "\n"


def table(name: str, fronts: dict[str, Frontier]) -> str:
    """Markdown: cost by policy at each 95th percentile of wait, each policy with the settings that are best there."""
    lines = [f"**{name}**", "", "| wait, p95 | " + " | ".join(f"{wait} s" for wait in WAITS_S) + " |"]
    lines.append("|---" * (len(WAITS_S) + 1) + "|")
    for policy, best in fronts.items():
        costs = [cost_at(best, wait) for wait in WAITS_S]
        lines.append(f"| {policy} | " + " | ".join(f"{cost:.3f}" if cost else "–" for cost in costs) + " |")
    below = margins(fronts, WAITS_S)
    cells = [f"{below[wait]:.1%}" if wait in below else "–" for wait in WAITS_S]
    lines.append("| *Sophia below the best other* | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Result], path: Path) -> None:
    """Cost against wait, p95 above and p50 below, one column a load. Crosses are the others as they come."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(results), figsize=(4.2 * len(results), 7), squeeze=False)
    for column, (name, result) in enumerate(results.items()):
        for row, wait in enumerate(("p95_s", "p50_s")):
            _panel(axes[row][column], result, wait)
        axes[0][column].set_title(name, fontsize=10)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def _panel(axis: Any, result: Result, wait: str) -> None:
    for name, best in result.fronts.items():
        ours = name == "Sophia"
        points = sorted((getattr(one, wait), one.cost) for one in best)
        axis.plot(*zip(*points, strict=True), "o-", ms=3, lw=2.2 if ours else 1, zorder=3 if ours else 2, label=name)
    axis.plot(
        [getattr(one, wait) for one in result.defaults.values()], [one.cost for one in result.defaults.values()], "kx"
    )
    dearest = max(one.cost for best in result.fronts.values() for one in best)
    axis.set_xlim(0, 400)
    axis.set_ylim(1, min(3, dearest))
    axis.set_xlabel(f"wait, {wait[:3]} [s]")
    axis.set_ylabel("GPU-seconds paid / GPU-seconds of work")
    axis.grid(alpha=0.3)


def write(path: Path, text: str) -> None:
    """Put `text` between the markers of a document."""
    document = path.read_text(encoding="utf-8")
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def main() -> None:
    """Simulate all loads, print the tables, and write them and the picture into the documents."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    loads = [(poisson(1, 36), True), (poisson(8, 18), True), (bursts(36), True), (day_and_night(1000), False)]
    results: dict[str, Result] = {}
    for load, fine in loads:
        began = time.monotonic()
        results[load.name] = simulate(load, fine)
        print(table(load.name, results[load.name].fronts))
        print(f"{len(load.times):,} jobs, {time.monotonic() - began:.0f} s\n", flush=True)
    tuned = "\n".join(table(name, result.fronts) for name, result in results.items())
    write(DOCUMENT, "### As they come\n\n" + defaults_table(results) + "\n### Each at its best\n\n" + tuned)
    draw(results, DOCUMENT.with_name("fleet.png"))


if __name__ == "__main__":
    main()
