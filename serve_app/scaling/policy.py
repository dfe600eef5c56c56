"""How many workers a model should have: a pure decision.

docs/FLEET.md shows what the rules cost and save, beside other policies.
"""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Final

from serve_app.config import ScalingArgs
from serve_app.plurals import counted

WINDOW_S: Final = 300.0
"""Length of one window of `Observation.arrivals`. It lasts a few start-ups, within which the end of a load should be noticed."""

WINDOWS: Final = 6
"""The number of windows in an observation. Half an hour shows whether a load is steady."""

# These numbers were chosen in the simulation of docs/FLEET.md, one set for all of its loads; cost depends little on each.

_EARLY: Final = 0.4
# Under a steady load, workers leave when the queue is below this part of the accepted wait, not only when nothing waits.

_RESERVE: Final = 0.5
_BREAK_EVEN: Final = 0.6
# They set how many workers beyond the load `_kept` keeps: none when the accepted wait is _BREAK_EVEN * (a job + a start-up).

_SETTLE: Final = 0.25
# A new worker is kept for this part of a start-up time, even when idle.


@dataclass(frozen=True, slots=True)
class Observation:
    """One model's queue and workers at one moment. Work is in seconds of one worker's time."""

    queued_jobs: int
    queued_work_s: float
    running_jobs: int
    """On workers that claim further jobs. A draining worker finishes its job and needs no successor for it."""
    running_left_s: float
    """Work left in these running jobs, summed."""
    ready_s: tuple[float, ...]
    """Seconds since each worker became ready. Workers that did so more than `startup_s` ago may be left out."""
    startup_s: float
    """Seconds from the decision for a worker until it is ready: measured, or the prior."""
    arrivals: tuple[tuple[int, float], ...]
    """(jobs, seconds of work) submitted in each of the last WINDOWS windows of WINDOW_S, the newest first."""
    idle_s: float
    """Seconds since there was any job queued or running."""
    breaker: str | None = None
    """Why no more workers must be started; None while they may."""
    paused: str | None = None
    """Why an operator wants no worker at all; None while they may run."""
    unneeded: str | None = None
    """Why no worker is of use, whatever waits; None while one is."""
    unstored: str | None = None
    """Why workers take no job: the audio store refuses their songs. None while it takes them."""
    ready_now: int = 0
    """Workers that can generate at this moment, of any build."""
    stuck: int = 0
    """Workers on hosts where the model cannot be loaded, while it can on others."""
    clusters: int = 1
    """The number of clusters that share the queue. The numbers above are this cluster's part."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there should be, and why. Operators read the reason."""

    target: int
    reason: str
    needed: int = 0
    """The number that the jobs alone need. A worker is stopped only when two decisions in a row do not need it."""


def decide(seen: Observation, bounds: ScalingArgs, previous: Decision) -> Decision:
    """How many workers there should be; `previous.target` is how many were wanted until now. A pure function.

    The largest of several numbers wins, up to `max_workers`: for the jobs, for a steady load, for new workers, for the warm pool.
    While the breaker is open no worker is started, and those that work stay. While the audio store refuses songs, no worker is
    started beyond the warm pool. A pause stops all workers, and so does the observation that none is of use.
    """
    if seen.paused is not None:
        return Decision(0, f"paused by the operator: {seen.paused}")
    if seen.unneeded is not None:
        return Decision(0, seen.unneeded)
    wanted = _wanted(seen, bounds, previous)
    if seen.breaker is not None:
        # While a worker is ready the target must not fall: in a rollout Serve would stop the last one of the old build to reach it.
        kept = min(wanted.target, max(previous.target, seen.ready_now)) if seen.ready_now else 0
        return Decision(kept, f"the breaker is open: {seen.breaker}. No worker is started until it is closed")
    if seen.unstored is not None:  # a further worker would only wait, and cost a device
        kept = min(wanted.target, max(previous.target, seen.ready_now, bounds.min_workers))
        return replace(
            wanted, target=kept, reason=f"{wanted.reason}; no more workers are started while {seen.unstored}"
        )
    if seen.stuck and wanted.target:
        target = min(wanted.target + seen.stuck, bounds.max_workers)
        more = f"{wanted.reason}; {seen.stuck} more to replace those on hosts where the model cannot be loaded"
        return replace(wanted, target=target, reason=more)
    return wanted


def _wanted(seen: Observation, bounds: ScalingArgs, previous: Decision) -> Decision:
    """The decision for jobs, load and bounds while workers may be started."""
    load = _steady_load(seen)
    needed = _needed(seen, bounds, previous.target, load)
    claims = {"work": needed, "moment": min(previous.needed, previous.target), "warm": bounds.min_workers}
    if seen.idle_s < bounds.idle_s:
        claims |= {"steady": _kept(seen, bounds, previous.target, load), "new": _new(seen, previous.target)}
    winner = max(claims, key=claims.__getitem__)
    reason = _reason(winner, claims[winner], seen, bounds, load)
    if claims[winner] > bounds.max_workers:
        return Decision(bounds.max_workers, f"{reason}; max_workers is {bounds.max_workers}", needed)
    return Decision(claims[winner], reason, needed)


