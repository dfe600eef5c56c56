"""A synthesizer of additive notes and of drums, all computed: it uses no recordings.

A note's partials start at phase 0, so that equal notes have equal waveforms: a small model can learn those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from miniature.latents import SAMPLE_RATE
from miniature.noise import noise
from miniature.voice import SYLLABLE_RELEASE_S, sung_syllable

Audio = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

LONGEST_NOTE_S = 3.0
HIGHEST_PARTIAL_HZ = 15000
LOUDNESS = 0.11
"""The root mean square of a clip."""
VOICE = "voice"
DRUMS = ("kick", "snare", "hat")


@dataclass(frozen=True)
class Note:
    """One sound of a piece: an instrument's or the bass's note, a drum, or a syllable (`sound` is VOICE).

    `pitch` is a MIDI number, `velocity` from 0 to 1. Drums have no pitch, and ring as long as they ring.
    """

    sound: str
    pitch: int
    onset_s: float
    duration_s: float
    velocity: float
    syllable: str = ""


@dataclass(frozen=True)
class Partial:
    """A sine at `multiple` times the note's frequency, that decays by exp(-decay * seconds) at middle C."""

    multiple: int
    level: float
    decay: float


@dataclass(frozen=True)
class Timbre:
    """How an instrument sounds.

    `vibrato` and `tremolo` are shares of frequency and level. `breath` is the level of steady noise from 1.5 to 7 kHz,
    `pluck` that of a burst of noise above 2 kHz at the onset.
    """

    partials: tuple[Partial, ...]
    attack_s: float
    release_s: float
    gain: float
    vibrato: float = 0.0
    tremolo: float = 0.0
    breath: float = 0.0
    pluck: float = 0.0


WAVER_HZ = 5.0  # of vibrato and tremolo
PLUCK_S = 0.012

TIMBRES = {
    "piano": Timbre(
        tuple(Partial(h, h**-1.4, 0.9 + 0.55 * h) for h in range(1, 13)), attack_s=0.004, release_s=0.08, gain=0.5
    ),
    # Plucked at 0.22 of the string, which weakens every fourth and fifth partial.
    "guitar": Timbre(
        tuple(Partial(h, abs(np.sin(np.pi * h * 0.22)) * h**-0.75, 1.8 + 0.8 * h) for h in range(1, 21)),
        attack_s=0.002,
        release_s=0.06,
        gain=0.42,
        pluck=0.5,
    ),
    "strings": Timbre(
        tuple(Partial(h, h**-0.95, 0.1) for h in range(1, 31)),
        attack_s=0.12,
        release_s=0.15,
        gain=0.26,
        vibrato=0.003,
    ),
    "flute": Timbre(
        (Partial(1, 1.0, 0.2), Partial(2, 0.2, 0.2), Partial(3, 0.05, 0.2)),
        attack_s=0.05,
        release_s=0.07,
        gain=0.5,
        vibrato=0.003,
        tremolo=0.15,
        breath=0.035,
    ),
    # Drawbars: steady octaves and fifths, up to the sixteenth partial.
    "organ": Timbre(
        (
            Partial(1, 1.0, 0),
            Partial(2, 0.7, 0),
            Partial(3, 0.4, 0),
            Partial(4, 0.5, 0),
            Partial(6, 0.3, 0),
            Partial(8, 0.35, 0),
            Partial(12, 0.2, 0),
            Partial(16, 0.2, 0),
        ),
        attack_s=0.01,
        release_s=0.04,
        gain=0.25,
    ),
    "music box": Timbre(
        (Partial(1, 1.0, 3.5), Partial(4, 0.4, 7.0), Partial(9, 0.15, 14.0)),
        attack_s=0.001,
        release_s=0.3,
        gain=0.45,
    ),
    "bass": Timbre(
        tuple(Partial(h, h**-1.2, 1.2 + 0.3 * h) for h in range(1, 9)), attack_s=0.006, release_s=0.05, gain=0.55
    ),
}


def frequency_hz(pitch: float) -> float:
    """The frequency of a MIDI number."""
    return float(440.0 * 2 ** ((pitch - 69) / 12))


