"""Latents of mixes from the latents of their stems.

A latent's first numbers are linear in the audio: a projection of its MDCT. The last ten are logarithms of band energies,
scaled; energies of unlike sounds add up, but for cross terms that average to nothing.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

Latents = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

LINEAR = 54
ENERGY_FLOOR = 1e-6  # what the analysis adds to an energy before it takes the logarithm


def silence(frames: int) -> Latents:
    """The latents of silence: (frames, 64)."""
    return _encoded(np.zeros((frames, LINEAR)), np.zeros((frames, 10)))


def mixed(stems: Sequence[Latents]) -> Latents:
    """The latents of the stems' sum, nearly. `stems`: one or more of (frames, 64)."""
    mean, scale = energy_scale()
    linear = sum(stem[:, :LINEAR] for stem in stems)
    energies = sum(np.maximum(10 ** (stem[:, LINEAR:] * scale + mean) - ENERGY_FLOOR, 0) for stem in stems)
    return _encoded(np.asarray(linear), np.asarray(energies))


def _encoded(linear: np.ndarray, energies: np.ndarray) -> Latents:
    mean, scale = energy_scale()
    logarithms = (np.log10(energies + ENERGY_FLOOR) - mean) / scale
    return np.concatenate([linear, logarithms], 1).astype(np.float32)


@cache
def energy_scale() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the logarithms, (10,) each."""
    with np.load(Path(__file__).with_name("latent_basis.npz")) as basis:
        return basis["em"], basis["es"]
