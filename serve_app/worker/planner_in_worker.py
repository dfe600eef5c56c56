"""The planner of a worker, in its process and on its device."""

from dataclasses import dataclass

from serve_app.engine.planner.protocol import Planner


@dataclass(frozen=True)
class PlannerInWorker:
    """A planner to load after a worker's model."""

    planner: Planner
    jobs_at_once: int