def _needed(seen: Observation, bounds: ScalingArgs, have: int, load: float) -> int:
    """Workers for the jobs: as many as finish the queue in the accepted wait, and never more than there are jobs.

    The queue counts in seconds of work, since one song can take eight times as long as another. Under a steady load the policy
    estimates the queue at the time when a worker that is started now would be ready: jobs arrive until then, workers reduce it, and
    starting workers do so for half of the time. Otherwise it would start workers again and again for the same queue.

    Existing workers stay while jobs wait, since a busy worker costs nothing extra. Under a steady load some are stopped a little
    earlier (`_EARLY`), so that the others stay fully used, but only when none is starting: Serve would stop that one first.
    """
    if not seen.queued_jobs:
        return seen.running_jobs
    queue_s = seen.queued_work_s
    at_work = have
    if load:
        starting = max(have - seen.running_jobs, 0)
        queue_s += (load - seen.running_jobs - starting / 2) * seen.startup_s
        if not starting:
            at_work = min(have, math.ceil(seen.queued_work_s / (bounds.target_wait_s * _EARLY)))
    needed = math.ceil(queue_s / bounds.target_wait_s)
    return min(max(needed, at_work, 1), seen.queued_jobs + seen.running_jobs)


def _steady_load(seen: Observation) -> float:
    """Workers that arrivals will keep busy soon, from a straight line through the last half hour; 0.0 without a steady load.

    The line is extended by two start-up times, but at most by one window: a worker that is started now will then have been ready
    for as long as it took to start. The line goes through the square roots of the counts: for Poisson counts their standard
    deviation is 1/2 at any load (Anscombe, Biometrika 35, 1948), so the slope's standard error is known and is subtracted. A burst
    leaves the other windows empty, and is no steady load.
    """
    counts = [count for count, _ in seen.arrivals]
    if len(counts) < WINDOWS or not sorted(counts)[1]:
        return 0.0
    roots = [math.sqrt(count + 0.375) for count in counts]
    windows = range(0, -WINDOWS, -1)
    slope = statistics.linear_regression(windows, roots).slope
    by_chance = 0.5 / math.sqrt(WINDOWS * (WINDOWS**2 - 1) / 12)
    slope = math.copysign(max(0.0, abs(slope) - by_chance), slope)
    mean = statistics.fmean(roots)
    ahead = WINDOWS / 2 + min(2 * seen.startup_s / WINDOW_S, 1)
    soon = statistics.fmean(counts) + max(0.0, mean + slope * ahead) ** 2 - mean**2
    return max(0.0, soon) * _job_s(seen) / WINDOW_S


def _job_s(seen: Observation) -> float:
    """Mean work in a job of the last half hour, in seconds."""
    return sum(work_s for _, work_s in seen.arrivals) / sum(count for count, _ in seen.arrivals)


def _kept(seen: Observation, bounds: ScalingArgs, have: int, load: float) -> int:
    """Workers that stay through a lull of a steady load, since stopping and starting one would cost more.

    Load + beta * sqrt(load) of them, as in square-root staffing (Halfin and Whitt, Operations Research 29(3), 1981). When the
    accepted wait is long compared with a job and a start-up, a worker can be started in time, and beta is negative. When it is
    short, only ready workers can serve the load, and the number is rounded up.
    """
    if not load:
        return 0
    beta = _RESERVE * math.log(_BREAK_EVEN * (_job_s(seen) + seen.startup_s) / bounds.target_wait_s)
    if not seen.queued_jobs:
        # Without a queue, idle workers show at once that the load has fallen. The number of running jobs varies at random, so the
        # load may be 1 + beta standard deviations above it.
        load = min(load, max(0.0, math.sqrt(seen.running_jobs + 0.375) + (1 + beta) / 2) ** 2)
    kept = load + beta * math.sqrt(load)
    return max(0, min(have, math.ceil(kept) if beta > 0 else round(kept)))


def _new(seen: Observation, have: int) -> int:
    """Workers that became ready a moment ago. They stay for a while, since their start-up has been paid for.

    When each worker has its own node, Serve stops the oldest first. The target therefore counts the new workers only.
    """
    return min(sum(age < _SETTLE * seen.startup_s for age in seen.ready_s), have)


def _reason(winner: str, count: int, seen: Observation, bounds: ScalingArgs, load: float) -> str:
    match winner:
        case "moment":
            return f"{counted(count, 'worker')} needed a moment ago"
        case "warm":
            return f"min_workers is {count}"
        case "steady":
            kept = counted(count, "worker")
            return f"a steady load of {load:.1f} workers; starting one takes {seen.startup_s:.0f} s, so a lull keeps {kept}"
        case "new":
            kept = counted(count, "worker")
            return f"keeping {kept} for now, ready for less than {_SETTLE * seen.startup_s:.0f} s"
    return _work_reason(count, seen, bounds)


def _work_reason(count: int, seen: Observation, bounds: ScalingArgs) -> str:
    work_s = seen.queued_work_s + seen.running_left_s
    jobs = seen.queued_jobs + seen.running_jobs
    if not jobs:
        return "no work"
    part = f", this cluster's part among {seen.clusters}" if seen.clusters > 1 else ""
    work = f"{work_s:.0f} s of work in {counted(jobs, 'job')} ({seen.queued_jobs} waiting){part}"
    workers = counted(count, "worker")
    if count == jobs:
        return f"{work}: {workers}, one per job"
    wait = f"for a wait of about {bounds.target_wait_s:g} s (target_wait_s)"
    return f"{work}: {workers} {wait}; one more takes {seen.startup_s:.0f} s to start"
