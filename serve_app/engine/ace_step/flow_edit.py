"""Flow edit: turns a song into another one by the difference that its new words make (Kulikov et al., arXiv 2412.08629).

The rules are those of the original ACE-Step (acestep/models/common/flow_edit.py). This file imports torch: import it only after
`loading.import_packages`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from serve_app.engine.ace_step.guidance import Guidance

if TYPE_CHECKING:
    from serve_app.engine.ace_step.sampling import Slot

Velocities = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Returns the velocities of the source, told its own words, and of the song, told the new ones, at their noisy latents."""


@dataclass(frozen=True)
class Edit:
    """How one song is edited. Latents have the shape (1, frames, 64)."""

    source: torch.Tensor
    """The latents of the source, from which the song starts."""
    counterpart: "Slot"
    """What the transformer is told about the source. Has a guidance of its own, and is never advanced."""
    steps: int
    """So many first steps edit. The others are sampled as usual, with the new words."""
    draws: int
    """Each edited step is the mean over so many draws of noise."""

    def noisy_pair(self, song: torch.Tensor, level: float, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the source at noise level `level`, and the song with the same noise."""
        added = level * (noise.float() - self.source.float())
        return (self.source.float() + added).to(song.dtype), (song.float() + added).to(song.dtype)

    def velocity(self, slot: "Slot", velocities: Velocities) -> torch.Tensor:
        """Returns how far the song's velocity is from the source's, as the mean of the draws.

        Each draw starts with the momentum of the step before, so that the guidance does not depend on their order.
        """
        guided = [guidance for guidance in (self.counterpart.guidance, slot.guidance) if guidance is not None]
        before = [guidance.momentum for guidance in guided]
        after: list[list[torch.Tensor | float]] = []
        total = torch.zeros_like(slot.latents, dtype=torch.float32)
        for _ in range(self.draws):
            _set_momenta(guided, before)
            of_source, of_song = velocities(*self.noisy_pair(slot.latents, slot.noise_level, slot.fresh_noise()))
            total += of_song.float() - of_source.float()
            after.append([guidance.momentum for guidance in guided])
        _set_momenta(guided, [sum(momenta) / self.draws for momenta in zip(*after, strict=True)])
        return total / self.draws


def _set_momenta(guided: list[Guidance], momenta: list[torch.Tensor | float]) -> None:
    for guidance, momentum in zip(guided, momenta, strict=True):
        guidance.momentum = momentum
