"""Classifier-free guidance: ways to push a song towards its prompt, with the constants of the original ACE-Step.

The original keeps them in acestep/models/common (guidance_registry.py and apg_guidance.py). This file imports torch and diffusers:
import it only after `loading.import_packages`.
"""

from dataclasses import dataclass, field
from typing import Final

import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from serve_app.music import GuidanceMode

_MOMENTUM: Final = -0.75
_NORM_THRESHOLD: Final = 2.5
_ETA: Final = 0.0

_ANGLE_LIMITS: Final[dict[GuidanceMode, float | None]] = {"adg": 3.14 / 6, "adg_w_norm": 3.14 / 3, "adg_wo_clip": None}
"""The largest angle, in radians, by which each kind of angle-based guidance turns a frame."""

_SMALL_SINE: Final = 1e-3
_COSINE_LIMIT: Final = 1.0 - 1e-6


@dataclass
class Guidance:
    """The guidance of one song. Holds the momentum between its steps."""

    scale: float
    start: float
    end: float
    """Guidance applies at noise levels t with start <= t <= end."""
    null_conditions: torch.Tensor
    """The learned embedding that stands for "no conditions", of shape (1, 1, width)."""
    mode: GuidanceMode = "apg"
    _momentum: MomentumBuffer = field(default_factory=lambda: MomentumBuffer(_MOMENTUM))

    @property
    def momentum(self) -> torch.Tensor | float:
        """What adaptive projected guidance remembers of earlier steps; 0 before the first."""
        average: torch.Tensor | float = self._momentum.running_average
        return average

    @momentum.setter
    def momentum(self, value: torch.Tensor | float) -> None:
        self._momentum.running_average = value

    def applies(self, level: float) -> bool:
        """Returns whether the song is guided at noise level `level`."""
        return self.start <= level <= self.end

    def guided(
        self,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        latents: torch.Tensor,
        level: float,
        *,
        is_corrector: bool = False,
    ) -> torch.Tensor:
        """Returns the guided velocity. All velocities, and `latents` at noise level `level`, have the shape (1, frames, 64).

        `is_corrector` tells Heun's second evaluation of a step: it must not count twice in the momentum, so `apg` uses plain
        guidance there, as the original does.
        """
        if self.mode in _ANGLE_LIMITS and level > 0.0:
            return self._turned(conditional, unconditional, latents, level)
        if self.mode == "apg" and not is_corrector:
            return self._projected(conditional, unconditional)
        return unconditional + self.scale * (conditional - unconditional)

    def _projected(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Adaptive projected guidance (Sadat et al., arXiv 2410.02416). Updates the momentum."""
        # This formulation adds the guidance to the conditional velocity, so a scale of 1 must add nothing.
        velocity: torch.Tensor = normalized_guidance(
            conditional,
            unconditional,
            guidance_scale=self.scale - 1.0,
            momentum_buffer=self._momentum,
            eta=_ETA,
            norm_threshold=_NORM_THRESHOLD,
            use_original_formulation=True,
            norm_dim=1,
        )
        return velocity

    def _turned(
        self, conditional: torch.Tensor, unconditional: torch.Tensor, latents: torch.Tensor, level: float
    ) -> torch.Tensor:
        """Angle-based dynamic guidance: turns each frame of the predicted song away from the unconditional prediction.

        A frame's vector is turned by its angle to the unconditional frame times (scale - 1), in the plane of both.
        """
        weight = max(self.scale - 1.0, 0.0) + 1e-3
        music = (latents - level * conditional).float()
        other = (latents - level * unconditional).float()
        cosine = torch.cosine_similarity(music.double(), other.double(), dim=-1).unsqueeze(-1)
        angle = torch.acos(cosine.clamp(-_COSINE_LIMIT, _COSINE_LIMIT)).float()
        turn = weight * angle
        limit = _ANGLE_LIMITS[self.mode]
        if limit is not None:
            turn = turn.clamp(-limit, limit)
        apart = music - other
        share = (apart * other).sum(-1, keepdim=True) / (other.square().sum(-1, keepdim=True) + 1e-8)
        across = apart - share * other
        sine = torch.sin(angle)
        factor = torch.where(sine > _SMALL_SINE, torch.sin(turn) / sine, weight)
        turned = torch.cos(turn) * music + factor * across
        if self.mode == "adg_w_norm":
            turned = turned * music.norm(dim=1, keepdim=True) / turned.norm(dim=1, keepdim=True)
        velocity: torch.Tensor = ((latents.float() - turned) / level).to(latents.dtype)
        return velocity
