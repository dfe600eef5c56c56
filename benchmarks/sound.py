"""Measures that compare songs, and levels. Songs are arrays (2, samples) at 48 kHz."""

from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.player import Samples
from miniature import measures
from serve_app.music import SAMPLE_RATE
from tests.support.listening import chromagram

PITCHED_HZ: Final = 1200
"""Above this, the packaged models' latents hold energies of bands and no waveform."""
_LOWEST_HZ: Final = 100
_THIRDS: Final = 22
"""Thirds of an octave from 100 Hz to 16 kHz."""
_SMOOTHED: Final = 5
"""Onsets are compared as means over this many hundredths of a second: what is heard as together need not be exactly so."""


def decibels(ratio: float) -> float:
    """A ratio of powers in dB; -inf for 0."""
    return float(10 * np.log10(ratio)) if ratio > 0 else float("-inf")


def power(song: Samples) -> float:
    """The mean square of all samples."""
    return float(np.square(song, dtype=np.float64).mean())


def peak_db(song: Samples) -> float:
    """The largest sample in dBFS."""
    return decibels(float(np.abs(song).max()) ** 2)


def fidelity_db(copy: Samples, original: Samples) -> float:
    """How far the error of a copy is below the original, in dB; inf if they are equal. They have the same shape."""
    error = power(copy - original)
    return float("inf") if error == 0 else decibels(power(original) / error)


def below(song: Samples, hertz: float) -> Samples:
    """What a song has below a frequency, by an ideal filter."""
    spectrum = np.fft.rfft(song)
    frequencies = np.fft.rfftfreq(song.shape[1], 1 / SAMPLE_RATE)
    spectrum[:, frequencies > hertz] = 0
    return np.fft.irfft(spectrum, song.shape[1]).astype(np.float32)


def pitch_class_likeness(song: Samples, other: Samples) -> float:
    """The correlation of two songs' shares of energy in the twelve pitch classes."""
    return correlation(measures.pitch_classes(song), measures.pitch_classes(other))


def melody_likeness(song: Samples, other: Samples) -> float:
    """The correlation of two songs' pitch classes over time, as amplitudes."""
    return correlation(np.sqrt(chromagram(song)), np.sqrt(chromagram(other)))


def onset_likeness(song: Samples, other: Samples) -> float:
    """The correlation of how much two songs' spectra rise, over time."""
    return correlation(_smooth(measures.onsets(song)), _smooth(measures.onsets(other)))


def timbre_distance_db(song: Samples, other: Samples) -> float:
    """How far apart two songs' spectra are in thirds of an octave, each taken at the same level: root mean square, in dB."""
    spectra = [_thirds_db(one) for one in (song, other)]
    return float(np.sqrt(np.square(spectra[0] - spectra[1]).mean()))


def correlation(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Pearson's correlation of two arrays of one shape."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _thirds_db(song: Samples) -> npt.NDArray[np.float64]:
    """The share of each third of an octave in the energy between 100 Hz and 16 kHz, in dB; what is below -80 dB counts as that."""
    powers = (np.abs(np.fft.rfft(song)) ** 2).sum(0)
    frequencies = np.fft.rfftfreq(song.shape[1], 1 / SAMPLE_RATE)
    edges = _LOWEST_HZ * 2 ** (np.arange(_THIRDS + 1) / 3)
    energies, _ = np.histogram(frequencies, edges, weights=powers)
    shares: npt.NDArray[np.float64] = 10 * np.log10(energies / energies.sum() + 1e-8)
    return shares


def _smooth(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    smoothed: npt.NDArray[np.floating] = np.convolve(values, np.ones(_SMOOTHED) / _SMOOTHED, "same")
    return smoothed
