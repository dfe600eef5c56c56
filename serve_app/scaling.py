"""How many workers a model should have: a pure decision, and the policy that Ray Serve's controller calls for it.

Ray Serve pickles this module by value into its controller, which must never wait: so nothing heavy is imported here, and the
store is read by a thread of the policy's own. docs/FLEET.md shows what the rules cost and save, against Serve's own policy.
"""

import importlib
import logging
import math
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.config import BreakerArgs

logger = logging.getLogger("ray.serve.sophia")

WINDOW_S: Final = 300.0
"""Length of one window of `Observation.arrivals`: a few start-ups long, as a load that is gone should be noticed within that."""

WINDOWS: Final = 6
"""How many windows an observation looks back on: half an hour says whether a load is steady."""

PERIOD_S: Final = 1.0
"""The store is read this often."""

STALE_S: Final = 10.0
"""After so many seconds without an answer from the store, the reason says so."""

_EARLY: Final = 0.4
# Under a steady load, workers leave when what waits is below this part of the accepted wait, not only when nothing waits.
# Of 0, 0.3, 0.4 and 0.7 the cheapest in benchmarks/fleet.py: below, workers that are not needed stay; above, they come and go.

_RESERVE: Final = 0.7
_BREAK_EVEN: Final = 0.8
# How many workers beyond the mean load are kept, see `_kept`. Cost depends little on either: 0.5 to 1 are within 1 %.

_SURE: Final = 2.0
# Standard deviations by which a quiet window must fall short before it counts as a lower load.

_SETTLE: Final = 0.25
# Part of a start-up: so long before and after a worker is ready, the target is not lowered.


