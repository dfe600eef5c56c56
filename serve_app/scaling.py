"""How many workers a model should have: a pure decision, and the policy that Ray Serve's controller calls for it.

Ray Serve pickles this module by value into its controller, which must never wait: so nothing heavy is imported here, and the
store is read by a thread of the policy's own. docs/FLEET.md shows what the rules cost and save, beside other policies.
"""

import importlib
import logging
import math
import statistics
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from serve_app.config import ScalingArgs

logger = logging.getLogger("ray.serve.sophia")

WINDOW_S: Final = 300.0
"""Length of one window of `Observation.arrivals`: a few start-ups long, as a load that is gone should be noticed within that."""

WINDOWS: Final = 6
"""How many windows an observation looks back on: half an hour says whether a load is steady."""

PERIOD_S: Final = 1.0
"""The store is read this often."""

STALE_S: Final = 10.0
"""After so many seconds without an answer from the store, the reason says so."""

# These numbers were chosen in the simulation of docs/FLEET.md, one set for all of its loads; cost depends little on each.

_EARLY: Final = 0.4
# Under a steady load, workers leave when the queue is below this part of the accepted wait, not only when nothing waits.

_RESERVE: Final = 0.5
_BREAK_EVEN: Final = 0.6
# How many workers beyond the load are kept, see `_kept`: none when the accepted wait is _BREAK_EVEN * (a job + a start-up).

