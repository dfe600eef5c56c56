"""What a worker requires of an engine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.audio import Song
from serve_app.config import Variant
from serve_app.music import MusicRequest, TaskType

OnStep = Callable[[str, int, int], None]
"""Called with a stage (conditioning, denoising or decoding), the number of its finished steps, and the number of all its steps."""


@dataclass(frozen=True)
class EngineFacts:
    """The loaded model and its device. Sizes are in bytes; `free_memory` and `peak_memory` are the device's, None on the CPU."""

    variant: Variant
    source: str
    revision: str | None
    """Commit of the checkpoint, where it comes from a repository."""
    dtype: str
    device: str
    tasks: tuple[TaskType, ...]
    noise: bool
    """Whether the weights are random, so that every song is noise."""
    versions: Mapping[str, str]
    """Versions of the packages that compute, by name."""
    weights_bytes: int
    free_memory: int | None = None
    peak_memory: int | None = None


class Engine(Protocol):
    """Implemented by AceStepEngine, and by SimulatedEngine for tests of scheduling."""

    @property
    def slots(self) -> int:
        """How many jobs it can generate at once. The worker calls `generate` from as many threads."""

    def load(self, report: Callable[[str, float | None, str], None]) -> Any:
        """Load the model. Returns EngineFacts. Calls `report` with phase, progress (0 to 1 or None) and a description.

        Raises LoadError, and may be called again then.
        """

    def generate(
        self, request: MusicRequest, on_step: Callable[[str, int, int], None], stopped: Callable[[], bool]
    ) -> Iterator[Song]:
        """Yield the songs of a request, one per variation. Raises Stopped soon after `stopped()` has become true."""

    def warnings(self, request: MusicRequest) -> tuple[str, ...]:
        """What the request asks for and this model cannot do, one sentence each."""
