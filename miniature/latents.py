"""The latents of the miniature: a fixed function of the audio, so that all of its parts train against the same numbers.

One latent describes 1,920 samples (40 ms) of 48 kHz audio with 64 numbers. The first 54 hold the waveform of both
channels' mean below 1.2 kHz: the lowest 96 coefficients of a sine-windowed MDCT, projected on the basis `P` in
`latent_basis.npz`. The other ten are the logarithms of the energies in five bands above 1.2 kHz, in two halves of the
latent, minus their mean `em` and divided by their standard deviation `es`.
"""

from functools import cache
from pathlib import Path

import numpy as np

from miniature.mixing import ENERGY_FLOOR, Latents, energy_scale

SAMPLE_RATE = 48000
SAMPLES = 1920
"""The samples of a latent."""
COEFFICIENTS = 96
BAND_EDGES_HZ = (1200, 2000, 3500, 6000, 9500, 15000)


def analyse(audio: np.ndarray) -> Latents:
    """The latents (frames, 64) of `audio` (2, samples); samples after the last whole latent do not count.

    Raises ValueError for audio of another shape, or shorter than one latent.
    """
    if audio.ndim != 2 or audio.shape[0] != 2 or audio.shape[1] < SAMPLES:
        raise ValueError(f"audio has the shape {audio.shape}: (2, samples) with at least {SAMPLES} samples is needed")
    mid = ((audio[0] + audio[1]) / 2).astype(np.float32)
    frames = len(mid) // SAMPLES
    with np.load(_basis_file()) as basis:
        projection = basis["P"]
    mean, scale = energy_scale()
    waveform = low_spectrum(mid, frames) @ projection
    energies = (np.log10(band_energies(mid, frames) + ENERGY_FLOOR) - mean) / scale
    return np.concatenate([waveform, energies], 1).astype(np.float32)


def low_spectrum(mid: np.ndarray, frames: int) -> np.ndarray:
    """The MDCT below 1.2 kHz of one channel: (frames, 96)."""
    padded = np.pad(mid, (SAMPLES // 2, SAMPLES // 2 + SAMPLES))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * SAMPLES)[::SAMPLES][:frames]
    spectrum: np.ndarray = windows @ _mdct()
    return spectrum


def band_energies(mid: np.ndarray, frames: int) -> np.ndarray:
    """The energies above 1.2 kHz of one channel: (frames, 10), five bands of a latent's first half, then of its second."""
    hop = SAMPLES // 2
    padded = np.pad(mid, (hop // 2, hop // 2 + SAMPLES))
    windows = np.lib.stride_tricks.sliding_window_view(padded, SAMPLES)[::hop][: 2 * frames]
    spectrum = np.fft.rfft(windows * np.hanning(SAMPLES).astype(np.float32))
    power = spectrum.real**2 + spectrum.imag**2
    bands: np.ndarray = power @ _bands() / SAMPLES
    return bands.reshape(frames, 2 * (len(BAND_EDGES_HZ) - 1))


def _basis_file() -> Path:
    return Path(__file__).with_name("latent_basis.npz")


@cache
def _mdct() -> np.ndarray:
    """The MDCT's windowed cosines: (2 * SAMPLES, 96)."""
    time = np.arange(2 * SAMPLES)[:, None] + 0.5
    frequency = np.arange(COEFFICIENTS)[None] + 0.5
    window = np.sin(np.pi * time / (2 * SAMPLES))
    cosines = np.cos(np.pi / SAMPLES * (time + SAMPLES / 2) * frequency)
    basis: np.ndarray = np.sqrt(2 / SAMPLES) * window * cosines
    return basis.astype(np.float32)


@cache
def _bands() -> np.ndarray:
    """Which spectral lines are in which band: (lines, 5) of 0 and 1."""
    lines = np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE)[:, None]
    edges = np.array(BAND_EDGES_HZ)
    inside: np.ndarray = (lines >= edges[:-1]) & (lines < edges[1:])
    return inside.astype(np.float32)