_SETTLE: Final = 0.25
# Part of a start-up that a worker is kept after it came up, used or not.


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one model's queue and workers at one moment. Work is in seconds of one worker's time."""

    queued_jobs: int
    queued_work_s: float
    running_jobs: int
    """On workers that take more jobs; those on draining workers end there and ask for nothing."""
    running_left_s: float
    """Work left in these running jobs, summed."""
    ready_s: tuple[float, ...]
    """Seconds since each ready worker came up; those that came up more than `startup_s` ago may be left out."""
    startup_s: float
    """Seconds from wanting a worker to its being ready: measured, or the prior."""
    arrivals: tuple[tuple[int, float], ...]
    """(jobs, seconds of work) submitted in each of the last WINDOWS windows of WINDOW_S, the newest first."""
    idle_s: float
    """Seconds since there was any job queued or running."""
    breaker: str | None = None
    """Why no more workers must be started; None while they may."""
    paused: str | None = None
    """Why an operator wants no worker at all; None while they may run."""
    unstored: str | None = None
    """Why workers take no job: the audio store refuses their songs. None while it takes them."""
    ready_now: int = 0
    """Workers that can generate at this moment, of any build."""
    stuck: int = 0
    """Workers that wait on a host where the model cannot be loaded, while other hosts can."""
    clusters: int = 1
    """How many clusters share what waits; the numbers above are this one's part."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there should be, and why, in an operator's words."""

    target: int
    reason: str
    needed: int = 0
    """What the work itself asked for. A worker leaves only when two decisions in a row can do without it."""


def decide(seen: Observation, bounds: ScalingArgs, previous: Decision) -> Decision:
    """How many workers there should be; `previous.target` is how many were wanted until now. Depends on nothing else.

    Several reasons ask for workers, and the largest number wins: the work at hand, a steady load, workers that have only just
    come up, the warm pool. `max_workers` bounds it. An open breaker starts no more workers and ends none that works;
    an audio store that takes no songs does the same beyond the warm pool; a pause ends all.
    """
    if seen.paused is not None:
        return Decision(0, f"paused by the operator: {seen.paused}")
    wanted = _wanted(seen, bounds, previous)
    if seen.breaker is not None:
        # While any worker works the target must not sink: in a rollout Serve would end the last of the old build to reach it.
        kept = min(wanted.target, max(previous.target, seen.ready_now)) if seen.ready_now else 0
        return Decision(kept, f"the breaker is open: {seen.breaker}. No worker is started until it is closed")
    if seen.unstored is not None:  # whoever comes would wait beside the others, at a device's price
        kept = min(wanted.target, max(previous.target, seen.ready_now, bounds.min_workers))
        return replace(wanted, target=kept, reason=f"{wanted.reason}; no further worker while {seen.unstored}")
    if seen.stuck and wanted.target:
        target = min(wanted.target + seen.stuck, bounds.max_workers)
        more = f"{wanted.reason}; {seen.stuck} more, for those on hosts where it cannot be loaded"
        return replace(wanted, target=target, reason=more)
    return wanted


def _wanted(seen: Observation, bounds: ScalingArgs, previous: Decision) -> Decision:
    """What work, load and bounds ask for, as long as workers may be started."""
    load = _steady_load(seen)
    needed = _needed(seen, bounds, previous.target, load)
    claims = {"work": needed, "moment": min(previous.needed, previous.target), "warm": bounds.min_workers}
    if seen.idle_s < bounds.idle_s:
        claims |= {"steady": _kept(seen, bounds, previous.target, load), "new": _new(seen, previous.target)}
    winner = max(claims, key=claims.__getitem__)
    reason = _in_words(winner, claims[winner], seen, bounds, load)
    if claims[winner] > bounds.max_workers:
        return Decision(bounds.max_workers, f"{reason}; max_workers is {bounds.max_workers}", needed)
    return Decision(claims[winner], reason, needed)


def _needed(seen: Observation, bounds: ScalingArgs, have: int, load: float) -> int:
    """Workers for the work at hand: as many as get through the queue in the accepted wait, and never more than there are jobs.

    Work in seconds, not a count of jobs, since one song can be eight times another. What counts is the queue when a worker that is
    started now will be up: until then jobs come, workers work, and those that are starting do so for half of the time. Otherwise
    a queue that is being dealt with would start workers again and again. Workers that are there stay while jobs wait: a busy
    worker costs nothing extra. Under a steady load some go a little earlier (`_EARLY`) when none is starting, which Serve would end
    first, and the rest stay fully used.
    """
    if not seen.queued_jobs:
        return seen.running_jobs
    queue_s, at_work = seen.queued_work_s, have
    if load:
        starting = max(have - seen.running_jobs, 0)
        queue_s += (load - seen.running_jobs - starting / 2) * seen.startup_s
        if not starting:
            at_work = min(have, math.ceil(seen.queued_work_s / (bounds.target_wait_s * _EARLY)))
    needed = math.ceil(queue_s / bounds.target_wait_s)
    return min(max(needed, at_work, 1), seen.queued_jobs + seen.running_jobs)


def _steady_load(seen: Observation) -> float:
    """Workers that arrivals will keep busy soon, by a straight line through the last half hour; 0.0 when they are not steady.

    Soon is when a worker that is started now will have been up for as long as it took to start. The line goes through square
    roots: those of Poisson counts vary by the same 1/2 whatever the load (Anscombe, Biometrika 35, 1948), so that what chance does
    to its slope is known and can be left out. A burst leaves the other windows empty, and so is no load.
    """
    counts = [count for count, _ in seen.arrivals]
    if len(counts) < WINDOWS or not sorted(counts)[1]:
        return 0.0
    roots, windows = [math.sqrt(count + 0.375) for count in counts], range(0, -WINDOWS, -1)
    slope = statistics.linear_regression(windows, roots).slope
    by_chance = 0.5 / math.sqrt(WINDOWS * (WINDOWS**2 - 1) / 12)
    slope = math.copysign(max(0.0, abs(slope) - by_chance), slope)
    mean, ahead = statistics.fmean(roots), WINDOWS / 2 + min(2 * seen.startup_s / WINDOW_S, 1)
    soon = statistics.fmean(counts) + max(0.0, mean + slope * ahead) ** 2 - mean**2
    return max(0.0, soon) * _job_s(seen) / WINDOW_S


def _job_s(seen: Observation) -> float:
    """Mean work in a job of the last half hour, in seconds."""
    return sum(work_s for _, work_s in seen.arrivals) / sum(count for count, _ in seen.arrivals)


def _kept(seen: Observation, bounds: ScalingArgs, have: int, load: float) -> int:
    """Workers that stay through a lull, because the load is steady: ending and starting one again would cost more.

    Load + beta * sqrt(load) of them, as in square-root staffing (Halfin and Whitt, Operations Research 29(3), 1981). Where the
    accepted wait is long against a job and a start-up, a worker can be started in time, and beta is negative; where it is short,
    only workers that are up already can serve it, and the number is rounded up.
    """
    if not load:
        return 0
    beta = _RESERVE * math.log(_BREAK_EVEN * (_job_s(seen) + seen.startup_s) / bounds.target_wait_s)
    if not seen.queued_jobs:
        # Then as many jobs run as there is load, by chance more or less: idle workers tell at once that it has fallen.
        load = min(load, max(0.0, math.sqrt(seen.running_jobs + 0.375) + (1 + beta) / 2) ** 2)
    kept = load + beta * math.sqrt(load)
    return max(0, min(have, math.ceil(kept) if beta > 0 else round(kept)))


def _new(seen: Observation, have: int) -> int:
    """Workers that have only just come up: nobody pays for a start-up and then throws the worker away.

    Where each worker has a node of its own, Serve ends the oldest first, so it is enough to want as many as there are new ones.
    """
    return min(sum(age < _SETTLE * seen.startup_s for age in seen.ready_s), have)


def _in_words(winner: str, count: int, seen: Observation, bounds: ScalingArgs, load: float) -> str:
    match winner:
        case "moment":
            return f"{count} were needed a moment ago"
        case "warm":
            return f"min_workers is {count}"
        case "steady":
            return f"a steady load of {load:.1f} workers; starting one takes {seen.startup_s:.0f} s, so {count} stay through a lull"
        case "new":
            return f"{count} came up less than {_SETTLE * seen.startup_s:.0f} s ago and are given time to be of use"
    return _work_in_words(count, seen, bounds)


def _work_in_words(count: int, seen: Observation, bounds: ScalingArgs) -> str:
    work_s, jobs = seen.queued_work_s + seen.running_left_s, seen.queued_jobs + seen.running_jobs
    if not jobs:
        return "no work"
    part = f", this cluster's part among {seen.clusters}" if seen.clusters > 1 else ""
    said = f"{work_s:.0f} s of work in {jobs} jobs ({seen.queued_jobs} waiting){part}; {count} workers"
    if count == jobs:
        return f"{said}, one for each"
    return f"{said} keep to about the {bounds.target_wait_s:g} s of wait you accept; one more is ready in {seen.startup_s:.0f} s"


# --- In Serve's controller ------------------------------------------------------------------------------------------------


class Fleet(Protocol):
    """What the policy reads and writes: one model's jobs and workers in the store. Its calls may block."""

    def observe(self) -> Observation:
        """The present state."""

    def publish(self, target: int, reason: str) -> None:
        """Show the decision to whoever asks for health."""

    def close(self) -> None:
        """Give connections back."""