class ScalingArgs(BaseModel):
    """The bounds within which a model's workers are scaled, and what they are for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_workers: int = Field(0, ge=0, description="Workers that are kept even when there is no work: a warm pool.")
    max_workers: int = Field(1, ge=1, description="The most workers, whatever waits: what bounds the bill.")
    target_wait_s: float = Field(
        60, gt=0, le=86_400, description="Seconds that a job may wait for a worker. Longer is cheaper."
    )
    idle_s: float = Field(
        300, ge=0, description="Seconds without any work after which only min_workers are kept, usually none."
    )
    startup_prior_s: float = Field(
        120, gt=0, description="Seconds until a new worker is ready, node included, as long as none was measured."
    )
    work_prior: float = Field(
        0.2, gt=0, description="Seconds of work for a second of audio, as long as none was measured."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) is below min_workers ({self.min_workers})")
        return self


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one model's queue and workers at one moment. Work is in seconds of one worker's time."""

    queued_jobs: int
    queued_work_s: float
    oldest_wait_s: float
    running_jobs: int
    """On workers that take more jobs; those on draining workers end there and ask for nothing."""
    running_left_s: float
    """Work left in these running jobs, summed."""
    ready: int
    starting_s: tuple[float, ...]
    """Seconds since each worker that is on its way began."""
    youngest_s: float
    """Seconds since the newest ready worker became ready; infinite when there is none."""
    draining: int
    startup_s: float
    """Seconds from wanting a worker to its being ready: measured, or the prior."""
    arrivals: tuple[tuple[int, float], ...]
    """(jobs, seconds of work) submitted in each of the last WINDOWS windows of WINDOW_S, the newest first."""
    idle_s: float
    """Seconds since there was any job queued or running."""
    breaker: str | None = None
    """Why workers must not be started; None while they may."""


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
    come up, the warm pool. `max_workers` bounds it, and an open breaker beats all of it.
    """
    if seen.breaker is not None:
        return Decision(0, f"the breaker is open: {seen.breaker}. No worker is wanted until it is closed")
    needed = _needed(seen, bounds, previous.target)
    claims = [
        (needed, _work_in_words(seen, bounds, needed)),
        (min(previous.needed, previous.target), "a worker that was needed a moment ago may be needed again"),
        (bounds.min_workers, f"min_workers is {bounds.min_workers}"),
    ]
    if seen.idle_s < bounds.idle_s:
        claims += [_kept(seen, bounds, previous.target), _settling(seen, previous.target)]
    target, reason = max(claims, key=lambda claim: claim[0])
    if target > bounds.max_workers:
        target, reason = bounds.max_workers, f"{reason}; max_workers is {bounds.max_workers}"
    return Decision(target, reason, needed)


def _needed(seen: Observation, bounds: ScalingArgs, have: int) -> int:
    """Workers for the work at hand: as many as get through it in the accepted wait, and never more than there are jobs.

    Work in seconds, not a count of jobs, since one song can be eight times another. Workers that are at it already stay while
    jobs wait: a busy worker costs nothing extra. Under a steady load some may go a little earlier (`_EARLY`): the rest stay
    fully used, and jobs wait about the same time each instead of either not at all or long.
    """
    work_s, jobs = seen.queued_work_s + seen.running_left_s, seen.queued_jobs + seen.running_jobs
    needed = math.ceil(work_s / bounds.target_wait_s)
    if not seen.queued_jobs:
        return min(max(needed, seen.running_jobs), jobs)
    at_work = have
    if _steady_load(seen.arrivals):
        at_work = min(have, math.ceil(work_s / (bounds.target_wait_s * _EARLY)))
    return min(max(needed, at_work), jobs)


def _kept(seen: Observation, bounds: ScalingArgs, have: int) -> tuple[int, str]:
    """Workers that stay through a lull, because the load has been steady: ending and starting one again would cost more.

    Load + beta * sqrt(load) of them, as in square-root staffing (Halfin and Whitt, Operations Research 29(3), 1981). Where the
    accepted wait is long against a job and a start-up, a worker can be started in time, and beta is negative; where it is short,
    only workers that are up already can serve it.
    """
    load = _steady_load(seen.arrivals)
    if not load:
        return 0, ""
    job_s = sum(work for _, work in seen.arrivals) / sum(jobs for jobs, _ in seen.arrivals)
    beta = _RESERVE * math.log(_BREAK_EVEN * (job_s + seen.startup_s) / bounds.target_wait_s)
    kept = max(0, min(have, round(load + beta * math.sqrt(load))))
    reason = f"a steady load of {load:.1f} workers over the last {WINDOWS * WINDOW_S / 60:.0f} min; starting one takes "
    return kept, f"{reason}{seen.startup_s:.0f} s, so {kept} are kept through a lull"


def _steady_load(arrivals: tuple[tuple[int, float], ...]) -> float:
    """Workers that the arrivals of the last half hour keep busy, 0.0 when they are not steady.

    The mean, unless windows were quieter than chance allows: then what the second quietest makes likely at most, from the upper
    bound (sqrt(n + 3/8) + z/2)^2 of a Poisson count n (Anscombe, Biometrika 35, 1948). A burst leaves its other windows empty,
    and so keeps nobody.
    """
    second = sorted(arrivals)[1:2]
    if len(arrivals) < WINDOWS or not arrivals[0][0] or not second[0][0]:
        return 0.0
    jobs, work_s = sum(count for count, _ in arrivals), sum(work for _, work in arrivals)
    likely_jobs = (math.sqrt(second[0][0] + 0.375) + _SURE / 2) ** 2
    return min(work_s / (WINDOW_S * len(arrivals)), likely_jobs * work_s / jobs / WINDOW_S)


def _settling(seen: Observation, have: int) -> tuple[int, str]:
    """No worker is thrown away just before or after it comes up. Serve would end one that is starting first of all."""
    settle_s = _SETTLE * seen.startup_s
    soon = any(-settle_s < seen.startup_s - age < settle_s for age in seen.starting_s)
    if soon or seen.youngest_s < settle_s:
        return have, f"workers have just come up or are about to; nobody leaves within {settle_s:.0f} s of that"
    return 0, ""


def _work_in_words(seen: Observation, bounds: ScalingArgs, needed: int) -> str:
    work_s, jobs = seen.queued_work_s + seen.running_left_s, seen.queued_jobs + seen.running_jobs
    if not jobs:
        return "no work"
    said = f"{work_s:.0f} s of work in {jobs} jobs ({seen.queued_jobs} waiting); "
    if needed == jobs:
        return f"{said}one worker each, which is all that can be of use"
    return f"{said}{needed} workers do it in about the {bounds.target_wait_s:g} s you accept"


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
                self._problem = f"{type(error).__name__}: {error}"
                logger.warning("the fleet's size stays as it is: %s", self._problem)
            self.ended.wait(self._period_s)
        if fleet is not None:
            fleet.close()

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
        "max_replicas": bounds.max_workers,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "policy": {
            "policy_function": f"{QueuePolicy.__module__}:{QueuePolicy.__name__}",
            "policy_kwargs": {
                "bounds": bounds.model_dump(mode="json"),
                "source": source,
                "source_kwargs": dict(source_kwargs),
            },
        },
    }


class FleetPolicy:
    """As many workers as are configured; none while the crash breaker is open, so that GPU nodes can be given back."""

    def __init__(self, model: str, deployment: str, replicas: int, database_url: str, breaker: dict[str, float]):
        self._model, self._deployment, self._replicas = model, deployment, replicas
        self._database_url, self._breaker = database_url, BreakerArgs.model_validate(breaker)
        self._target = replicas
        self._thread: threading.Thread | None = None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Serve's question, several times a second; the answer is the target and no state that Serve must keep."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name=f"policy-{self._model}", daemon=True)
            self._thread.start()
        return self._target, {}

    def _read(self) -> None:
        from serve_app.errors import StoreUnavailable
        from serve_app.store import Store  # here: the controller, the dashboard and the CLI import this module, too

        store = Store(self._database_url)
        said = ""
        while True:
            try:
                self._target, reason = self._decide(store.loads.breaker(self._model, self._deployment, self._breaker))
                if reason != said:
                    logger.info("%s: %s workers wanted: %s", self._model, self._target, reason)
                    store.decisions.publish(self._model, self._target, reason)
                    said = reason
            except StoreUnavailable as error:
                logger.warning("%s: still %s workers wanted: %s", self._model, self._target, error)
            threading.Event().wait(PERIOD_S)

    def _decide(self, breaker: Any) -> tuple[int, str]:
        if breaker.is_open:
            return 0, f"the crash breaker is open after {breaker.runs} loads that failed with {breaker.code}"
        return self._replicas, f"models.{self._model}.replicas is {self._replicas}"
