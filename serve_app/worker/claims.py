"""A job in a worker's hands, and how far it is."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from serve_app import metrics
from serve_app.jobs import Job
from serve_app.store import Beat

# How the work of a job divides: where each stage begins and ends, as a part of the whole.
_STAGES: Final[dict[str, tuple[float, float]]] = {
    "conditioning": (0.0, 0.02),
    "denoising": (0.02, 0.8),
    "decoding": (0.8, 0.95),
    "encoding": (0.95, 1.0),
}
STORING: Final = "storing"
"""The stage of a song that is made, and that the audio store refuses."""


@dataclass
class Claim:
    """A job from its claim until it is published. `gone` is set when the store no longer knows the claim."""

    job: Job
    gone: threading.Event = field(default_factory=threading.Event)
    progress: Mapping[str, Any] | None = None
    told: Mapping[str, Any] | None = None
    blocked_s: float = 0.0
    """Seconds for which the generation waited for the encoder."""
    _waiting_for: str | None = None
    _waiting_since: float = 0.0
    _waited_s: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _moved_at: float = field(default_factory=time.monotonic)

    @property
    def total_s(self) -> float:
        """Seconds since the generation began."""
        return time.monotonic() - self._began

    @property
    def gpu_s(self) -> float:
        """Those of them in which it had use of the device."""
        return self.total_s - self.blocked_s

    @property
    def key(self) -> tuple[str, int]:
        """Which claim it is: two attempts of one job are two claims."""
        return self.job.id, self.job.attempt

    def on_step(self, stage: str, step: int, steps: int) -> None:
        """Remember how far it is; the heartbeat tells it."""
        begin, end = _STAGES[stage]
        fraction = begin + (end - begin) * step / max(steps, 1)
        if stage == "denoising":
            metrics.step(self.job.model, time.monotonic() - self._moved_at)
        self._moved_at = time.monotonic()
        self._says(stage=stage, step=step, steps=steps, fraction=round(fraction, 4))

    def waits(self, why: str) -> None:
        """A song of it cannot be stored, for the reason `why`, which its client reads."""
        if self._waiting_for is None:
            self._waiting_since = time.monotonic()
        self._waiting_for = why
        self._says(stage=STORING)

    def goes_on(self) -> None:
        """That song is stored. Seconds that it waited do not count for `queue.run_limit_s`; those of two at once count once."""
        if self._waiting_for is None:
            return
        self._waited_s += time.monotonic() - self._waiting_since
        self._waiting_for = None
        self._says()

    def _says(self, **news: Any) -> None:
        told = {"stage": STORING, "step": 0, "steps": 0, "fraction": 0.95, **(self.progress or {}), **news}
        self.progress = told | {"detail": self._waiting_for, "waited_s": round(self._waited_s, 1)}

    @property
    def has_news(self) -> bool:
        """Whether there is progress that was not told yet."""
        return self.progress != self.told

    def beat(self) -> Beat:
        """What the heartbeat says of it."""
        return Beat(self.job.id, self.job.attempt, str(self.job.worker), self.progress if self.has_news else None)