class QueuePolicy:
    """Ray Serve's AutoscalingPolicy for one model's workers.

    Serve calls it about ten times a second in its controller, where everything else waits meanwhile: it only hands out the last
    decision of its thread, in microseconds. While the store is away that decision stays.
    """

    def __init__(
        self, bounds: Mapping[str, Any], source: str, source_kwargs: Mapping[str, Any], period_s: float = PERIOD_S
    ):
        """All arguments are JSON, as Serve wants them. `bounds` are ScalingArgs; `source` names a function ("module:function")
        that makes a Fleet from `bounds=ScalingArgs` and `source_kwargs`; it is imported and called in the thread."""
        self._reader = _Reader(ScalingArgs.model_validate(bounds), source, dict(source_kwargs), period_s)
        # Serve makes a new policy at each deploy and says nothing to the old one.
        weakref.finalize(self, self._reader.ended.set)

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """`ctx` is Serve's AutoscalingContext; only its `target_num_replicas` is used. The target, and the decision as state."""
        decision = self._reader.latest(ctx.target_num_replicas)
        return decision.target, {"target": decision.target, "reason": decision.reason}


class _Reader:
    """The thread that looks at the store and decides. It holds no reference to its policy, whose end is its own."""

    def __init__(self, bounds: ScalingArgs, source: str, source_kwargs: dict[str, Any], period_s: float):
        self.ended = threading.Event()
        self._bounds, self._source, self._source_kwargs, self._period_s = bounds, source, source_kwargs, period_s
        self._current: int | None = None
        self._decision: Decision | None = None
        self._answered = time.monotonic()
        self._problem = "it has not been read yet"
        self._thread = threading.Thread(target=self._run, name="fleet-policy", daemon=True)

    def latest(self, current: int) -> Decision:
        """The last decision, or `current` workers before the first. Never blocks."""
        self._current = current
        if self._thread.ident is None:
            self._thread.start()
        decision, silent_s = self._decision, time.monotonic() - self._answered
        if decision is None:
            return Decision(current, f"keeping {current} workers: the job store is awaited ({self._problem})")
        if silent_s < max(STALE_S, 3 * self._period_s):
            return decision
        away = f"the job store has not answered for {silent_s:.0f} s ({self._problem})"
        return replace(decision, reason=f"keeping {decision.target} workers: {away}")

    def _run(self) -> None:
        fleet: Fleet | None = None
        while not self.ended.is_set():
            try:
                fleet = fleet or self._open()
                self._look(fleet)
            except Exception as error:  # whatever it was, the next look may go well, and nobody else would try again
                self._stays(f"{type(error).__name__}: {error}")
            self.ended.wait(self._period_s)
        if fleet is not None:
            fleet.close()

    def _stays(self, problem: str) -> None:
        if problem != self._problem:  # once, not every second of an outage
            # Before the first decision the tables may not be there yet: others are about to make them.
            level = logging.WARNING if self._decision else logging.INFO
            logger.log(level, "the fleet's size stays as it is: %s", problem)
        self._problem = problem

    def _open(self) -> Fleet:
        module, _, function = self._source.partition(":")
        opened: Fleet = getattr(importlib.import_module(module), function)(bounds=self._bounds, **self._source_kwargs)
        return opened

    def _look(self, fleet: Fleet) -> None:
        seen = fleet.observe()
        last = self._decision or Decision(self._current or 0, "")
        decision = decide(seen, self._bounds, replace(last, target=self._current or 0))
        if decision.target != last.target:
            logger.info("workers wanted: %s instead of %s: %s", decision.target, last.target, decision.reason)
        self._decision, self._answered, self._problem = decision, time.monotonic(), "it answers slowly"
        fleet.publish(decision.target, decision.reason)


def autoscaling_config(bounds: ScalingArgs, source: str, source_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What `serve.deployment(...).options(autoscaling_config=...)` takes, so that QueuePolicy alone decides.

    Serve's own delays and factors are switched off. Its `min_replicas` is 0 whatever `min_workers` says: it bounds the policy
    from outside, and an open breaker must be able to ask for none.
    """
    return {
        "min_replicas": 0,
        "initial_replicas": bounds.min_workers,
        "max_replicas": bounds.max_workers,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "downscale_to_zero_delay_s": 0,
        "policy": {
            "policy_function": f"{QueuePolicy.__module__}:{QueuePolicy.__name__}",
            "policy_kwargs": {
                "bounds": bounds.model_dump(mode="json"),
                "source": source,
                "source_kwargs": dict(source_kwargs),
            },
        },
    }
