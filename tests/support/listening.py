"""Measures of what a song sounds like: its key, its notes and its brightness.

A song is an array (2, samples) at 48 kHz. Every function raises ValueError if it is silent.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from miniature import measures
from serve_app.music import SAMPLE_RATE

Samples = npt.NDArray[np.floating]

NOTES: Final = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
"""The names of the pitch classes, from 0."""
CHROMAGRAM_HOP: Final = 4096
"""Samples from one column of a chromagram to the next."""

_STEPS: Final = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_FINE: Final = 16_384
"""Samples of a spectrum that tells the notes above 120 Hz apart: its lines are 2.9 Hz apart."""
_SHORT: Final = 2048
"""Samples of a spectrum for bands that are wide."""
_LOWEST_HZ: Final = 120
_HIGHEST_HZ: Final = 1100


def scale_notes(key: str) -> list[int]:
    """The pitch classes of a key's scale, from its root; a key is a note of NOTES and "major" or "minor"."""
    root, mode = key.split()
    return [(NOTES.index(root) + step) % 12 for step in _STEPS[mode]]


def pitch_classes(song: Samples) -> npt.NDArray[np.float64]:
    """Each pitch class's share of the energy between 120 and 1,100 Hz: (12,), from C."""
    energies = chromagram(song).sum(1)
    shares: npt.NDArray[np.float64] = energies / energies.sum()
    return shares


def chromagram(song: Samples) -> npt.NDArray[np.float64]:
    """Each pitch class's energy between 120 and 1,100 Hz over time: (12, times), from C, a column each CHROMAGRAM_HOP samples."""
    powers = _powers(song, _FINE, CHROMAGRAM_HOP)
    frequencies = np.fft.rfftfreq(_FINE, 1 / SAMPLE_RATE)
    heard = (frequencies > _LOWEST_HZ) & (frequencies < _HIGHEST_HZ)
    notes = np.round(69 + 12 * np.log2(frequencies[heard] / 440)).astype(int) % 12
    energies = np.zeros((12, len(powers)))
    np.add.at(energies, notes, powers[:, heard].T)
    return energies


def scale_share(song: Samples, key: str) -> float:
    """The share of the energy between 120 and 1,100 Hz that is in the key's scale; .58 if all notes are equally loud."""
    return float(pitch_classes(song)[scale_notes(key)].sum())


def best_key(song: Samples) -> str:
    """The key that miniature.measures hears."""
    key = measures.heard_key(pitch_classes(song))
    return f"{key.tonic} {key.mode}"


def centroid_hz(song: Samples) -> float:
    """The spectral centroid, in Hz: the mean frequency, weighted by energy."""
    powers = _powers(song, _SHORT, _SHORT // 2).mean(0)
    frequencies = np.fft.rfftfreq(_SHORT, 1 / SAMPLE_RATE)
    return float((powers * frequencies).sum() / powers.sum())


def _powers(song: Samples, window: int, hop: int) -> npt.NDArray[np.float64]:
    """The power spectra (times, frequencies) of both channels' mean."""
    mono = song.mean(0, dtype=np.float64)
    if not np.any(mono):
        raise ValueError("the song is silent")
    frames = np.lib.stride_tricks.sliding_window_view(mono, window)[::hop]
    powers: npt.NDArray[np.float64] = np.square(np.abs(np.fft.rfft(frames * np.hanning(window))))
    return powers
