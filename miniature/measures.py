"""What a listener would say of a song, as numbers: key, tempo, and whether it ends. All are functions of 48 kHz audio.

Profiles of keys: J. Albrecht and D. Shanahan, "The use of large corpora to train a new type of key-finding algorithm" (2013).
"""

from dataclasses import dataclass

import numpy as np

from miniature.latents import SAMPLE_RATE
from miniature.pieces import KEYS, SCALES

PROFILES = {
    "major": (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    "minor": (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
}
PITCHED_HZ = (120, 1100)
PITCH_WINDOW = 16384
ONSET_WINDOW = 2048
ONSET_HOP = 480
ONSETS_HZ = 8000
TEMPO_TOLERANCE = 0.04
# A little more than the synthesizer's range: what is outside is heard as its half or double.
SLOWEST_BPM = 55
FASTEST_BPM = 170
# The tempo's score: the onsets' similarity at these multiples of the beat, weighted.
COMB = ((0.5, 0.5), (1, 1.0), (2, 0.7), (4, 0.5))
SILENT_DB = -34.0  # a decoder makes a little noise of silence, most at a song's end
ENDING_S = 0.3
BLOCK = 2400  # samples: 50 ms


@dataclass(frozen=True)
class Key:
    """A key: its tonic's name and its mode."""

    tonic: str
    mode: str

    @property
    def relative(self) -> "Key":
        """The key of the other mode that has the same notes."""
        steps = 9 if self.mode == "major" else 3
        other = "minor" if self.mode == "major" else "major"
        return Key(KEYS[(KEYS.index(self.tonic) + steps) % 12], other)


def pitch_classes(audio: np.ndarray) -> np.ndarray:
    """The shares of the energy between 120 and 1,100 Hz in the twelve pitch classes, from C; zeros for silence."""
    power = (_spectra(_mid(audio), PITCH_WINDOW, PITCH_WINDOW // 4) ** 2).mean(0)
    frequencies = np.fft.rfftfreq(PITCH_WINDOW, 1 / SAMPLE_RATE)
    pitched = (frequencies > PITCHED_HZ[0]) & (frequencies < PITCHED_HZ[1])
    classes = np.round(69 + 12 * np.log2(frequencies[pitched] / 440)).astype(int) % 12
    energy = np.bincount(classes, power[pitched], 12)
    shares: np.ndarray = energy / max(energy.sum(), 1e-12)
    return shares


def in_scale(classes: np.ndarray, key: Key) -> float:
    """The share of the pitch classes' energy in a key's scale; chance is 7 / 12."""
    tonic = KEYS.index(key.tonic)
    return float(sum(classes[(tonic + step) % 12] for step in SCALES[key.mode]))


def heard_key(classes: np.ndarray) -> Key:
    """The key whose profile correlates best with the amplitudes of the pitch classes.

    The profiles count notes, whether loud or soft, so amplitudes fit them better than energies. Of 400 clips of the synthesizer,
    94 % are heard in their key or its relative; by energies it is 90 %, and 84 % with the profiles of Krumhansl and Kessler.
    """
    amplitudes = np.sqrt(classes)
    fits = {
        Key(tonic, mode): float(np.corrcoef(np.roll(profile, shift), amplitudes)[0, 1])
        for mode, profile in PROFILES.items()
        for shift, tonic in enumerate(KEYS)
    }
    return max(fits, key=lambda key: fits[key])


def heard_bpm(audio: np.ndarray) -> float:
    """The tempo: the lag at which the onsets resemble themselves best. It may be twice or half the written one."""
    flux = onsets(audio)
    flux = flux - flux.mean()
    # The overlap shrinks as the lag grows, so each sum is divided by its length.
    similarity = np.correlate(flux, flux, "full")[len(flux) - 1 :] / np.arange(len(flux), 0, -1)
    bpms = np.arange(SLOWEST_BPM, FASTEST_BPM, 0.5)
    lags = 60 / bpms * SAMPLE_RATE / ONSET_HOP
    scores = _comb(similarity, lags)
    return float(bpms[scores.argmax()])


def tempo_is(heard: float, bpm: float) -> bool:
    """Whether a heard tempo is the written one, twice or half of it, to 4 %."""
    return min(abs(heard / bpm / factor - 1) for factor in (0.5, 1, 2)) < TEMPO_TOLERANCE


def onsets(audio: np.ndarray) -> np.ndarray:
    """How much the spectrum below 8 kHz rises, each 10 ms."""
    lines = int(ONSETS_HZ * ONSET_WINDOW / SAMPLE_RATE)
    levels = np.log1p(100 * _spectra(_mid(audio), ONSET_WINDOW, ONSET_HOP)[:, :lines])
    rises: np.ndarray = np.maximum(0, levels[2:] - levels[:-2]).sum(1)
    return rises


def ends(audio: np.ndarray) -> bool:
    """Whether the song's last 0.3 s are silent, so that it ends and is not cut."""
    return bool(audio.shape[1] - played_samples(audio) >= ENDING_S * SAMPLE_RATE)


def played_samples(audio: np.ndarray) -> int:
    """The samples before the silence at a song's end: what is 34 dB below the loudest 50 ms is silence."""
    blocks = np.pad(_mid(audio), (0, -audio.shape[1] % BLOCK)).reshape(-1, BLOCK)
    power = (blocks**2).mean(1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (SILENT_DB / 10))
    return min(int(audio.shape[1]), int(loud[-1] + 1) * BLOCK)


def _comb(similarity: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """The score of each lag: the weighted similarity at its half, itself and its multiples."""
    places = np.arange(len(similarity))
    parts = [weight * np.interp(multiple * lags, places, similarity) for multiple, weight in COMB]
    score: np.ndarray = np.sum(parts, axis=0)
    return score


def _mid(audio: np.ndarray) -> np.ndarray:
    mid: np.ndarray = audio.mean(0)
    return mid


def _spectra(mid: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Magnitudes of overlapping windows: (windows, lines). A song that is shorter than a window is padded."""
    padded = np.pad(mid, (0, max(0, window - len(mid)))).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    magnitudes: np.ndarray = np.abs(np.fft.rfft(windows * np.hanning(window).astype(np.float32)))
    return magnitudes
