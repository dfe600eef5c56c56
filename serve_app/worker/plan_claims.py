"""A worker's claim on a plan, and the device time of plans that are made together."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.store import Beat, PlanTask


@dataclass
class PlanClaim:
    """A plan that a worker holds, from the claim until it is published, has failed or is lost."""

    task: PlanTask
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when the claim is gone from the store: the plan's job has ended, or another worker has the plan."""
    progress: Mapping[str, Any] | None = None
    published_progress: Mapping[str, Any] | None = None
    """The progress that the store has."""

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the claim: two attempts at one plan are two claims."""
        return self.task.id, self.task.attempt

    def on_token(self, stage: str, tokens: int, most: int) -> None:
        """Record the progress in a stage (metadata or codes); the heartbeat publishes it."""
        fraction = round(tokens / most, 2) if most else 0.0
        self.progress = {
            "stage": "planning",
            "step": tokens,
            "steps": most,
            "fraction": min(fraction, 1.0) if stage == "codes" else 0.0,
            "detail": None,
            "waited_s": 0.0,
        }

    @property
    def has_new_progress(self) -> bool:
        """Whether there is progress that the store does not have yet. Less than a hundredth more is none."""
        return (self.progress or {}).get("fraction") != (self.published_progress or {}).get("fraction")

    def beat(self) -> Beat:
        """What the heartbeat writes for this claim."""
        progress = self.progress if self.has_new_progress else None
        return Beat(self.task.id, self.task.attempt, str(self.task.worker), progress)


class SharedDeviceTime:
    """Divides the time in which a planner works among the plans that it makes together: n at once get an nth each. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, int], float] = {}
        self._counted_to = time.monotonic()

    @property
    def plans(self) -> int:
        """How many plans are in the making."""
        return len(self._seconds)

    def begin(self, plan: tuple[str, int]) -> None:
        """Count a plan in from now on."""
        with self._lock:
            self._count()
            self._seconds[plan] = 0.0

    def end(self, plan: tuple[str, int]) -> float:
        """The plan's device seconds. It is counted no more."""
        with self._lock:
            self._count()
            return self._seconds.pop(plan)

    def _count(self) -> None:
        now = time.monotonic()
        for plan in self._seconds:
            self._seconds[plan] += (now - self._counted_to) / len(self._seconds)
        self._counted_to = now
