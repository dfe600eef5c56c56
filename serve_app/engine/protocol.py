"""The interface between a worker and its engine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from serve_app.audio import Song
from serve_app.config import Variant
from serve_app.music import MusicRequest, TaskType

OnStep = Callable[[str, int, int], None]
"""Called with a stage (preparing, conditioning, denoising or decoding), its finished steps, and its total number of steps."""


@dataclass(frozen=True)
class EngineFacts:
    """Describes a loaded model and its device. Sizes are in bytes; `free_memory` and `peak_memory` are None on the CPU."""

    variant: Variant
    source: str
    revision: str | None
    """The commit of the checkpoint; None if it does not come from a repository."""
    dtype: str
    device: str
    tasks: tuple[TaskType, ...]
    noise: bool
    """Whether the weights are random, so that every song is noise."""
    versions: Mapping[str, str]
    """Versions of the packages that affect the result (such as torch), by package name."""
    weights_bytes: int
    aligns_lyrics: bool = False
    """Whether it can tell when a song's words are sung."""
    free_memory: int | None = None
    peak_memory: int | None = None


@dataclass(frozen=True, eq=False)
class SongInputs:
    """The audio that a request's songs are made from. What the request does not name is None."""

    source: np.ndarray | None = None
    """The song to change, as float32 samples of shape (frames, 2) at 48 kHz."""
    reference: np.ndarray | None = None
    """Audio whose sound the songs imitate, as float32 samples of shape (frames, 2) at 48 kHz."""
    source_latents: np.ndarray | None = None
    """The latents of `source`, if they were kept, as float32 of shape (latent frames, 64); they need no encoding then."""
    source_gain: float = 1.0
    """What `source_latents` decode to, times this, has the level of `source`, which was normalised."""
    codes: tuple[tuple[int, ...], ...] = ()
    """The planned audio codes of each song that is played. The request's `audio_codes` are those of the first; empty if the songs
    have no plan, or one without codes."""


NO_INPUTS: Final = SongInputs()


class Engine(Protocol):
    """Generates songs with one model. Implemented by AceStepEngine, and by SimulatedEngine for tests of scheduling."""

    @property
    def slots(self) -> int:
        """How many jobs the engine can run at once. The worker calls `generate` from this many threads."""

    def load(self, report: Callable[[str, float | None, str], None]) -> Any:
        """Load the model. Returns EngineFacts. Calls `report` with phase, progress (0 to 1 or None) and a description.

        Raises LoadError; the caller may then try again.
        """

    def generate(
        self,
        request: MusicRequest,
        on_step: Callable[[str, int, int], None],
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        """Yield the songs of a request, one per variation, made from `inputs` if its task needs any.

        Raises Stopped soon after `stopped()` has become true.
        """

    def codes_of(self, samples: np.ndarray) -> tuple[int, ...]:
        """The audio codes of a recording, five a second. `samples` are float32 of shape (frames, 2) at 48 kHz.

        Raises InvalidRequest if the model has no audio tokenizer, OutOfDeviceMemory and DeviceLost.
        """

    def warnings(self, request: MusicRequest) -> tuple[str, ...]:
        """Returns one sentence for each part of the request that this model will ignore."""
