"""The planner of a worker, in its process and on its device."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.config import ModelArgs
from serve_app.engine.planner.making import new_planner
from serve_app.engine.planner.protocol import Planner


@dataclass(frozen=True)
class PlannerInWorker:
    """A planner to load after a worker's model."""

    planner: Planner
    jobs_at_once: int
    is_optional: bool = False
    """Whether the worker does without the planner if the memory is too small, because processes that only plan stand in."""


def planner_of_workers(name: str, model: ModelArgs, cache: Path) -> PlannerInWorker | None:
    """The planner that the workers of model `name` load, or try to. None if they do not plan.

    `cache` is the folder for downloaded checkpoints.
    """
    settings = model.planner
    if not settings.may_run_in_workers:
        return None
    reserved = int(settings.render_reserve_gb * 1e9) if settings.follows_workers else 0
    planner = new_planner(name, model, cache, reserved)
    return PlannerInWorker(planner, settings.jobs_at_once, is_optional=settings.follows_workers)
