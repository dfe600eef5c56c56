"""Differential correction in the wavelet domain (DCW), which the original ACE-Step uses with turbo models.

After each step it moves the song further away from the model's own prediction of it, more in the slow band early and more in the
fast band late. This makes up for a distilled model's few steps. The original has it in acestep/models/common (dcw_correction.py).
This file imports torch: import it only after `loading.import_packages`.
"""

from dataclasses import dataclass

import torch

from serve_app.music import DcwMode


@dataclass(frozen=True)
class Correction:
    """The correction of one song."""

    mode: DcwMode
    strength: float
    high_strength: float
    """The strength of the fast band in the mode `double`; `strength` is that of the slow band there."""

    def corrected(self, latents: torch.Tensor, music: torch.Tensor, level: float) -> torch.Tensor:
        """Returns `latents`, of shape (1, frames, 64), after a step, corrected.

        `music` is the song that the model predicted before the step, `level` the noise level at which the step started. With
        e = latents - music, the bands of the result are band(latents) + strength(band) * band(e). The wavelet is Haar's, on one
        level along time: each pair of frames is its mean (slow) and half its difference (fast). An odd last frame is paired with
        zeros.
        """
        apart = latents - music
        if self.mode == "pix":
            return latents + self.strength * apart
        slow_strength = {"low": level * self.strength, "double": level * self.strength, "high": 0.0}[self.mode]
        fast_strength = (1.0 - level) * {"low": 0.0, "double": self.high_strength, "high": self.strength}[self.mode]
        frames = apart.shape[1]
        padded = torch.nn.functional.pad(apart, (0, 0, 0, frames % 2))
        first = padded[:, 0::2]
        second = padded[:, 1::2]
        slow = slow_strength * (first + second) / 2
        fast = fast_strength * (first - second) / 2
        change = torch.stack([slow + fast, slow - fast], dim=2).flatten(1, 2)
        return latents + change[:, :frames]
