"""Noise of a frequency band."""

from functools import cache

import numpy as np

from miniature.latents import SAMPLE_RATE


@cache
def noise(samples: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Noise between two frequencies with a root mean square of 1; the same for the same arguments, and not to be changed."""
    spectrum = np.fft.rfft(np.random.default_rng(5).standard_normal(samples))
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum[(frequencies < low_hz) | (frequencies > high_hz)] = 0
    band: np.ndarray = np.fft.irfft(spectrum, samples)
    band /= np.sqrt((band**2).mean())
    return band
