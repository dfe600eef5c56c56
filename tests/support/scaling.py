"""Observations and bounds for tests of the autoscaling policy."""

from dataclasses import replace
from typing import Any

from serve_app.config import ScalingArgs
from serve_app.scaling.policy import WINDOWS, Observation

NOTHING = Observation(
    queued_jobs=0,
    queued_work_s=0.0,
    running_jobs=0,
    running_left_s=0.0,
    ready_s=(),
    startup_s=100.0,
    arrivals=((0, 0.0),) * WINDOWS,
    idle_s=0.0,
)
BOUNDS = ScalingArgs(min_workers=0, max_workers=50, target_wait_s=100, idle_s=300)


def waiting(jobs: int, work_s: float, **others: Any) -> Observation:
    """An observation with jobs in the queue and nothing else, unless `others` says so."""
    return replace(NOTHING, queued_jobs=jobs, queued_work_s=work_s, **others)
