"""The simulated fleet of `benchmarks/fleet.py`: a queue, its workers, and a policy that says how many workers there should be."""

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from benchmarks.fleet_arrivals import Load

TICK_S: Final = 2.0
"""How often the policy is asked."""

STARTUP_S: Final = (30.0, 180.0)
"""The shortest and the longest start-up: on a node that exists already, or on one that must be launched first."""

MOST_WORKERS: Final = 5000
"""No policy gets more workers than this."""


class Policy(Protocol):
    """Says how many workers there should be."""

    idle_timeout_s: float | None
    """After how long without a job a worker leaves, as with RunPod. None: Serve chooses which workers leave."""

    def target(self, fleet: "Simulation") -> int:
        """The number of workers that there should be, without those that are draining."""


@dataclass(slots=True, eq=False)
class Worker:
    """One GPU with a worker, from the moment at which it must be paid for."""

    number: int
    began: float
    ready_at: float = math.inf
    idle_since: float = 0.0
    job_until: float | None = None
    """When its job is expected to end. None if it has no job."""
    draining: bool = False
    gone: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of one run."""

    cost: float
    """Seconds of workers paid for, per second of work done."""
    p50_s: float
    p95_s: float
    starts: int
    peak: int
    """The largest number of workers at one time."""


class Simulation:
    """A queue, its workers and a policy that is asked every TICK_S. Policies read the public attributes."""

    def __init__(self, load: Load, policy: Policy, seed: int = 7) -> None:
        self.load = load
        self._policy = policy
        self._random = np.random.default_rng(seed)
        self.now = 0.0
        self.startup_s = sum(STARTUP_S) / 2
        self.arrived = 0
        self.queue: deque[int] = deque()
        self.queued_work_s = 0.0
        self.running_jobs = 0
        self.draining = 0
        self.target = 0
        self.last_work_at = 0.0
        self.ready: dict[Worker, None] = {}  # in the order in which they became ready
        self.starting: list[Worker] = []
        self._sum_until = 0.0  # the sum of job_until over the workers in `ready`
        self._idle: deque[Worker] = deque()  # the longest idle first; the last one takes the next job
        self._events: list[tuple[float, int, Worker]] = []
        self._waits = np.zeros(len(load.times))
        self._paid_s = 0.0
        self._starts = 0
        self._served = 0
        self._peak = 0

    @property
    def running_left_s(self) -> float:
        """The estimated work that is left in the running jobs."""
        return max(0.0, self._sum_until - self.running_jobs * self.now)

    @property
    def jobs(self) -> int:
        """Jobs waiting or running."""
        return len(self.queue) + self.running_jobs + self.draining

    def run(self) -> Outcome:
        """Run all jobs, from the first to the last. Workers that exist at the end are paid for until then."""
        while self._served < len(self.load.times):
            self.now += TICK_S
            self._advance(self.now)
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

    def _advance(self, until: float) -> None:
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
                at, _, worker = heapq.heappop(events)
                self._free(at, worker)

    def _arrive(self, at: float) -> None:
        self.queue.append(self.arrived)
        self.queued_work_s += self.load.estimates[self.arrived]
        self.arrived += 1
        if self._idle:
            self._begin(self._idle.pop(), at)

    def _free(self, at: float, worker: Worker) -> None:
        """Handle the end of a worker's job or start-up."""
        if worker.gone:
            return
        if worker.draining:
            self.draining -= 1
            self._served += 1
            self._pay(worker, at)
            return
        if worker.job_until is None:
            self._came_up(worker, at)
        else:
            self._sum_until -= worker.job_until
            self.running_jobs -= 1
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
        self.startup_s += 0.1 * (at - worker.began - self.startup_s)  # a moving average of the measured start-ups

    def _begin(self, worker: Worker, at: float) -> None:
        job = self.queue.popleft()
        self._waits[job] = at - self.load.times[job]
        self.queued_work_s -= self.load.estimates[job]
        worker.job_until = at + self.load.estimates[job]
        self._sum_until += worker.job_until
        self.running_jobs += 1
        heapq.heappush(self._events, (at + self.load.lengths[job], worker.number, worker))

    # --- Growing and shrinking ----------------------------------------------------------------------------------------

    def _resize(self) -> None:
        if self._policy.idle_timeout_s is not None:
            self._end_idle(self._policy.idle_timeout_s)
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
        """End the worker that Serve would choose if each worker has its own node: one that is starting, or else the oldest."""
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
            self._sum_until -= worker.job_until
            self.running_jobs -= 1
            self.draining += 1

    def _end_idle(self, idle_s: float) -> None:
        while self._idle and self.now - self._idle[0].idle_since >= idle_s:
            worker = self._idle.popleft()
            del self.ready[worker]
            self._pay(worker, self.now)

    def _pay(self, worker: Worker, at: float) -> None:
        worker.gone = True
        self._paid_s += at - worker.began
