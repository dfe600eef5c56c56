"""How many workers a model should have: a pure decision.

docs/FLEET.md shows what the rules cost and save, beside other policies.
"""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Final

from serve_app.config import ScalingArgs

WINDOW_S: Final = 300.0
"""Length of one window of `Observation.arrivals`: a few start-ups long, as a load that is gone should be noticed within that."""

WINDOWS: Final = 6
"""How many windows an observation looks back on: half an hour says whether a load is steady."""

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
    """Workers that arrivals will keep busy soon, by a straight line through the last half hour; 0.0 when they are not steady.

    Soon is when a worker that is started now will have been up for as long as it took to start. The line goes through square
    roots: those of Poisson counts vary by the same 1/2 whatever the load (Anscombe, Biometrika 35, 1948), so that what chance does
    to its slope is known and can be left out. A burst leaves the other windows empty, and so is no load.
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
    work_s = seen.queued_work_s + seen.running_left_s
    jobs = seen.queued_jobs + seen.running_jobs
    if not jobs:
        return "no work"
    part = f", this cluster's part among {seen.clusters}" if seen.clusters > 1 else ""
    said = f"{work_s:.0f} s of work in {jobs} jobs ({seen.queued_jobs} waiting){part}; {count} workers"
    if count == jobs:
        return f"{said}, one for each"
    return f"{said} keep to about the {bounds.target_wait_s:g} s of wait you accept; one more is ready in {seen.startup_s:.0f} s"
