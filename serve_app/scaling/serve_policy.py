"""What Ray Serve's controller calls to scale a model's workers.

Ray Serve pickles this module by value into its controller, which must never wait: so nothing heavy is imported here, and the
store is read by a thread of the policy's own.
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
from serve_app.scaling.policy import Decision, Observation, decide

logger = logging.getLogger("ray.serve.sophia")

STALE_S: Final = 10.0
"""After so many seconds without an answer from the store, the reason says so."""

PERIOD_S: Final = 1.0
"""The store is read this often."""


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
    ) -> None:
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
        self._decision = decision
        self._answered = time.monotonic()
        self._problem = "it answers slowly"
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
