"""What Ray Serve's controller calls to scale a model's workers.

Ray Serve pickles this module by value into its controller, which must never wait. The module therefore imports nothing heavy, and
a thread reads the store. The thread is no `PeriodicThread`, whose health is part of an API process or a worker.
"""

import importlib
import logging
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from serve_app.config import ScalingArgs
from serve_app.plurals import counted
from serve_app.scaling.policy import Decision, Observation, decide

logger = logging.getLogger("ray.serve.sophia")

STALE_S: Final = 10.0
"""After this many seconds without an answer from the store, the reason reports it."""

PERIOD_S: Final = 1.0
"""Seconds between two reads of the store."""


class Fleet(Protocol):
    """What the policy reads and writes: one model's jobs and workers in the store. Its calls may block."""

    def observe(self) -> Observation:
        """The current state."""

    def publish(self, target: int, reason: str) -> None:
        """Write the decision, which /v1/health shows."""

    def close(self) -> None:
        """Close the database connections."""


class QueuePolicy:
    """Ray Serve's AutoscalingPolicy for one model's workers.

    Serve's controller calls it about ten times a second and does nothing else meanwhile. The call returns the last decision of
    its thread, in microseconds. While the store is unreachable, that decision stays.
    """

    def __init__(
        self, bounds: Mapping[str, Any], source: str, source_kwargs: Mapping[str, Any], period_s: float = PERIOD_S
    ) -> None:
        """All arguments are JSON, which Serve requires. `bounds` are ScalingArgs.

        `source` names a function ("module:function") that makes a Fleet from `bounds=ScalingArgs` and `source_kwargs`. The thread
        imports and calls it.
        """
        self._reader = _Reader(ScalingArgs.model_validate(bounds), source, dict(source_kwargs), period_s)
        # Serve makes a new policy at each deploy and does not close the old one.
        weakref.finalize(self, self._reader.ended.set)

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Return the target, and the decision as state. `ctx` is Serve's AutoscalingContext; only `target_num_replicas` is used."""
        decision = self._reader.latest(ctx.target_num_replicas)
        return decision.target, {"target": decision.target, "reason": decision.reason}


class _Reader:
    """The thread that reads the store and decides. It holds no reference to its policy, so that it ends when Serve drops that."""

    def __init__(self, bounds: ScalingArgs, source: str, source_kwargs: dict[str, Any], period_s: float) -> None:
        self.ended = threading.Event()
        self._bounds = bounds
        self._source = source
        self._source_kwargs = source_kwargs
        self._period_s = period_s
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
        decision = self._decision
        silent_s = time.monotonic() - self._answered
        if decision is None:
            return Decision(
                current, f"keeping {counted(current, 'worker')}: the job store is awaited ({self._problem})"
            )
        if silent_s < max(STALE_S, 3 * self._period_s):
            return decision
        outage = f"the job store has not answered for {silent_s:.0f} s ({self._problem})"
        return replace(decision, reason=f"keeping {counted(decision.target, 'worker')}: {outage}")

    def _run(self) -> None:
        fleet: Fleet | None = None
        while not self.ended.is_set():
            try:
                fleet = fleet or self._open()
                self._decide(fleet)
            except Exception as error:  # nothing else would restart this thread, so it retries after every error
                self._record_failure(f"{type(error).__name__}: {error}")
            self.ended.wait(self._period_s)
        if fleet is not None:
            fleet.close()

    def _record_failure(self, problem: str) -> None:
        if problem != self._problem:  # log an outage once, not every second
            # Before the first decision the tables may not exist yet: an API process or a worker creates them.
            level = logging.WARNING if self._decision else logging.INFO
            logger.log(level, "the number of workers stays unchanged: %s", problem)
        self._problem = problem

    def _open(self) -> Fleet:
        module, _, function = self._source.partition(":")
        opened: Fleet = getattr(importlib.import_module(module), function)(bounds=self._bounds, **self._source_kwargs)
        return opened

    def _decide(self, fleet: Fleet) -> None:
        seen = fleet.observe()
        last = self._decision or Decision(self._current or 0, "")
        decision = decide(seen, self._bounds, replace(last, target=self._current or 0))
        if decision.target != last.target:
            logger.info("workers wanted: %s instead of %s: %s", decision.target, last.target, decision.reason)
        self._decision = decision
        self._answered = time.monotonic()
        self._problem = "it answers slowly"
        fleet.publish(decision.target, decision.reason)


def autoscaling_config(
    bounds: ScalingArgs, source: str, source_kwargs: Mapping[str, Any], *, initial_workers: int | None = None
) -> dict[str, Any]:
    """The `autoscaling_config` of a Serve deployment for which QueuePolicy alone decides.

    It begins with `initial_workers`, by default `min_workers`.

    Serve's own delays and factors are off. Its `min_replicas` is 0 for every `min_workers`, since it overrides the policy and an
    open breaker must be able to ask for no worker.
    """
    return {
        "min_replicas": 0,
        "initial_replicas": bounds.min_workers if initial_workers is None else initial_workers,
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