def render(notes: Sequence[Note], samples: int) -> Audio:
    """The notes' sum as (2, samples), without any scaling; what comes after the last sample is cut off."""
    audio = np.zeros((2, samples), np.float32)
    for note in notes:
        start = round(note.onset_s * SAMPLE_RATE)
        if start >= samples:
            continue
        sound = _sound(note)[: samples - start]
        left, right = _pan(note)
        audio[0, start : start + len(sound)] += sound * np.float32(note.velocity * left)
        audio[1, start : start + len(sound)] += sound * np.float32(note.velocity * right)
    return audio


def _pan(note: Note) -> tuple[float, float]:
    """The levels left and right: low notes to the left, high ones to the right; bass, voice and drums in the middle."""
    position = 0.0
    if note.sound == "hat":
        position = 0.3
    elif note.sound not in (*DRUMS, "bass", VOICE):
        position = float(np.clip((note.pitch - 60) / 40, -0.5, 0.5))
    return (1 - position) ** 0.5, (1 + position) ** 0.5


def _sound(note: Note) -> Audio:
    if note.sound in DRUMS:
        return _drum(note.sound)
    if note.sound == VOICE:
        longest_s = note.duration_s + SYLLABLE_RELEASE_S
        held = sung_syllable(note.syllable, frequency_hz(note.pitch), longest_s)
        return _released(held, note.duration_s, SYLLABLE_RELEASE_S)
    return _released(_held_note(note.sound, note.pitch), note.duration_s, TIMBRES[note.sound].release_s)


def _released(held: Audio, duration_s: float, release_s: float) -> Audio:
    """A held note that ends after `duration_s` and fades during `release_s`."""
    length = min(int((duration_s + release_s) * SAMPLE_RATE), len(held))
    fade = min(int(release_s * SAMPLE_RATE), length)
    sound = held[:length].copy()
    sound[length - fade :] *= np.linspace(1, 0, fade, dtype=np.float32) ** 2
    return sound


@cache
def _held_note(sound: str, pitch: int) -> Audio:
    """A note as it sounds while it is held, as long as notes may be."""
    timbre = TIMBRES[sound]
    frequency = frequency_hz(pitch)
    time = np.arange(int(LONGEST_NOTE_S * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    # The integral of the frequency's relative deviation, vibrato * sin(2 pi WAVER_HZ t).
    bent = time + timbre.vibrato / (2 * np.pi * WAVER_HZ) * (1 - np.cos(2 * np.pi * WAVER_HZ * time))
    for partial in timbre.partials:
        if partial.multiple * frequency < HIGHEST_PARTIAL_HZ:
            decay = np.exp(-time * partial.decay * (frequency / 262) ** 0.4)
            wave += partial.level * decay * np.sin(2 * np.pi * frequency * partial.multiple * bent)
    wave *= 1 + timbre.tremolo * np.sin(2 * np.pi * WAVER_HZ * time)
    if timbre.breath:
        wave += timbre.breath * noise(len(time), 1500, 7000)
    wave *= np.minimum(1, time / timbre.attack_s)
    if timbre.pluck:
        wave += timbre.pluck * noise(len(time), 2000, 12000) * np.exp(-time / PLUCK_S)
    # High notes sound louder than low ones of the same level.
    wave *= timbre.gain * (262 / frequency) ** 0.15
    return wave.astype(np.float32)


@cache
def _drum(sound: str) -> Audio:
    time = np.arange(int(0.3 * SAMPLE_RATE)) / SAMPLE_RATE
    white = np.random.default_rng(5).standard_normal(len(time))
    if sound == "kick":
        falling = 50 * time + 3.0 * (1 - np.exp(-time * 40))
        wave = 0.9 * np.sin(2 * np.pi * falling) * np.exp(-time * 12)
    elif sound == "snare":
        rattle = white - np.convolve(white, np.ones(24) / 24, "same")
        skin = np.sin(2 * np.pi * 190 * time)
        wave = 0.22 * rattle * np.exp(-time * 20) + 0.3 * skin * np.exp(-time * 25)
    else:
        wave = 0.06 * np.diff(white, n=2, prepend=[0.0, 0.0]) * np.exp(-time * 60)
    return wave.astype(np.float32)
