"""Engines that fail as real ones do, and a short song from the real one."""

from collections.abc import Callable, Iterator
from typing import Any

from serve_app.audio import Song
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import MusicRequest


class BrokenDevice(SimulatedEngine):
    """Fails each song at once, like a card that has failed."""

    def __init__(self, name: str, args: ModelArgs, error: Exception) -> None:
        super().__init__(name, args)
        self._error = error

    def generate(
        self, request: MusicRequest, on_step: Callable[[str, int, int], None], stopped: Callable[[], bool]
    ) -> Iterator[Song]:
        raise self._error


def generate(
    engine: AceStepEngine,
    on_step: Callable[[str, int, int], None] = lambda stage, step, steps: None,
    stopped: Callable[[], bool] = lambda: False,
    **fields: Any,
) -> list[Song]:
    """Generate one second of piano in two steps with seed 7. `fields` override these."""
    request = MusicRequest.model_validate({"prompt": "piano", "duration": 1.0, "steps": 2, "seed": 7} | fields)
    return list(engine.generate(request, on_step, stopped))
