"""Makes a model's planner from its settings."""

from pathlib import Path

from serve_app.config import ModelArgs
from serve_app.config.sources import SIMULATED
from serve_app.engine.planner.protocol import Planner
from serve_app.engine.planner.simulated import SimulatedPlanner


def new_planner(name: str, args: ModelArgs, cache: Path, reserved: int = 0) -> Planner:
    """The planner of model `name`, not loaded yet.

    `cache` is the folder for downloaded checkpoints. `reserved` are the bytes of the device's memory that the planner must leave
    free.
    """
    if args.planner.source == SIMULATED:
        return SimulatedPlanner(args)
    from serve_app.engine.planner.planner import QwenPlanner  # needs torch, which a simulated planner does without

    return QwenPlanner(name, args, args.planner, cache, reserved)
