"""A worker's claim on a plan, and the device time of plans that are made together and beside songs."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serve_app.store import Beat, PlanTask
from serve_app.worker.claims import Claim


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
    """Divides a device's time between the songs that are rendered on it and the plans that are made on it. Thread-safe.

    Planning counts as one more song: beside one song it has half of the time. The plans that are made together have equal parts of
    that. So the device seconds of songs and plans add up to those of the device.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, int], float] = {}
        self._lost: dict[tuple[str, int], float] = {}
        """For each song that is rendered, the seconds that planning had."""
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

    @contextmanager
    def beside_song(self, claim: Claim) -> Iterator[None]:
        """Count the block as the rendering of a song, and let its claim know the seconds that planning had meanwhile."""
        with self._lock:
            self._count()
            self._lost[claim.key] = 0.0
        try:
            yield
        finally:
            with self._lock:
                self._count()
                claim.planning_s = self._lost.pop(claim.key)

    def _count(self) -> None:
        now = time.monotonic()
        songs = len(self._lost)
        planning_s = (now - self._counted_to) / (1 + songs) if self._seconds else 0.0
        for plan in self._seconds:
            self._seconds[plan] += planning_s / len(self._seconds)
        for song in self._lost:
            self._lost[song] += planning_s / songs
        self._counted_to = now
