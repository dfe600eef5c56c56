"""The parts of a source that a repaint keeps, while the rest of the song is sampled.

This file imports torch: import it only after `loading.import_packages`.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KeptParts:
    """The source outside the new parts. Latents have the shape (1, frames, 64)."""

    source: torch.Tensor
    noise: torch.Tensor
    """The noise that the song started from."""
    windows: tuple[slice, ...]
    """The frames of each new part."""
    steps: int
    """After each of this many first steps, the kept frames are replaced by the source with as much noise as the song has."""
    ramp_frames: int
    """Over how many frames on each side of a new part the finished song passes into the source; 0: it is left as it is."""

    def held(self, latents: torch.Tensor, level: float) -> torch.Tensor:
        """Returns `latents`, at noise level `level`, with the source in the kept frames."""
        held = level * self.noise.float() + (1.0 - level) * self.source.float()
        for window in self.windows:
            held[:, window] = latents[:, window].float()
        return held

    def blended(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns the finished song with ramps into the source on both sides of each new part.

        The song's share is 1 inside, falls in equal steps over `ramp_frames` frames, and is 0 beyond.
        """
        if self.ramp_frames == 0:
            return latents
        frame = torch.arange(latents.shape[1], device=latents.device)
        distances = [torch.maximum(window.start - frame, frame - (window.stop - 1)) for window in self.windows]
        outside = torch.stack(distances).amin(0).clamp(min=0)
        share = (1.0 - outside / (self.ramp_frames + 1)).clamp(min=0.0).view(1, -1, 1)
        blended = share * latents.float() + (1.0 - share) * self.source.float()
        return blended.to(latents.dtype)
