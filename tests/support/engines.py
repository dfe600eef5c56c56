"""Engines that fail as real ones do."""

from collections.abc import Callable, Iterator

from serve_app.audio import Song
from serve_app.config import ModelArgs
from serve_app.engine.simulated import SimulatedEngine
from serve_app.music import MusicRequest


class BrokenDevice(SimulatedEngine):
    """Fails each song at once, as on a card that has failed."""

    def __init__(self, name: str, args: ModelArgs, error: Exception) -> None:
        super().__init__(name, args)
        self._error = error

    def generate(
        self, request: MusicRequest, on_step: Callable[[str, int, int], None], stopped: Callable[[], bool]
    ) -> Iterator[Song]:
        raise self._error
