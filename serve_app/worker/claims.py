"""A worker's claim on a job, and the job's progress."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from serve_app import metrics
from serve_app.jobs import Job, StoredAudio
from serve_app.music import MusicRequest
from serve_app.music.plan import Plan
from serve_app.music.planned import rendered_request
from serve_app.store import Beat

# Where each stage begins and ends, as a fraction of the whole job.
_STAGES: Final[dict[str, tuple[float, float]]] = {
    "preparing": (0.0, 0.01),  # decodes the recordings that the request names
    "conditioning": (0.01, 0.02),
    "denoising": (0.02, 0.8),
    "decoding": (0.8, 0.95),
    "encoding": (0.95, 1.0),
}
STORING: Final = "storing"
"""The stage of a job whose finished song the audio store refuses."""


@dataclass(frozen=True, slots=True)
class StoredSong:
    """A stored file of a job that is not published yet."""

    file: StoredAudio
    encode_s: float
    """Seconds from the start of encoding until the file was stored."""


@dataclass
class Claim:
    """A job that a worker holds, from the claim until the job is published, has failed or is lost."""

    job: Job
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when the claim is gone from the store: the job was cancelled, deleted, expired or given to another worker."""
    plan: Plan | None = None
    """What a planner has decided about the job's songs; None if they have no plan."""
    warnings: tuple[str, ...] = ()
    songs: list[Future[StoredSong]] = field(default_factory=list)
    progress: Mapping[str, Any] | None = None
    published_progress: Mapping[str, Any] | None = None
    """The progress that the store has."""
    blocked_s: float = 0.0
    """Seconds for which the generation waited until earlier songs were stored."""
    planning_s: float = 0.0
    """Seconds of the device that the planner had meanwhile, for other songs."""
    _storage_refusal: str | None = None
    _waiting_since: float = 0.0
    _waited_s: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _ended: float | None = None
    _step_ended: float = field(default_factory=time.monotonic)

    @property
    def request(self) -> MusicRequest:
        """The job's request as its songs are rendered, with what the plan has decided."""
        return self.job.request if self.plan is None else rendered_request(self.job.request, self.plan)

    def stop_clock(self) -> None:
        """Mark the end of the generation. Only the first call counts."""
        if self._ended is None:
            self._ended = time.monotonic()

    @property
    def total_s(self) -> float:
        """Seconds of the generation so far, or in all once the clock is stopped."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def gpu_s(self) -> float:
        """The part of `total_s` in which the job used the device."""
        return max(self.total_s - self.blocked_s - self.planning_s, 0.0)

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the claim: two attempts of one job are two claims."""
        return self.job.id, self.job.attempt

    def on_step(self, stage: str, step: int, steps: int) -> None:
        """Record the progress; the heartbeat publishes it."""
        begin, end = _STAGES[stage]
        fraction = begin + (end - begin) * step / max(steps, 1)
        if stage == "denoising":
            metrics.step(self.job.model, time.monotonic() - self._step_ended)
        self._step_ended = time.monotonic()
        self._set_progress(stage=stage, step=step, steps=steps, fraction=round(fraction, 4))

    def begin_waiting(self, reason: str) -> None:
        """Record that the audio store refuses a song of the job. The client reads `reason`."""
        if self._storage_refusal is None:
            self._waiting_since = time.monotonic()
        self._storage_refusal = reason
        self._set_progress(stage=STORING)

    def end_waiting(self) -> None:
        """Record that a song which the audio store refused is stored.

        The seconds of waiting do not count towards `queue.run_limit_s`. Seconds in which two songs wait count once.
        """
        if self._storage_refusal is None:
            return
        self._waited_s += time.monotonic() - self._waiting_since
        self._storage_refusal = None
        self._set_progress()

    def _set_progress(self, **changes: Any) -> None:
        known = {"stage": STORING, "step": 0, "steps": 0, "fraction": 0.95, **(self.progress or {})}
        self.progress = known | changes | {"detail": self._storage_refusal, "waited_s": round(self._waited_s, 1)}

    @property
    def has_new_progress(self) -> bool:
        """Whether there is progress that the store does not have yet."""
        return self.progress != self.published_progress

    def beat(self) -> Beat:
        """What the heartbeat writes for this claim."""
        progress = self.progress if self.has_new_progress else None
        return Beat(self.job.id, self.job.attempt, str(self.job.worker), progress)
