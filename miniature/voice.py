"""A simple singing voice: a buzz of harmonics through the formants of a vowel, with consonants of shaped noise.

Formant frequencies: G. E. Peterson and H. L. Barney, "Control methods used in a study of the vowels" (1952), women's
means, rounded; the fourth formants are typical values.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from miniature.latents import SAMPLE_RATE
from miniature.noise import noise

Sound = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

LONGEST_SYLLABLE_S = 3.0
SYLLABLE_RELEASE_S = 0.06
HIGHEST_HARMONIC_HZ = 8000
VIBRATO_HZ = 5.5
VIBRATO = 0.007
VIBRATO_FROM_S = 0.2
LEVEL = 0.16  # the vowel's root mean square
CONSONANT_LEVEL = 0.12

FORMANTS_HZ = {
    "a": (850, 1220, 2810, 3800),
    "e": (610, 2330, 2990, 3900),
    "i": (310, 2790, 3310, 4100),
    "o": (590, 920, 2710, 3600),
    "u": (370, 950, 2670, 3500),
}
BANDWIDTHS_HZ = (90, 110, 160, 220)


@dataclass(frozen=True)
class Burst:
    """A consonant's noise: the silence before it, its length and its band."""

    silence_s: float
    noise_s: float
    low_hz: float
    high_hz: float

    def sound(self) -> Sound:
        length = int(self.noise_s * SAMPLE_RATE)
        shaped: np.ndarray = CONSONANT_LEVEL * np.hanning(length) * noise(length, self.low_hz, self.high_hz)
        return shaped.astype(np.float32)


_BURSTS = {
    "p": Burst(0.03, 0.015, 400, 2500),
    "b": Burst(0.02, 0.010, 300, 1500),
    "t": Burst(0.03, 0.020, 3000, 9000),
    "d": Burst(0.02, 0.015, 2500, 6000),
    "k": Burst(0.03, 0.025, 1500, 4000),
    "g": Burst(0.02, 0.020, 1200, 3000),
    "s": Burst(0.0, 0.090, 4500, 12000),
    "z": Burst(0.0, 0.060, 4000, 11000),
    "f": Burst(0.0, 0.070, 1500, 9000),
    "v": Burst(0.0, 0.040, 1200, 6000),
    "h": Burst(0.0, 0.060, 800, 5000),
}
ATTACK_S = 0.015
SONORANT_ATTACK_S = 0.08  # l, m, n, r, w, y open slowly, without noise


def syllables(text: str) -> list[str]:
    """The syllables of a line of lyrics, in order: each has one group of vowels; what follows the last stays with it.

    "hello moon" gives he, llo, moon. Words without a vowel give none.
    """
    found = []
    for word in re.findall(r"[a-z]+", text.lower()):
        parts = re.findall(r"[^aeiou]*[aeiou]+", word)
        if parts:
            tail = word[sum(map(len, parts)) :]
            found += [*parts[:-1], parts[-1] + tail]
    return found


def sung_syllable(syllable: str, frequency_hz: float, seconds: float) -> Sound:
    """The first `seconds` of a syllable that is held, LONGEST_SYLLABLE_S at most: its first consonant, then its vowel.

    Raises ValueError for a syllable without a vowel.
    """
    found = re.search(f"[{''.join(FORMANTS_HZ)}]", syllable)
    if found is None:
        raise ValueError(f"the syllable {syllable!r} has no vowel: one of {', '.join(FORMANTS_HZ)} is needed")
    vowel = _vowel(found.group(), frequency_hz)[: int(seconds * SAMPLE_RATE)]
    consonant = syllable[: found.start()][:1]
    time = np.arange(len(vowel), dtype=np.float32) / SAMPLE_RATE
    if consonant not in _BURSTS:
        attack_s = SONORANT_ATTACK_S if consonant else ATTACK_S
        return vowel * np.minimum(1, time / np.float32(attack_s))
    burst = _BURSTS[consonant]
    sound = vowel * np.clip((time - np.float32(burst.silence_s + 0.7 * burst.noise_s)) / np.float32(ATTACK_S), 0, 1)
    begin = int(burst.silence_s * SAMPLE_RATE)
    heard = burst.sound()[: len(sound) - begin]
    sound[begin : begin + len(heard)] += heard
    return sound


@cache
def _vowel(vowel: str, frequency_hz: float) -> Sound:
    """A steady vowel: a pulse train's harmonics, weighted by the formants' response at their frequency."""
    time = np.arange(int(LONGEST_SYLLABLE_S * SAMPLE_RATE)) / SAMPLE_RATE
    depth = VIBRATO * np.clip((time - VIBRATO_FROM_S) / VIBRATO_FROM_S, 0, 1)
    phase = 2 * np.pi * frequency_hz * np.cumsum(1 + depth * np.sin(2 * np.pi * VIBRATO_HZ * time)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    for harmonic in range(1, int(HIGHEST_HARMONIC_HZ / frequency_hz) + 1):
        # The glottal pulse falls by 12 dB an octave; the lips' radiation gives 6 dB of it back.
        level = _response(vowel, harmonic * frequency_hz) / harmonic
        wave += level * np.sin(harmonic * phase)
    wave *= LEVEL / np.sqrt((wave**2).mean())
    return wave.astype(np.float32)


def _response(vowel: str, frequency_hz: float) -> float:
    """The gain of a vowel's formants: a cascade of resonators, each 1 at 0 Hz."""
    gain = 1.0
    for formant, bandwidth in zip(FORMANTS_HZ[vowel], BANDWIDTHS_HZ, strict=True):
        gain *= formant**2 / np.hypot(formant**2 - frequency_hz**2, frequency_hz * bandwidth)
    return float(gain)
