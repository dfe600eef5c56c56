"""What a worker drives, whatever plays the music."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.audio import Song
from serve_app.config import Variant
from serve_app.music import MusicRequest, TaskType

OnStep = Callable[[str, int, int], None]
"""Called with a stage (conditioning, denoising or decoding), its steps done and its steps in all."""


@dataclass(frozen=True)
class EngineFacts:
    """What was loaded, and where. Sizes are in bytes; `free_memory` and `peak_memory` are the device's, None on the CPU."""

    variant: Variant
    source: str
    revision: str | None
    dtype: str
    device: str
    tasks: tuple[TaskType, ...]
    noise: bool
    versions: Mapping[str, str]
    weights_bytes: int
    free_memory: int | None = None
    peak_memory: int | None = None


class Engine(Protocol):
    """What a worker drives: AceStepEngine, or SimulatedEngine in tests of scheduling."""

    def load(self, report: Callable[[str, float | None, str], None]) -> Any:
        """Get ready, telling phase, progress and detail; raises LoadError. What it is, as a dataclass."""

    def generate(
        self, request: MusicRequest, on_step: Callable[[str, int, int], None], stopped: Callable[[], bool]
    ) -> Iterator[Song]:
        """The songs of a request; raises Stopped soon after `stopped()` has become true."""

    def warnings(self, request: MusicRequest) -> tuple[str, ...]:
        """What of the request cannot be honoured."""
